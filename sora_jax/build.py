"""Config -> objects. The only reader of ConfigDict: below here plain values travel.

Names choose functions through explicit tables; no code supplies a second default.
"""

from collections.abc import Sequence
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline import packing
from data_pipeline.clips import clip_batches
from data_pipeline.dataset import Dataset, choose_tokenizer
from data_pipeline.errors import BadInput
from data_pipeline.loader import latent_batches
from sora_jax.attention.registry import segment_attention
from sora_jax.attention.ulysses import over_mesh
from sora_jax.diffusion.time import make_density, make_weighting
from sora_jax.evals.held_out import make_held_out_loss, make_reconstruction_score
from sora_jax.generate.sample import Sampler
from sora_jax.models.dit import RULES as DIT_RULES
from sora_jax.models.dit import DiT
from sora_jax.models.frozen_vae import FrozenVAE
from sora_jax.models.vae import RULES as VAE_RULES
from sora_jax.models.vae import make_codec
from sora_jax.nn.block import mlp_hidden
from sora_jax.parallel.mesh import host_share, make_mesh, mesh_ranks
from sora_jax.parallel.place import make_put
from sora_jax.train.accumulate import make_gradient
from sora_jax.train.dit_loss import make_dit_loss, merge_by_time
from sora_jax.train.flops import count_clips, count_packed, forward_flops
from sora_jax.train.loop import Hook
from sora_jax.train.optim import make_optimizer, make_schedule
from sora_jax.train.session import Schedule, Task
from sora_jax.train.vae_loss import make_vae_loss, merge_vae_metrics

# Of `config.model`, what `DiT` is built with as it stands.
DIT_SETTINGS = (
  "width",
  "depth",
  "heads",
  "mlp",
  "mlp_ratio",
  "pooled_caption",
  "dtype",
  "zero_init",
)
MIX_SETTINGS = ("weights", "caption_weights", "skip_steps")  # of `config.data`, how clips are drawn


def build_mesh(config):
  """The device mesh of `config.mesh`."""
  return make_mesh(**config.mesh)


def build_schedule(config) -> Schedule:
  """Lengths and intervals of a run. Raises BadInput for one that is not positive."""
  for name, value in (("total_steps", config.total_steps), *config.every.items()):
    if value < (name != "evaluate_steps"):  # 0 switches evaluation off
      raise BadInput(f"config: {name}={value} must be positive.")
  if config.keep.checkpoints < 1:
    raise BadInput(
      f"config: keep.checkpoints={config.keep.checkpoints} would keep none. Set it to 1 or more."
    )
  return Schedule(
    config.total_steps,
    config.every.log_steps,
    config.every.checkpoint_steps,
    config.keep.checkpoints,
    config.keep.period_steps,
  )


def build_optimizer(config):
  """The optax transformation and the decay of the parameters' average."""
  settings = config.optim.to_dict()
  ema_decay = settings.pop("ema_decay")
  return make_optimizer(**settings, total_steps=config.total_steps), ema_decay


def build_rate(config):
  """The learning rate as a function of the steps done."""
  names = ("lr", "schedule", "warmup_steps", "decay_steps", "min_lr_ratio")
  settings = {name: config.optim[name] for name in names}
  return make_schedule(**settings, total_steps=config.total_steps)


def dit_settings(config, *, latent_channels: int, text: dict) -> dict:
  """Arguments of `DiT` that config, VAE and text encoder decide together."""
  pt, ph, pw = config.model.patch
  return dict(
    {name: config.model[name] for name in DIT_SETTINGS},
    patch_dim=latent_channels * pt * ph * pw,
    state_width=text["width"],
    vocabulary=text["vocabulary"],
  )


def dit_structure(settings: dict):
  """Graph of a DiT, without its parameters."""
  return nnx.graphdef(nnx.eval_shape(lambda: DiT(**settings, rngs=nnx.Rngs(0))))


def build_gradient(config, mesh, loss, merge):
  """The gradient of a loss in the config's microbatches; `merge` puts their metrics together."""
  steps, ranks, rows = config.accumulate_steps, mesh_ranks(mesh), config.data.rows
  if steps < 1 or rows % (steps * ranks):
    raise BadInput(
      f"config: accumulate_steps={steps} times {ranks} ranks (mesh.data * mesh.fsdp) does not"
      f" divide data.rows={rows}. Each rank gives every microbatch the same number of rows."
    )
  return make_gradient(loss, merge, steps=steps, ranks=ranks)


def loss_settings(config, mesh) -> dict:
  """What loss and held-out loss share."""
  attend = segment_attention(config.model.attention_backend)
  return dict(
    prediction=config.model.prediction,
    t_min=config.diffusion.t_min,
    seed=config.seed,
    attend=over_mesh(attend, mesh, heads=config.model.heads),
    remat=config.model.remat,
  )


def packed_batches(config, datasets, cursor, *, share, split: str, dropout, given, **mix):
  """The loader of `config.data` on a split; `mix` are settings of the mixture.

  `share` is (rank, ranks) of this process.
  """
  names = ("slots", "caption_slots", "segments", "rows", "text", "window_clips")
  names += ("threads", "prefetch")
  return latent_batches(
    datasets,
    split=split,
    seed=config.seed,
    patch=tuple(config.model.patch),
    cost=packing.cost_of(config.model.width),
    rank=share[0],
    ranks=share[1],
    caption_dropout=dropout,
    given_first_frame=given,
    cursor=cursor,
    **{name: config.data[name] for name in names},
    **mix,
  )


def dit_task(config, datasets: Sequence[Dataset], mesh) -> Task:
  """Text-to-video training on a latent dataset, or on several mixed by weight."""
  check_prediction(config)
  dataset = datasets[0]  # one VAE and one text encoder made them all: the loader checks it
  name = choose_tokenizer(datasets, config.data.text)
  text, latent_channels = dataset.meta["texts"][name], cast(int, dataset.latent_channels)
  for each in datasets:
    if text["width"] and not each.state_width(name) and each.index["caption_offsets"][-1]:
      raise BadInput(
        f"train: {each.path} has captions but no states of its encoder {name}, which the model"
        " reads. Encode it again (sora encode), with its states, or set data.text to an encoder"
        " without any (bytes)."
      )
  settings = dit_settings(config, latent_channels=latent_channels, text=text)
  structure, shared = dit_structure(settings), loss_settings(config, mesh)
  optimizer, ema_decay = build_optimizer(config)
  density = make_density(**config.diffusion.density)
  weighting = make_weighting(**config.diffusion.weighting)
  share, hooks = host_share(mesh), []
  if config.every.evaluate_steps:
    kept_out = check_held_out(config, datasets)
    held_out = packed_batches(
      config, kept_out, None, share=share, split="held_out", dropout=0.0, given=0.0
    )
    kept = first_batches(held_out, config.evaluate.batches, make_put(mesh))
    score = make_held_out_loss(structure, kept, **shared)
    hooks = [Hook("held_out", config.every.evaluate_steps, lambda step, state: score(state.ema))]
  return Task(
    init=lambda: nnx.state(DiT(**settings, rngs=nnx.Rngs(config.seed))),
    gradient=build_gradient(
      config, mesh, make_dit_loss(structure, density, weighting, **shared), merge_by_time
    ),
    optimizer=optimizer,
    ema_decay=ema_decay,
    rules=DIT_RULES,
    batches=lambda cursor: packed_batches(
      config,
      datasets,
      cursor,
      share=share,
      split="train",
      dropout=config.data.caption_dropout,
      given=config.data.given_first_frame,
      **{name: config.data[name] for name in MIX_SETTINGS},
    ),
    count=partial(count_packed, **flop_settings(settings)),
    hooks=hooks,
    dataset_fingerprint=" ".join(each.fingerprint for each in datasets),
    rate=build_rate(config),
  )


def check_held_out(config, datasets: Sequence[Dataset]) -> list[Dataset]:
  """The datasets that have clips to evaluate on. Raises BadInput when none has."""
  some = [dataset for dataset in datasets if dataset.splits.get("held_out")]
  if not some:
    paths = ", ".join(str(dataset.path) for dataset in datasets)
    raise BadInput(
      f"config: every.evaluate_steps={config.every.evaluate_steps} needs clips of the split"
      f" held_out, and {paths} has none. Set every.evaluate_steps=0, or make data with some."
    )
  if config.evaluate.batches < 1:
    raise BadInput(
      f"config: evaluate.batches={config.evaluate.batches} is below 1. Raise it, or set"
      " every.evaluate_steps=0."
    )
  return some


def first_batches(loader, count: int, put) -> list:
  """At most `count` batches of a loader's first epoch, on the devices; closes the loader."""
  kept = []
  try:
    while len(kept) < count and loader.cursor["epoch"] == 0:
      kept.append(put(next(loader)))
  finally:
    loader.close()
  return kept


def check_patch(patch):
  """Raises BadInput for a patch that is not three positive sides."""
  if len(patch) != 3 or min(patch) < 1:
    raise BadInput(f"config: model.patch={tuple(patch)} is not (frames, rows, columns), each >= 1.")


def check_prediction(config):
  """Raises BadInput for what a network cannot predict."""
  if config.model.prediction not in ("clean", "velocity"):
    raise BadInput(
      f"dit: prediction={config.model.prediction!r} is not one of ['clean', 'velocity']."
    )


def flop_settings(settings: dict) -> dict:
  """Arguments of `dit_forward_flops`."""
  names = ("width", "depth", "patch_dim", "state_width")
  hidden = mlp_hidden(settings["width"], settings["mlp_ratio"], settings["mlp"])
  return dict(
    {name: settings[name] for name in names},
    hidden=hidden,
    gated=settings["mlp"] == "swiglu",
    pooled=settings["pooled_caption"],
  )


def vae_task(config, dataset: Dataset, mesh) -> Task:
  """VAE training on a clip dataset."""
  if mesh.shape["tensor"] > 1:
    raise BadInput(
      f"mesh: tensor={mesh.shape['tensor']} is not for a VAE, which has no heads to divide. Use"
      " mesh.data, fsdp, or context (which divides the rows of a picture)."
    )
  codec = config.model.to_dict()
  structure = nnx.graphdef(nnx.eval_shape(lambda: make_codec(codec, seed=0)))
  terms = dict(kl_weight=config.loss.kl_weight, terms=config.loss.terms.to_dict())
  loss = make_vae_loss(structure, seed=config.seed, **terms)
  optimizer, ema_decay = build_optimizer(config)
  batches = partial(clips_of, config, dataset, share=host_share(mesh))
  hooks = []
  if config.every.evaluate_steps:
    check_held_out(config, [dataset])
    held_out = batches(None, split="held_out")
    kept = first_batches(held_out, config.evaluate.batches, make_put(mesh))
    score = make_reconstruction_score(structure, kept)
    hooks = [Hook("held_out", config.every.evaluate_steps, lambda step, state: score(state.ema))]
  return Task(
    init=lambda: nnx.state(make_codec(codec, seed=config.seed)),
    gradient=build_gradient(config, mesh, loss, merge_vae_metrics),
    optimizer=optimizer,
    ema_decay=ema_decay,
    rules=VAE_RULES,
    batches=batches,
    count=partial(count_clips, **clip_cost(codec, config.data)),
    hooks=hooks,
    dataset_fingerprint=dataset.fingerprint,
    rate=build_rate(config),
  )


def clips_of(config, dataset: Dataset, cursor, *, share=(0, 1), split: str = "train"):
  """The loader of a VAE's clips: windows of one shape; `share` is (rank, ranks) of this process."""
  names = ("rows", "frames", "height", "width", "threads", "prefetch")
  settings = {name: config.data[name] for name in names}
  settings |= dict(zip(("rank", "ranks"), share, strict=True))
  return clip_batches(dataset, split=split, seed=config.seed, cursor=cursor, **settings)


def clip_cost(codec: dict, data) -> dict:
  """Arguments of `count_clips`: a training step costs three passes of encoder and decoder."""
  model = nnx.eval_shape(lambda: make_codec(codec, seed=0))
  structure, params = nnx.split(model)
  video = jax.ShapeDtypeStruct((1, data.frames, data.height, data.width, 3), jnp.float32)

  def forward(params, video):
    codec = nnx.merge(structure, params)
    return codec.decode(codec.encode(video)[0])

  latents = 1 + (data.frames - 1) // model.time_factor
  tokens = latents * (data.height // model.space_factor) * (data.width // model.space_factor)
  return dict(flops_per_clip=3 * forward_flops(forward, params, video), tokens_per_clip=tokens)


def build_sampler(config, params, vae: FrozenVAE, text: dict) -> Sampler:
  """Sampler of a trained DiT."""
  structure = dit_structure(dit_settings(config, latent_channels=vae.latent_channels, text=text))
  return Sampler(
    structure,
    params,
    patch=config.model.patch,
    latent_channels=vae.latent_channels,
    state_width=text["width"],
    prediction=config.model.prediction,
    t_min=config.diffusion.t_min,
    attend=segment_attention(config.model.attention_backend),
  )

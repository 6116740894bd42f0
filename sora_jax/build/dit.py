"""Text-to-video training and sampling: the DiT, its loss, its loader."""

from collections.abc import Sequence
from functools import partial
from typing import cast

from flax import nnx

from data_pipeline import packing
from data_pipeline.dataset import Dataset, choose_tokenizer
from data_pipeline.errors import BadInput
from data_pipeline.loader import latent_batches
from sora_jax.build.attention import build_attention, sampling_attention
from sora_jax.build.evaluation import check_held_out, first_batches, held_out_hook
from sora_jax.build.run import build_gradient, build_optimizer, build_rate
from sora_jax.diffusion.time import make_density, make_weighting
from sora_jax.evals.held_out import make_held_out_loss
from sora_jax.generate.sample import Sampler
from sora_jax.models.dit import RULES as DIT_RULES
from sora_jax.models.dit import DiT
from sora_jax.models.frozen_vae import FrozenVAE
from sora_jax.nn.block import mlp_hidden
from sora_jax.parallel.mesh import host_share
from sora_jax.parallel.place import make_put
from sora_jax.parallel.rules import over_context
from sora_jax.train.dit_loss import make_dit_loss, merge_by_time
from sora_jax.train.flops import count_packed
from sora_jax.train.task import Task

# Of `config.model`, what `DiT` is built with as it stands.
DIT_SETTINGS = (
  "width",
  "depth",
  "heads",
  "mlp",
  "mlp_ratio",
  "pooled_caption",
  "rotary_seconds",
  "dtype",
  "param_dtype",
  "zero_init",
)
MIX_SETTINGS = ("weights", "caption_weights", "skip_steps")  # of `config.data`, how clips are drawn


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


def loss_settings(config, mesh) -> dict:
  """What loss and held-out loss share."""
  return dict(
    prediction=config.model.prediction,
    t_min=config.diffusion.t_min,
    seed=config.seed,
    attend=build_attention(config, mesh),
    remat=config.model.remat,
  )


def dit_learning(config, mesh, settings: dict) -> dict:
  """What a DiT's `Task` has that no data decide; `settings` are those of `dit_settings`."""
  optimizer, averages = build_optimizer(config)
  density = make_density(**config.diffusion.density)
  weighting = make_weighting(**config.diffusion.weighting)
  loss = make_dit_loss(
    dit_structure(settings), density, weighting, **loss_settings(config, mesh)
  )
  return dict(
    init=lambda: nnx.state(DiT(**settings, rngs=nnx.Rngs(config.seed))),
    gradient=build_gradient(config, mesh, loss, merge_by_time),
    optimizer=optimizer,
    averages=averages,
    rules=over_context(DIT_RULES) if config.shard_over_context else DIT_RULES,
    rate=build_rate(config),
    count=partial(count_packed, **flop_settings(settings)),
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
  learning = dit_learning(config, mesh, settings)
  share, hooks = host_share(mesh), []
  if config.every.evaluate_steps:
    kept_out = check_held_out(config, datasets)
    held_out = packed_batches(
      config, kept_out, None, share=share, split="held_out", dropout=0.0, given=0.0
    )
    kept = first_batches(held_out, config.evaluate.batches, make_put(mesh))
    score = make_held_out_loss(dit_structure(settings), kept, **loss_settings(config, mesh))
    hooks = [held_out_hook(config, score)]
  return Task(
    **learning,
    batches=lambda cursor, more=(): packed_batches(
      config,
      datasets,
      cursor,
      share=share,
      split="train",
      dropout=config.data.caption_dropout,
      given=config.data.given_first_frame,
      **{name: config.data[name] for name in MIX_SETTINGS if name != "skip_steps"},
      skip_steps=sorted({*config.data.skip_steps, *more}),
    ),
    hooks=hooks,
    dataset_fingerprint=" ".join(each.fingerprint for each in datasets),
  )


def build_sampler(config, params, vae: FrozenVAE, text: dict) -> Sampler:
  """Sampler of a trained DiT."""
  structure = dit_structure(dit_settings(config, latent_channels=vae.latent_channels, text=text))
  return Sampler(
    structure,
    params,
    patch=config.model.patch,
    latent_channels=vae.latent_channels,
    time_factor=vae.time_factor,
    state_width=text["width"],
    prediction=config.model.prediction,
    t_min=config.diffusion.t_min,
    density=make_density(**config.diffusion.density),
    attend=sampling_attention(),
  )

"""VAE training: the codec, its loss, its loader."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.clips import clip_batches
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from sora_jax.build.evaluation import check_held_out, first_batches, held_out_hook
from sora_jax.build.run import build_gradient, build_optimizer, build_rate
from sora_jax.evals.held_out import make_reconstruction_score
from sora_jax.models.vae import RULES as VAE_RULES
from sora_jax.models.vae import make_codec
from sora_jax.parallel.mesh import host_share
from sora_jax.parallel.place import make_put
from sora_jax.train.flops import count_clips, forward_flops
from sora_jax.train.task import Task
from sora_jax.train.vae_loss import make_vae_loss, merge_vae_metrics


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
  optimizer, averages = build_optimizer(config)
  batches = partial(clips_of, config, dataset, share=host_share(mesh))
  if config.spike.factor:
    raise BadInput(
      f"config: spike.factor={config.spike.factor} is for a DiT, whose data can be skipped. Set it"
      " to 0."
    )
  hooks = []
  if config.every.evaluate_steps:
    check_held_out(config, [dataset])
    held_out = batches(None, split="held_out")
    kept = first_batches(held_out, config.evaluate.batches, make_put(mesh))
    score = make_reconstruction_score(structure, kept)
    hooks = [held_out_hook(config, score)]
  return Task(
    init=lambda: nnx.state(make_codec(codec, seed=config.seed)),
    gradient=build_gradient(config, mesh, loss, merge_vae_metrics),
    optimizer=optimizer,
    averages=averages,
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

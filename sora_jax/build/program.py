"""A run's train step for devices that are not there: what `sora plan` compiles."""

import math
from typing import NamedTuple

import jax
import ml_dtypes

from data_pipeline.errors import BadInput
from data_pipeline.tokens import empty_rows
from sora_jax.build.attention import attention_backend
from sora_jax.build.dit import dit_learning, dit_settings, flop_settings
from sora_jax.parallel.mesh import mesh_ranks
from sora_jax.parallel.place import HOST_KEYS, batch_sharding
from sora_jax.plan.compile import Program
from sora_jax.plan.estimate import Attention
from sora_jax.plan.kernels import computed_pairs
from sora_jax.train.flops import dit_forward_flops
from sora_jax.train.session import jit_step
from sora_jax.train.state import abstract_state
from sora_jax.train.task import Task

FILL = 0.95  # of a row's slots: rows of few long clips; of many short ones packing reaches 99 %
NEEDS_DEVICE = {"tokamax": "triton"}  # kernels that ask the device while they are lowered


class Work(NamedTuple):
  """What a step computes, of the mixture that `config.plan` expects.

  Attributes:
    tokens: of patches and captions, padding not counted.
    model_flops: three forward passes, attention by Σ segment².
    attention: of one device, in one layer's forward pass.
    useful_share: of the pairs of slots that attention multiplies, those inside of a segment.
    parameters: numbers.
    fill: of the rows' slots, the share that holds tokens.
    fill_bound: what keeps it from more: "packing", or a capacity of a row by its setting.
  """

  tokens: float
  model_flops: float
  attention: Attention
  useful_share: float
  parameters: int
  fill: float
  fill_bound: str


def replace_kernel(config, platform: str) -> str:
  """Sets an attention backend that lowers without its GPU where the config's does not; says so.

  Returns:
    One line for the user; "" where nothing changed.
  """
  asked = config.model.attention_backend
  if asked not in NEEDS_DEVICE or platform != "cuda":
    return ""
  config.model.attention_backend = NEEDS_DEVICE[asked]
  return (
    f"attention: {asked} cannot be compiled without its device; planned with {NEEDS_DEVICE[asked]}"
  )


def check_plannable(config) -> None:
  """Raises BadInput for a config that `sora plan` has nothing to say about, or that is no run."""
  if config.model.name != "dit":
    raise BadInput(
      f"plan: model.name={config.model.name} is a VAE's, which trains on a single device. Give the"
      " config of a DiT."
    )
  if "plan" not in config:
    raise BadInput(
      "plan: the config has no `plan`, what its data will be. Add one (experiments/common.py)."
    )
  tokens, wanted = [length for length, _ in config.plan.clips], config.plan
  if max(tokens) > config.data.slots:
    raise BadInput(
      f"plan: plan.clips={wanted.clips} has to be ((tokens, share), ...), of 1 to"
      f" data.slots={config.data.slots} tokens each. Correct it."
    )
  if wanted.caption_tokens >= min(tokens):
    raise BadInput(
      f"plan: plan.caption_tokens={wanted.caption_tokens} leaves no patch of a clip of"
      f" {min(tokens)} tokens (plan.clips, which counts both). Lower it."
    )
  if not (wanted.text_width or wanted.vocabulary):
    raise BadInput(
      "plan: plan.text_width=0 and plan.vocabulary=0 leave captions nothing to be. Set one of them."
    )


def _settings(config) -> dict:
  text = dict(width=config.plan.text_width, vocabulary=config.plan.vocabulary)
  return dit_settings(config, latent_channels=config.plan.latent_channels, text=text)


def build_program(config, mesh) -> tuple[Program, Work]:
  """The train step of a config on a mesh, and what it computes.

  Raises:
    BadInput: as `sora train` refuses it.
  """
  settings = _settings(config)
  task = Task(
    **dit_learning(config, mesh, settings),
    batches=lambda cursor, more=(): iter(()),
    hooks=(),
    dataset_fingerprint="",
  )
  shapes, places = task.describe_state(mesh)
  state, batch = abstract_state(shapes, places), _batch(config, mesh, settings)

  def lower():
    with jax.set_mesh(mesh):
      return jit_step(task, places).lower(state, {}, batch)

  parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
  return Program(lower, state, batch, config.model.depth), _work(
    config, mesh, settings, parameters
  )


def _batch(config, mesh, settings: dict) -> dict:
  """A packed batch, as shapes."""
  data, ranks = config.data, mesh_ranks(mesh)
  if data.rows % ranks or data.slots % mesh.shape["context"]:
    raise BadInput(
      f"plan: data.rows={data.rows} and data.slots={data.slots} do not divide over {ranks} ranks"
      f" (mesh.data * mesh.fsdp) and mesh.context={mesh.shape['context']}. Change one of them."
    )
  one = empty_rows(
    1,
    slots=data.slots,
    caption_slots=data.caption_slots,
    segments_per_row=data.segments,
    patch_width=settings["patch_dim"],
    state_width=settings["state_width"] or None,
    dtype=ml_dtypes.bfloat16,
  )
  return {
    key: jax.ShapeDtypeStruct(
      (data.rows, *array.shape[1:]), array.dtype, sharding=batch_sharding(key, mesh)
    )
    for key, array in one.items()
    if key not in HOST_KEYS
  }


def _work(config, mesh, settings: dict, parameters: int) -> Work:
  """Of a step whose rows are full of the clips that are expected."""
  data, rows = config.data, config.data.rows
  shares = sum(share for _, share in config.plan.clips)
  mean = sum(share * tokens for tokens, share in config.plan.clips) / shares  # Σ n² / Σ n
  clips = sum(share / tokens for tokens, share in config.plan.clips) / shares  # a token
  fill, bound = _fill(config, mean, clips)
  tokens = rows * data.slots * fill
  captions = tokens * clips * config.plan.caption_tokens
  squares = tokens * mean
  flops = 3 * dit_forward_flops(tokens - captions, captions, squares, **flop_settings(settings))
  ranks, backend = mesh_ranks(mesh), attention_backend(config, mesh)
  heads = config.model.heads / (mesh.shape["context"] * mesh.shape["tensor"])
  computed = tokens / shares * sum(
    share * computed_pairs(length, data.slots, backend) for length, share in config.plan.clips
  )
  alone = backend == "splash"  # it takes one row after the other
  calls = rows // ranks if alone else config.accumulate_steps
  head_dim = config.model.width // config.model.heads
  attention = Attention(computed / ranks * heads, calls, head_dim)
  return Work(tokens, flops, attention, squares / computed, parameters, fill, bound)


def _fill(config, mean: float, clips: float) -> tuple[float, str]:
  """The share of a row's slots that clips fill, and what bounds it: `mean` tokens of the clip that
  a token is in, `clips` a token."""
  data = config.data
  captions = config.plan.caption_tokens * clips * data.slots
  bounds = {
    "packing": FILL if mean < FILL * data.slots else mean / data.slots,
    "data.segments": data.segments / (clips * data.slots),
    "data.caption_slots": data.caption_slots / captions if captions else math.inf,
  }
  bound = min(bounds, key=lambda name: round(bounds[name], 9))  # of equal ones packing
  return bounds[bound], bound


def state_bytes(program: Program) -> int:
  """Of a whole state, as a checkpoint holds it."""
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.state))

"""Text to latents: follows the flow with guidance, for a group of samples of one shape.

Each row holds a sample twice, as two segments: with its caption and with the negative (or no)
caption, so that one call of the network gives both halves of the guidance. Without guidance
(scale 1) it holds the first alone.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline.errors import BadInput
from data_pipeline.tokens import Segment, pack_row, stack_rows, token_count, unpatchify
from sora_jax.diffusion.guidance import classifier_free_guidance
from sora_jax.diffusion.noise import token_normal
from sora_jax.diffusion.objective import predicted_velocity
from sora_jax.diffusion.samplers import integrate, time_grid
from sora_jax.diffusion.time import Density
from sora_jax.nn.gather import gather_rows
from sora_jax.parallel.place import HOST_KEYS

CAPTION_STEP = 16  # caption slots grow by this, so that few shapes are compiled


class Shape(NamedTuple):
  """What a sample looks like: latent frames, rows, columns, and frames a second of its pixels."""

  f: int
  h: int
  w: int
  fps: float


class Caption(NamedTuple):
  """Token ids [m] and, if the encoder has them, token states [m,k]. None instead: no caption."""

  ids: np.ndarray
  states: np.ndarray | None


class Settings(NamedTuple):
  """How to sample.

  Attributes:
    steps: of the solver; a Heun step asks the network twice.
    guidance: scale s of u + s(c - u); 1 uses the caption alone.
    solver: "euler" or "heun".
    alpha: shift of the times towards noise, 1 for none; 0 for that which training had at the
      sample's token count.
    seed: of the noise, 0 to 2**32 - 1.
  """

  steps: int
  guidance: float
  solver: str
  alpha: float
  seed: int


def check_settings(settings: Settings) -> None:
  """Raises BadInput for a guidance, shift or seed that makes no video."""
  if not math.isfinite(settings.guidance):
    raise BadInput(f"sample: guidance={settings.guidance} must be finite.")
  if not 0 <= settings.alpha < math.inf:
    raise BadInput(
      f"sample: shift={settings.alpha} must be positive (1 is none), or 0 for that of training."
    )
  if not 0 <= settings.seed < 2**32:
    raise BadInput(f"sample: seed={settings.seed} is not between 0 and 2**32 - 1.")


class Sampler:
  """A trained DiT and how its outputs are read.

  Args:
    structure, params: of `nnx.split(dit)`.
    patch: (pt, ph, pw); `latent_channels` and `time_factor`: of the VAE.
    state_width: k of the text encoder, 0 for token ids alone.
    prediction: "clean" or "velocity"; `t_min`, the clamp of its loss, has no part in sampling.
    density: of the noise levels in training.
    attend: `segment_attention` of a backend.
  """

  def __init__(
    self,
    structure,
    params,
    *,
    patch,
    latent_channels,
    time_factor: int,
    state_width,
    prediction,
    t_min,
    density: Density,
    attend,
  ):
    self.params, self.patch, self.state_width = params, tuple(patch), state_width
    self.latent_channels, self._time_factor = latent_channels, time_factor
    self._density = density
    self.patch_dim = latent_channels * int(np.prod(patch))
    run = partial(
      _sample,
      structure,
      prediction=prediction,
      attend=attend,
      patch_dim=self.patch_dim,
    )
    self._run = jax.jit(run, static_argnames=("guided", "solver"))

  def __call__(self, captions, negatives, draws, shape: Shape, settings: Settings) -> np.ndarray:
    """Latents [samples,f,h,w,c] for captions; equal (seed, draw) give equal noise.

    Args:
      captions: a `Caption` each.
      negatives: a `Caption` each to guide away from, or None for no caption.
      draws: integers that tell samples of one seed apart.
    """
    check_settings(settings)
    guided = settings.guidance != 1.0
    batch = self._rows(captions, negatives if guided else None, draws, shape)
    times = time_grid(settings.steps, self.choose_shift(settings, shape))
    patches = self._run(
      self.params,
      batch,
      times,
      jnp.float32(settings.guidance),
      jnp.uint32(settings.seed),
      guided=guided,
      solver=settings.solver,
    )
    count = token_count(shape[:3], self.patch)
    return np.stack([unpatchify(row[:count], shape[:3], self.patch) for row in np.asarray(patches)])

  def choose_shift(self, settings: Settings, shape: Shape) -> float:
    """The shift of the times: the one asked for, or that of training at this many patches."""
    return settings.alpha or self._density.sampling_shift(token_count(shape[:3], self.patch))

  def caption_slots(self, caption, negative, settings: Settings) -> int:
    """Caption slots of a sample's row: its captions' tokens, in steps of CAPTION_STEP."""
    said = [caption] if settings.guidance == 1.0 else [caption, negative]
    tokens = sum(max(1, len(one.ids)) if one else 1 for one in said)  # none is a token too
    return -(-tokens // CAPTION_STEP) * CAPTION_STEP

  def _rows(self, captions, negatives, draws, shape: Shape) -> dict:
    """A row for every sample: segment 1 has the caption, 2 the negative (no 2 where None)."""
    patches = token_count(shape[:3], self.patch)
    sides = [captions] if negatives is None else [captions, negatives]
    groups = [
      [self._segment(caption, draw, patches, shape) for caption in said]
      for *said, draw in zip(*sides, draws, strict=True)
    ]
    longest = max(sum(segment.caption_tokens for segment in group) for group in groups)
    caption_slots = -(-longest // CAPTION_STEP) * CAPTION_STEP
    slots = caption_slots + len(sides) * patches
    rows = [
      pack_row(group, slots=slots, caption_slots=caption_slots, segments_per_row=len(sides))
      for group in groups
    ]
    return {key: value for key, value in stack_rows(rows).items() if key not in HOST_KEYS}

  def _segment(self, caption: Caption | None, draw: int, patches: int, shape: Shape) -> Segment:
    empty = np.zeros((0, self.state_width), np.float32) if self.state_width else None
    caption = caption or Caption(np.zeros(0, np.int32), empty)
    return Segment(
      patches=np.zeros((patches, self.patch_dim), np.float32),
      shape=(shape.f, shape.h, shape.w),
      patch=self.patch,
      fps=shape.fps,
      time_factor=self._time_factor,
      text_ids=caption.ids,
      text_states=caption.states,
      draw=draw,
    )


def slots_of_patches(batch, segment: int):
  """Slot of each patch of a row's segment [b,n], in patch order; -1 beyond its patches."""
  inside = (batch["segment"] == segment) & (batch["token_index"] >= 0)
  n = inside.shape[1]
  first = jnp.argmax(inside, axis=1)[:, None]
  index = jnp.arange(n)[None]
  return jnp.where(index < jnp.sum(inside, 1)[:, None], first + index, -1)


def _sample(
  structure,
  params,
  batch,
  times,
  guidance,
  seed,
  *,
  guided,
  solver,
  prediction,
  attend,
  patch_dim,
):
  """Integrates z [b,n,p], whose entry j is patch j of the row's sample (zeros beyond the last).

  Clean patches become a velocity by the t of the step itself, which is never 0: the clamp of the
  loss would let a step from below it end short of them.
  """
  model = nnx.merge(structure, params)
  with_caption, without = slots_of_patches(batch, 1), slots_of_patches(batch, 2)

  def velocity(z, t):
    placed = gather_rows(z, batch["token_index"])
    levels = jnp.full((z.shape[0], 1 + batch["draw"].shape[1]), t, jnp.float32).at[:, 0].set(0.0)
    output = model(placed, levels, batch, attend=attend, remat="none")
    at = jnp.full(placed.shape[:2], t, jnp.float32)
    v = predicted_velocity(prediction, output, placed, at, t_min=0.0)
    conditional = gather_rows(v, with_caption)
    if not guided:
      return conditional
    return classifier_free_guidance(conditional, gather_rows(v, without), guidance)

  noise = token_normal(
    seed, "sample", batch["draw"], batch["segment"], batch["token_index"], patch_dim
  )
  return integrate(solver, velocity, gather_rows(noise, with_caption), times)

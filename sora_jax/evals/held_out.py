"""Loss on clips of sources never trained on, at fixed noise levels: cheap and deterministic."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sora_jax.diffusion.objective import weighted_mean
from sora_jax.models.vae import pixels_to_float, pixels_to_uint8
from sora_jax.train.dit_loss import dit_errors

TIMES = tuple((np.arange(10) + 0.5) / 10)  # t at which the loss is read


def make_held_out_loss(structure, batches, **settings):
  """Builds `loss(params) -> {"held_out_loss", "held_out_loss_by_t"}` over fixed batches.

  Args:
    structure: of `nnx.split(dit)`.
    batches: device batches, kept: the same clips, captions and noise each time.
    **settings: of `dit_errors`.
  """

  @jax.jit
  def at_times(params, batch):
    def at(t):
      times = jnp.full(batch["draw"].shape[:2], t, jnp.float32)
      error, weight, _ = dit_errors(params, structure, batch, times, **settings)
      return weighted_mean(error, weight), jnp.sum(weight)

    return jax.lax.map(at, jnp.asarray(TIMES, jnp.float32))

  def loss(params) -> dict:
    parts = [at_times(params, batch) for batch in batches]
    weights = np.stack([np.asarray(w) for _, w in parts])
    by_time = (np.stack([np.asarray(m) for m, _ in parts]) * weights).sum(0) / weights.sum(0)
    return {"held_out_loss": float(by_time.mean()), "held_out_loss_by_t": by_time.tolist()}

  return loss


def make_reconstruction_score(structure, batches):
  """Builds `score(params) -> {"held_out_psnr_db"}` of a codec over fixed batches of clips.

  As in the pipeline, the posterior's mean is decoded and rounded to uint8. The squared error is
  pooled over all pixels before it becomes dB; the peak is 255.

  Args:
    structure: of `nnx.split(codec)`.
    batches: with `video` uint8 [b,F,H,W,3].
  """

  @jax.jit
  def squared_error(params, video):
    codec = nnx.merge(structure, params)
    decoded = pixels_to_uint8(codec.decode(codec.encode(pixels_to_float(video))[0]))
    return jnp.mean((decoded.astype(jnp.float32) - video.astype(jnp.float32)) ** 2)

  def score(params) -> dict:
    errors = [float(squared_error(params, batch["video"])) for batch in batches]
    pooled = np.average(errors, weights=[batch["video"].size for batch in batches])
    return {"held_out_psnr_db": 10 * math.log10(255**2 / pooled) if pooled else math.inf}

  return score

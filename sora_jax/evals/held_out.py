"""Loss on clips of sources never trained on, at fixed noise levels: cheap and deterministic."""

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.objective import weighted_mean
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


def make_reconstruction_score(batches, loss):
  """Builds `score(params) -> {"held_out_psnr_db"}` of a VAE over fixed batches of clips."""
  run = jax.jit(lambda params, batch: loss(params, {}, batch)[1]["psnr_db"])

  def score(params) -> dict:
    return {"held_out_psnr_db": float(np.mean([float(run(params, batch)) for batch in batches]))}

  return score

"""The training loss: squared velocity error over noisy patches, whatever the network predicts."""

import jax.numpy as jnp

from sora_jax.diffusion.path import velocity_from_clean
from sora_jax.typed import Array, Float, typed


def predicted_velocity(prediction: str, output, z, t, t_min: float):
  """Velocity that the network's output means: the output itself, or that of its clean patches."""
  if prediction == "velocity":
    return output
  return velocity_from_clean(z, output, t, t_min)


def velocity_error(prediction: str, output, x, e, z, t, t_min: float):
  """Mean squared velocity error per token [b,n], float32.

  For clean prediction the target is clamped like the prediction, so that below `t_min` the error is
  ‖x̂-x‖²/t_min² and its minimum stays at the clean patch.
  """
  output = output.astype(jnp.float32)
  target = e - x if prediction == "velocity" else velocity_from_clean(z, x, t, t_min)
  return jnp.mean((predicted_velocity(prediction, output, z, t, t_min) - target) ** 2, -1)


@typed
def weighted_mean(error: Float[Array, "b n"], weight: Float[Array, "b n"]) -> Float[Array, ""]:
  """Σ w·error / Σ w over the global batch; entries of weight 0 touch neither value nor gradient."""
  return weighted_ratio(error, weight, weight)


@typed
def weighted_ratio(
  error: Float[Array, "b n"], weight: Float[Array, "b n"], expected: Float[Array, "b n"]
) -> Float[Array, ""]:
  """Σ w·error / Σ E[w]: as `weighted_mean`, divided by the weights that were to be expected.

  Args:
    error: of every slot.
    weight: of every slot, as its noise level was drawn.
    expected: mean of that weight over the noise levels that might have been drawn.
  """
  error = jnp.where(weight > 0, error, 0.0)
  return jnp.sum(weight * error) / jnp.maximum(jnp.sum(expected), 1e-12)


@typed
def mean_by_time(
  error: Float[Array, "b n"], weight: Float[Array, "b n"], t: Float[Array, "b n"], bins: int
) -> tuple[Float[Array, "{bins}"], Float[Array, "{bins}"]]:
  """Loss in equal bins of t: (mean of each bin, weight of each bin); NaN where the weight is 0.

  As in `weighted_mean`, entries of weight 0 are not looked at.
  """
  index = jnp.clip((t * bins).astype(jnp.int32), 0, bins - 1)
  inside = (index[..., None] == jnp.arange(bins)) * weight[..., None]
  total = jnp.sum(inside, (0, 1))
  summed = jnp.einsum("bnk,bn->k", inside, jnp.where(weight > 0, error, 0.0))
  return jnp.where(total > 0, summed / jnp.maximum(total, 1e-12), jnp.nan), total

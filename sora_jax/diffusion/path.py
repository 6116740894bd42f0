"""Straight-line path (rectified flow). t = 0 is data, t = 1 is noise.

    z_t = (1-t) x + t e;   v = dz/dt = e - x;   x = z - t v;   v = (z - x) / t
Source: Liu et al. 2022, arXiv:2209.03003, eq. 1 (their t is one minus ours).
"""

import jax.numpy as jnp

from sora_jax.typed import Array, Float, typed


@typed
def interpolate(
  x: Float[Array, "*b p"], e: Float[Array, "*b p"], t: Float[Array, "*b"]
) -> Float[Array, "*b p"]:
  """Moves every token to its own time on the path.

  Args:
    x: clean patches, scaled to unit variance.
    e: standard normal noise, one draw per token.
    t: noise level, dimensionless, in [0, 1]; 0 for tokens that are given.
  Returns:
    Noisy patches z in the dtype of `x`.
  """
  t = t[..., None].astype(x.dtype)
  return (1 - t) * x + t * e


@typed
def velocity_from_clean(
  z: Float[Array, "*b p"], x: Float[Array, "*b p"], t: Float[Array, "*b"], t_min: float
) -> Float[Array, "*b p"]:
  """Velocity at z of the path that ends in clean patches x: (z - x) / max(t, t_min).

  `t` is clamped before the division, so that given tokens (t = 0, z = x) have a finite velocity and
  finite gradients. Source: Li & He 2025 (JiT), arXiv:2511.13720, table 1 (b).
  """
  return (z - x) / jnp.maximum(t, t_min)[..., None]


@typed
def clean_from_velocity(
  z: Float[Array, "*b p"], v: Float[Array, "*b p"], t: Float[Array, "*b"]
) -> Float[Array, "*b p"]:
  """Clean patches that velocity v points at from z: z - t v."""
  return z - t[..., None] * v

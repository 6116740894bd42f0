"""Clipping of gradients by their own history."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from data_pipeline.errors import BadInput


class NormHistory(NamedTuple):
  """Exponential averages of the gradient's norm, float32 scalars; `count` steps are in them."""

  count: Any
  mean: Any
  square: Any


def clip_by_history(sigmas: float, decay: float) -> optax.GradientTransformation:
  """Scales a gradient down whose norm is above mean + `sigmas` standard deviations of the norms.

  The averages are exponential and corrected for their beginning, as Adam's (Kingma & Ba 2015,
  arXiv:1412.6980, sec. 3). What is clipped enters them clipped, so that a spike does not raise the
  limit for the next one. Nothing is clipped in the first 1/(1-decay) steps. A norm that is not
  finite leaves the averages and the gradient as they are: the run's checks stop at it.

  Args:
    sigmas: standard deviations above the mean that are let through; above 0.
    decay: of the averages, in (0, 1).
  Raises:
    BadInput: a number out of its range.
  """
  if not (sigmas > 0 and 0 < decay < 1):
    raise BadInput(
      f"optim: clip_sigmas={sigmas} must be 0 (off) or above, clip_decay={decay} in (0, 1)."
    )
  warm = round(1 / (1 - decay))

  def init(params) -> NormHistory:
    del params
    return NormHistory(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))

  def update(updates, state, params=None):
    del params
    norm = optax.tree.norm(updates).astype(jnp.float32)
    limit = jnp.where(state.count < warm, jnp.inf, _limit(state, sigmas, decay))
    finite = jnp.isfinite(norm)
    scale = jnp.where(finite & (norm > limit), limit / jnp.maximum(norm, 1e-30), 1.0)
    seen = norm * scale
    new = NormHistory(
      state.count + 1,
      decay * state.mean + (1 - decay) * seen,
      decay * state.square + (1 - decay) * seen**2,
    )
    state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

  return optax.GradientTransformation(init, update)


def _limit(state: NormHistory, sigmas: float, decay: float) -> jax.Array:
  """Mean + sigmas · standard deviation of the norms so far."""
  seen = 1 - decay ** jnp.maximum(state.count, 1).astype(jnp.float32)
  mean = state.mean / seen
  return mean + sigmas * jnp.sqrt(jnp.maximum(state.square / seen - mean**2, 0.0))

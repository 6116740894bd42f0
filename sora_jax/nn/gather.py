"""Gathers along a row whose backward is a matrix product, never an atomic scatter.

XLA's scatter-add on GPU is not deterministic; a product with one-hot rows is, and is fast when few
distinct rows are gathered.
"""

import jax
import jax.numpy as jnp

from sora_jax.typed import Array, Float, Int, typed


@jax.custom_vjp
def _take(values, index):
  taken = jnp.take_along_axis(values, jnp.maximum(index, 0)[..., None], axis=1)
  return jnp.where(index[..., None] >= 0, taken, 0)


def _take_forward(values, index):
  return _take(values, index), (index, values.shape[1])


def _take_backward(residual, gradient):
  index, size = residual
  one_hot = jax.nn.one_hot(index, size, dtype=gradient.dtype)  # a negative index gives zeros
  total = jnp.einsum(
    "bnu,bnd->bud",
    one_hot,
    gradient,
    preferred_element_type=jnp.float32,
    precision=jax.lax.Precision.HIGHEST,
  )
  return total.astype(gradient.dtype), None


_take.defvjp(_take_forward, _take_backward)


@typed
def gather_rows(values: Float[Array, "b u d"], index: Int[Array, "b n"]) -> Float[Array, "b n d"]:
  """values[b, index[b, n]] for every slot; an index of -1 gives zeros."""
  return _take(values, index)

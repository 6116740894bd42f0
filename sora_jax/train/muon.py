"""Muon: momentum whose update is orthogonalised, matrix by matrix (Jordan et al. 2024).

Source: https://kellerjordan.github.io/posts/muon; the scale is that of Liu et al. 2025,
arXiv:2502.16982, eq. 4.
"""

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sora_jax.parallel.rules import path_name

# Layers stacked for a scan carry a leading layer axis, which says nothing about a parameter's kind.
STACKED = re.compile(r"(^|.*/)blocks/(?!\d+/).*")
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5  # Jordan's, of the quintic and its use
RMS = 0.2  # of an update's entries: about that of AdamW's
# Kernels of more axes than layers, inputs and outputs: which axes are read, which are written.
# An axis of neither kind tells matrices apart: q, k and v; gate and value.
_AXES = {
  "attention/qkv/kernel": ((1,), (3, 4)),
  "attention/out/kernel": ((1, 2), (3,)),
  "mlp/into/kernel": ((1,), (3,)),
  "conv/kernel": ((1, 2, 3), (4,)),
}


class Axes(NamedTuple):
  """Axes of a leaf that are its matrices' rows and columns; all others tell matrices apart."""

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]


class MuonState(NamedTuple):
  """Steps done, momentum, and the iteration's coefficients (which checkpoints have always held)."""

  count: Any
  mu: Any
  ns_coeffs: Any


def matrix_axes(name: str, ndim: int) -> Axes | None:
  """The axes of a kernel of stacked blocks that are its matrices; None for AdamW's parameters.

  Input and output layers, embeddings and vectors stay with AdamW, as Jordan advises.

  Raises:
    ValueError: a kernel of more than three axes whose matrices nobody has told.
  """
  if not (STACKED.fullmatch(name) and name.endswith("/kernel")) or ndim < 3:
    return None
  if ndim == 3:
    return Axes((1,), (2,))  # the first is that of the layers
  found = next((axes for end, axes in _AXES.items() if name.endswith(end)), None)
  if found is None or sum(map(len, found)) >= ndim:
    raise ValueError(f"muon: nobody says which of the {ndim} axes of {name} are its matrices")
  return Axes(*found)


def orthogonalize(matrices: jax.Array, coefficients: jax.Array, eps: float) -> jax.Array:
  """Brings all singular values near 1 by Newton-Schulz iterations, without a decomposition.

  Args:
    matrices: [..., m, n], each on its own.
    coefficients: float32 [3] of X -> a X + b (X Xt) X + c (X Xt)^2 X.
    eps: added to a matrix's Frobenius norm, by which it is divided first.
  """
  a, b, c = coefficients
  tall = matrices.shape[-2] > matrices.shape[-1]
  x = jnp.swapaxes(matrices, -2, -1) if tall else matrices  # the smaller product of the two
  x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + eps)
  for _ in range(ITERATIONS):
    square = x @ jnp.swapaxes(x, -2, -1)
    x = a * x + (b * square + c * square @ square) @ x
  return jnp.swapaxes(x, -2, -1) if tall else x


def _update(leaf: jax.Array, axes: Axes, coefficients: jax.Array, eps: float) -> jax.Array:
  """The update of a leaf: each of its matrices orthogonalised, its entries' RMS about `RMS`."""
  apart = tuple(i for i in range(leaf.ndim) if i not in axes.inputs + axes.outputs)
  order = (*apart, *axes.inputs, *axes.outputs)
  moved = jnp.transpose(leaf, order)
  rows, columns = (math.prod(leaf.shape[i] for i in part) for part in axes)
  matrices = moved.reshape(*moved.shape[: len(apart)], rows, columns)
  update = RMS * math.sqrt(max(rows, columns)) * orthogonalize(matrices, coefficients, eps)
  return jnp.transpose(update.reshape(moved.shape), sorted(range(leaf.ndim), key=order.__getitem__))


def scale_by_muon(beta: float, eps: float, momentum_dtype) -> optax.GradientTransformation:
  """Nesterov momentum, orthogonalised, for trees whose every leaf has its `matrix_axes`.

  As Jordan publishes it: m <- beta m + (1-beta) g, and (1-beta) g + beta m is orthogonalised.
  """

  def init(params) -> MuonState:
    mu = optax.tree.zeros_like(params, dtype=momentum_dtype)
    return MuonState(jnp.zeros((), jnp.int32), mu, jnp.asarray(COEFFICIENTS, jnp.float32))

  def update(updates, state, params=None):
    del params
    mu = jax.tree.map(lambda m, g: beta * m.astype(g.dtype) + (1 - beta) * g, state.mu, updates)
    ahead = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, mu, updates)

    def one(path, leaf):
      axes = matrix_axes(path_name(path), leaf.ndim)
      assert axes is not None
      return _update(leaf, axes, state.ns_coeffs, eps)

    updates = jax.tree_util.tree_map_with_path(one, ahead)
    mu = optax.tree.cast(mu, momentum_dtype)
    return updates, MuonState(optax.safe_increment(state.count), mu, state.ns_coeffs)

  return optax.GradientTransformation(init, update)


def _label(params):
  def label(path, leaf):
    return "adam" if matrix_axes(path_name(path), leaf.ndim) is None else "muon"

  return jax.tree_util.tree_map_with_path(label, params)


def muon_and_adam(
  *, b1: float, b2: float, eps: float, momentum_dtype
) -> optax.GradientTransformation:
  """Muon on the blocks' kernels, Adam elsewhere; descents at a learning rate of 1."""
  # `identity`s: checkpoints have a place of a chain for each of them.
  matrices = (scale_by_muon(0.95, eps, momentum_dtype), optax.identity(), optax.identity())
  adam = optax.adamw(1.0, b1=b1, b2=b2, eps=eps, weight_decay=0.0, mu_dtype=momentum_dtype)
  return optax.partition({"muon": optax.chain(*matrices, optax.scale(-1.0)), "adam": adam}, _label)

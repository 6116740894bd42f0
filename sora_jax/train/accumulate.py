"""A step's gradients in microbatches, one after the other: less memory, the same sums.

A loss is Σ w·error / W, where the weights and their sum, or its expectation, W do not depend on the
parameters. So microbatch i counts W_i / Σ W: the mean over all noisy patches of the step, not a
mean of means.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sora_jax.parallel.place import RANKS, constrain

WEIGHT = "weight"  # among a loss's metrics: what it was divided by


def make_gradient(loss_fn: Callable, merge: Callable, *, steps: int, ranks: int) -> Callable:
  """`(params, frozen, batch) -> ((loss, metrics), gradients)` of a batch in `steps` microbatches.

  Args:
    loss_fn: `(params, frozen, batch) -> (loss, metrics)`, with `WEIGHT` among the metrics.
    merge: `(metrics, weights) -> metrics`: those of the whole batch, of arrays that lead with an
      axis of the microbatches; `weights` [steps] are their `WEIGHT`.
    steps: microbatches; 1 leaves the batch whole.
    ranks: shares that the mesh cuts the rows into. Each has rows of every microbatch.
  """
  one = jax.value_and_grad(loss_fn, has_aux=True)

  def whole(params, frozen, batch):
    (loss, metrics), gradients = one(params, frozen, batch)
    return (loss, {name: value for name, value in metrics.items() if name != WEIGHT}), gradients

  def summed(params, frozen, batch):
    def add(sums, part):
      (loss, metrics), gradients = one(params, frozen, part)
      weight = metrics.pop(WEIGHT)
      sums = jax.tree.map(lambda total, g: total + weight * g.astype(jnp.float32), sums, gradients)
      return sums, (loss, weight, metrics)

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    parts = jax.tree.map(lambda x: _split(x, steps, ranks), batch)
    sums, (losses, weights, metrics) = jax.lax.scan(add, zeros, parts)
    total = jnp.maximum(jnp.sum(weights), 1e-12)
    loss = jnp.sum(losses * weights) / total
    return (loss, merge(metrics, weights)), jax.tree.map(lambda g: g / total, sums)

  return whole if steps == 1 else summed


def _split(x: jax.Array, steps: int, ranks: int) -> jax.Array:
  """[b,...] to [steps, b/steps, ...]: every rank gives each microbatch rows that it holds."""
  rows = x.shape[0] // (steps * ranks)
  x = jnp.moveaxis(x.reshape(ranks, steps, rows, *x.shape[1:]), 1, 0)
  rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 3)  # slots stay where they are
  return constrain(
    x.reshape(steps, ranks * rows, *x.shape[3:]), PartitionSpec(None, RANKS, *rest)
  )


def weighted_average(values: Any, weights: jax.Array) -> jax.Array:
  """Mean over the leading axis of the microbatches, float32."""
  return jnp.tensordot(weights, jnp.asarray(values, jnp.float32), 1) / jnp.sum(weights)

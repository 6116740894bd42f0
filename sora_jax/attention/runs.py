"""Where each slot's segment begins and ends, and what blocks of slots have to do with each other.

A segment is contiguous in its row, so that the range [start, end) of a slot says all that attention
has to know: kernels loop over the blocks that the ranges touch and never read the others.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sora_jax.typed import Array, Int, typed


class Runs(NamedTuple):
  """For each slot the slots that it sees: start <= slot < end, int32 [b,n] each."""

  start: Array
  end: Array


@typed
def runs(segment: Int[Array, "b n"]) -> Runs:
  """Runs of equal ids. A padding slot (id 0) is a run by itself: no kernel spends blocks on it."""
  n = segment.shape[1]
  slot = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), segment.shape)
  begins = (segment == 0) | (slot == 0) | (segment != jnp.roll(segment, 1, axis=1))
  start = jax.lax.associative_scan(jnp.maximum, jnp.where(begins, slot, 0), axis=1)
  # The end is where the next run begins: look ahead from the right.
  ahead = jnp.concatenate(
    [jnp.where(begins, slot, n)[:, 1:], jnp.full_like(slot[:, :1], n)], axis=1
  )
  return Runs(start, jax.lax.associative_scan(jnp.minimum, ahead, axis=1, reverse=True))


def block_ranges(seen: Runs, block: int, other: int) -> tuple[jax.Array, jax.Array]:
  """First and one past the last block, of `other` slots each, that a block of slots sees.

  Args:
    seen: of a row whose slots are a multiple of both sizes; may have leading axes.
    block, other: slots in a block that looks, and in one that is looked at.
  Returns:
    (first, end), int32 [..., n/block]. What looks and what is looked at may change roles: who sees
    a slot is seen by it.
  """
  shape = (*seen.start.shape[:-1], -1, block)
  first = jnp.min(seen.start.reshape(shape), axis=-1) // other
  return first, -(-jnp.max(seen.end.reshape(shape), axis=-1) // other)


def choose_block(slots: int, sizes: tuple[int, ...]) -> int:
  """The largest of some block sizes whose padding is at most an eighth of the slots."""
  fitting = [size for size in sizes if -slots % size <= slots // 8]
  return max(fitting, default=min(sizes))


def pad_slots(x: jax.Array, block: int) -> jax.Array:
  """Zeros behind the slots (axis 1) up to a multiple of a block; of segment ids, padding."""
  missing = -x.shape[1] % block
  if not missing:
    return x
  return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))

"""Segment attention in plain XLA, block by block: memory grows with a row, not with its square.

The loops are those of the `triton` kernel: each block of queries goes over the blocks of keys that
its segments reach, and no others. On a CPU a block's scores stay in the cache.
Source: Dao 2023, "FlashAttention-2", arXiv:2307.08691, alg. 1 and 2.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sora_jax.attention.runs import Runs, block_ranges, pad_slots, runs
from sora_jax.attention.saved import ATTENDED
from sora_jax.attention.xla import xla_segment_attention
from sora_jax.typed import Array, Float, Int, typed

BLOCK = 512  # smaller ones leave out more, and their products are slower: 1.5 times at 256
_MASKED = -1e30  # finite: what a slot gathered before its own segment is scaled to exactly 0


@typed
def blocked_segment_attention(
  q: Float[Array, "b n heads head_dim"],
  k: Float[Array, "b n heads head_dim"],
  v: Float[Array, "b n heads head_dim"],
  segment: Int[Array, "b n"],
) -> Float[Array, "b n heads head_dim"]:
  """As `xla_segment_attention`, except that a padding slot sees itself alone.

  A row of one block is computed there.
  """
  slots = q.shape[1]
  if slots <= BLOCK:
    return xla_segment_attention(q, k, v, segment)
  seen = runs(pad_slots(segment, BLOCK))
  q, k, v = (jnp.swapaxes(pad_slots(x, BLOCK), 1, 2) for x in (q, k, v))  # [b,heads,n,head_dim]
  out: Any = _attend(q, k, v, seen)
  return jnp.swapaxes(out, 1, 2)[:, :slots]


@jax.custom_vjp
def _attend(q, k, v, seen: Runs):
  return _attend_and_save(q, k, v, seen)[0]


def _attend_and_save(q, k, v, seen: Runs):
  out, lse = jax.lax.map(_attend_row, (q, k, v, seen))
  out, lse = checkpoint_name(out, ATTENDED), checkpoint_name(lse, ATTENDED)
  return out, (q, k, v, seen, out, lse)


def _gradients(saved, d_out):
  return *jax.lax.map(_row_gradients, (*saved, d_out)), None


_attend.defvjp(_attend_and_save, _gradients)

_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _cut(x, block, axis=0):
  """Slots of a block."""
  return jax.lax.dynamic_slice_in_dim(x, block * BLOCK, BLOCK, axis)


def _join(blocks):
  """[blocks,heads,BLOCK,...] to [heads,n,...]."""
  blocks = jnp.moveaxis(blocks, 0, 1)
  return blocks.reshape(blocks.shape[0], -1, *blocks.shape[3:])


def _scores(q, k, seen: Runs, block):
  """Scores [heads,BLOCK,BLOCK] of a block of keys, float32; q is of the slots of `seen`."""
  slot = block * BLOCK + jnp.arange(BLOCK)
  mask = (seen.start[:, None] <= slot) & (slot < seen.end[:, None])
  return jnp.where(mask, _dot("hqd,hkd->hqk", q, k) * q.shape[-1] ** -0.5, _MASKED)


def _attend_row(row):
  """Output and log-sum-exp of a row [heads,n,head_dim]."""
  q, k, v, seen = row
  first, end = block_ranges(seen, BLOCK, BLOCK)

  def attend_block(i):
    here, mine = _cut(q, i, 1), Runs(*(_cut(x, i) for x in seen))

    def go_on(j, carry):
      out, highest, total = carry
      values = _cut(v, j, 1)
      scores = _scores(here, _cut(k, j, 1), mine, j)
      higher = jnp.maximum(highest, jnp.max(scores, axis=-1))
      weights, before = jnp.exp(scores - higher[..., None]), jnp.exp(highest - higher)
      out = out * before[..., None] + _dot("hqk,hkd->hqd", weights.astype(v.dtype), values)
      return out, higher, total * before + jnp.sum(weights, axis=-1)

    zeros = jnp.zeros(here.shape[:2], jnp.float32)
    begin = jnp.zeros(here.shape, jnp.float32), zeros + _MASKED, zeros
    out, highest, total = jax.lax.fori_loop(first[i], end[i], go_on, begin)
    return (out / total[..., None]).astype(q.dtype), highest + jnp.log(total)

  return tuple(map(_join, jax.lax.map(attend_block, jnp.arange(len(first)))))


def _row_gradients(row):
  """Gradients of q, k and v of a row: for each block of keys, over the queries that see it."""
  q, k, v, seen, out, lse, d_out = row
  first, end = block_ranges(seen, BLOCK, BLOCK)
  # Σ_k p·(∂L/∂p): the part of the softmax's gradient that all scores of a query share.
  shared = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
  scale = q.shape[-1] ** -0.5

  def of_block(dq, j):
    keys, values = _cut(k, j, 1), _cut(v, j, 1)

    def go_on(i, carry):
      dq, dk, dv = carry
      here, grads, mine = _cut(q, i, 1), _cut(d_out, i, 1), Runs(*(_cut(x, i) for x in seen))
      weights = jnp.exp(_scores(here, keys, mine, j) - _cut(lse, i, 1)[..., None])
      d_scores = _dot("hqd,hkd->hqk", grads, values) - _cut(shared, i, 1)[..., None]
      d_scores = (weights * d_scores * scale).astype(q.dtype)
      dv += _dot("hqk,hqd->hkd", weights.astype(q.dtype), grads)
      dk += _dot("hqk,hqd->hkd", d_scores, here)
      more = _cut(dq, i, 1) + _dot("hqk,hkd->hqd", d_scores, keys)
      return jax.lax.dynamic_update_slice_in_dim(dq, more, i * BLOCK, 1), dk, dv

    zeros = jnp.zeros(keys.shape, jnp.float32)
    dq, dk, dv = jax.lax.fori_loop(first[j], end[j], go_on, (dq, zeros, zeros))
    return dq, (dk.astype(k.dtype), dv.astype(v.dtype))

  dq, (dk, dv) = jax.lax.scan(of_block, jnp.zeros(q.shape, jnp.float32), jnp.arange(len(first)))
  return dq.astype(q.dtype), _join(dk), _join(dv)

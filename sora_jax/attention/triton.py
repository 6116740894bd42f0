"""Segment attention on GPUs: flash attention in Pallas that goes over a segment's blocks alone.

Each block of queries loops from the first to the last block of keys that its segments reach; the
gradient of keys and values does the same from the other side. Nothing across segments is computed
beyond a block's edge, whatever else is in the row, and a row may have any length.
Source: Dao 2023, "FlashAttention-2", arXiv:2307.08691, alg. 1 and 2.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from sora_jax.attention.runs import Runs, pad_slots, runs
from sora_jax.attention.saved import ATTENDED
from sora_jax.typed import Array, Float, Int, typed

_MASKED = -1e30  # finite: what a slot gathered before its own segment is scaled to exactly 0
_LOG2E = math.log2(math.e)  # scores in base 2: exp2 is an instruction


class Tiling(NamedTuple):
  """How a kernel is cut: slots of the block that stays, and of those that it goes over."""

  stays: int
  passes: int
  stages: int  # blocks in flight


MULTIPLE = 128  # of the slots


def _tilings(x: jax.Array) -> tuple[Tiling, Tiling]:
  """Of the forward pass and of the gradients: what fits a GPU's shared memory (compiled for H200
  and A100)."""
  if x.shape[-1] * x.dtype.itemsize <= 256:
    return Tiling(128, 64, 3), Tiling(64, 64, 2)
  return Tiling(64, 32, 2), Tiling(32, 32, 2)


@typed
def triton_segment_attention(
  q: Float[Array, "b n heads head_dim"],
  k: Float[Array, "b n heads head_dim"],
  v: Float[Array, "b n heads head_dim"],
  segment: Int[Array, "b n"],
  *,
  interpret: bool = False,
) -> Float[Array, "b n heads head_dim"]:
  """As `xla_segment_attention`, except that a padding slot sees itself alone.

  Args:
    interpret: runs the kernel on any platform, slowly.
  """
  slots, head_dim = q.shape[1], q.shape[-1]
  widen = [(0, 0)] * 3 + [(0, pl.next_power_of_2(head_dim) - head_dim)]  # tiles are powers of two
  q, k, v = (jnp.pad(pad_slots(x, MULTIPLE), widen) for x in (q, k, v))
  seen = runs(pad_slots(segment, MULTIPLE))
  out: Any = _attend(q, k, v, seen, head_dim**-0.5, interpret)
  return out[:, :slots, :, :head_dim]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q, k, v, seen: Runs, scale: float, interpret: bool) -> Any:
  return _attend_and_save(q, k, v, seen, scale, interpret)[0]


def _attend_and_save(q, k, v, seen: Runs, scale: float, interpret: bool):
  out, lse = _call(
    _forward_kernel, _tilings(q)[0], interpret, scale,
    staying=(q, *seen), passing=(k, v),
    out=(jax.ShapeDtypeStruct(q.shape, q.dtype), _per_head(q)),
  )  # fmt: skip
  out, lse = checkpoint_name(out, ATTENDED), checkpoint_name(lse, ATTENDED)
  return out, (q, k, v, seen, out, lse)


def _gradients(scale: float, interpret: bool, saved, d_out):
  q, k, v, seen, out, lse = saved
  # Σ_k p·(∂L/∂p): the part of the softmax's gradient that all scores of a query share.
  shared = jnp.einsum("bnhd,bnhd->bhn", out.astype(jnp.float32), d_out.astype(jnp.float32))
  tiling = _tilings(q)[1]
  (dq,) = _call(
    _query_gradient_kernel, tiling, interpret, scale,
    staying=(q, *seen, d_out, lse, shared), passing=(k, v),
    out=(jax.ShapeDtypeStruct(q.shape, q.dtype),),
  )  # fmt: skip
  dk, dv = _call(
    _key_gradient_kernel, tiling, interpret, scale,
    staying=(k, *seen, v), passing=(q, d_out, lse, shared),
    out=(jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)),
  )  # fmt: skip
  return dq, dk, dv, None


_attend.defvjp(_attend_and_save, _gradients)


def _per_head(q):
  """A float32 number for each slot and head, [b,heads,n]."""
  return jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32)


def _call(kernel, tiling: Tiling, interpret: bool, scale: float, *, staying, passing, out):
  """Runs a kernel for each block that stays, row and head; passing arrays are there as a whole."""
  b, n, heads, head_dim = staying[0].shape

  def spec(x, slots, index):
    if x.ndim == 4:  # [b,n,heads,head_dim]
      return pl.BlockSpec((None, slots, None, head_dim), lambda i, r, h: (r, index(i), h, 0))
    if x.ndim == 3:  # [b,heads,n]
      return pl.BlockSpec((None, None, slots), lambda i, r, h: (r, h, index(i)))
    return pl.BlockSpec((None, slots), lambda i, r, h: (r, index(i)))  # [b,n]

  staying_spec = lambda x: spec(x, tiling.stays, lambda i: i)  # noqa: E731
  return pl.pallas_call(
    functools.partial(kernel, block=tiling.passes, scale=scale),
    grid=(n // tiling.stays, b, heads),
    in_specs=[*map(staying_spec, staying), *(spec(x, n, lambda i: 0) for x in passing)],
    out_specs=[staying_spec(x) for x in out],
    out_shape=out,
    interpret=interpret,
    compiler_params=triton.CompilerParams(
      num_warps=4 if head_dim <= 64 else 8, num_stages=tiling.stages
    ),
    name=kernel.__name__.strip("_"),
  )(*staying, *passing)


def _dot(a, b):
  """Matrix product, accumulated in float32; of float32 arrays, exact to float32."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return triton.dot(a, b, precision=precision)


def _go_over(start, end, block: int, body, carry):
  """`body(slots of the block, mask, carry)` of each block that the ranges reach.

  The mask [len(start), block] is true where the one sees the other.
  """
  first, last = jnp.min(start) // block, pl.cdiv(jnp.max(end), block)

  def step(i, carry):
    slot = i * block + jnp.arange(block)[None]
    mask = (start[:, None] <= slot) & (slot < end[:, None])
    return body(pl.ds(i * block, block), mask, carry)

  return jax.lax.fori_loop(first, last, step, carry)


def _forward_kernel(q_ref, start_ref, end_ref, k_ref, v_ref, out_ref, lse_ref, *, block, scale):
  q = q_ref[...]

  def body(slots, mask, carry):
    out, highest, total = carry
    v = v_ref[slots, :]
    scores = jnp.where(mask, _dot(q, k_ref[slots, :].T) * (scale * _LOG2E), _MASKED)
    higher = jnp.maximum(highest, jnp.max(scores, axis=1))
    weights, before = jnp.exp2(scores - higher[:, None]), jnp.exp2(highest - higher)
    out = out * before[:, None] + _dot(weights.astype(v.dtype), v)
    return out, higher, total * before + jnp.sum(weights, axis=1)

  zeros = jnp.zeros(q.shape[0], jnp.float32)
  start = jnp.zeros(q.shape, jnp.float32), zeros + _MASKED, zeros
  out, highest, total = _go_over(start_ref[...], end_ref[...], block, body, start)
  out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
  lse_ref[...] = highest + jnp.log2(total)


def _query_gradient_kernel(
  q_ref, start_ref, end_ref, d_out_ref, lse_ref, shared_ref, k_ref, v_ref, dq_ref, *, block, scale
):
  q, d_out = q_ref[...], d_out_ref[...]
  lse, shared = lse_ref[...][:, None], shared_ref[...][:, None]

  def body(slots, mask, dq):
    k = k_ref[slots, :]
    scores = jnp.where(mask, _dot(q, k.T) * (scale * _LOG2E), _MASKED)
    d_scores = jnp.exp2(scores - lse) * (_dot(d_out, v_ref[slots, :].T) - shared)
    return dq + _dot(d_scores.astype(k.dtype), k)

  dq = _go_over(start_ref[...], end_ref[...], block, body, jnp.zeros(q.shape, jnp.float32))
  dq_ref[...] = (dq * scale).astype(dq_ref.dtype)


def _key_gradient_kernel(
  k_ref, start_ref, end_ref, v_ref, q_ref, d_out_ref, lse_ref, shared_ref, dk_ref, dv_ref,
  *, block, scale,
):  # fmt: skip
  k, v = k_ref[...], v_ref[...]

  def body(slots, mask, carry):
    # Who sees a key is seen by it: the key's own range holds for the queries. All is transposed.
    dk, dv = carry
    q, d_out = q_ref[slots, :], d_out_ref[slots, :]
    scores = jnp.where(mask, _dot(k, q.T) * (scale * _LOG2E), _MASKED)
    weights = jnp.exp2(scores - lse_ref[slots][None])
    d_scores = weights * (_dot(v, d_out.T) - shared_ref[slots][None])
    dv += _dot(weights.astype(d_out.dtype), d_out)
    return dk + _dot(d_scores.astype(q.dtype), q), dv

  zeros = jnp.zeros(k.shape, jnp.float32)
  dk, dv = _go_over(start_ref[...], end_ref[...], block, body, (zeros, zeros))
  dk_ref[...] = (dk * scale).astype(dk_ref.dtype)
  dv_ref[...] = dv.astype(dv_ref.dtype)

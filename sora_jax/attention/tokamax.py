"""Segment attention on Hopper and Blackwell GPUs by tokamax's Mosaic kernels.

The forward pass leaves out blocks across segments; on Hopper the backward pass masks them but goes
over all of them (tokamax 0.0.12 and 0.0.17). So it is for rows of one long segment; the project's
own `triton` backend leaves them out in both.
"""

import functools
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from tokamax._src.ops.attention.base import Mask
from tokamax._src.ops.attention.pallas_mosaic_gpu import PallasMosaicGpuFlashAttention

from sora_jax.attention.runs import Runs, runs
from sora_jax.attention.saved import ATTENDED
from sora_jax.typed import Array, Float, Int, typed


@typed
def tokamax_segment_attention(
  q: Float[Array, "b n heads head_dim"],
  k: Float[Array, "b n heads head_dim"],
  v: Float[Array, "b n heads head_dim"],
  segment: Int[Array, "b n"],
  *,
  op: Any = None,
) -> Float[Array, "b n heads head_dim"]:
  """As `xla_segment_attention`, except that a padding slot sees itself alone.

  Args:
    q, k, v: bfloat16 or float16.
    op: of tokamax, with a `vjp`; None is the Mosaic GPU one.
  """
  return _attend(q, k, v, runs(segment), op or PallasMosaicGpuFlashAttention())


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, seen: Runs, op):
  return _attend_and_save(q, k, v, seen, op)[0]


def _settings(q, seen: Runs) -> dict:
  start, end = (x[:, None] for x in seen)  # [b,1,n]: alike for all heads
  return dict(mask=Mask(k_start=start, k_end=end), logits_scale=q.shape[-1] ** -0.5)


def _attend_and_save(q, k, v, seen: Runs, op):
  out, statistics = op(q, k, v, **_settings(q, seen), return_residuals=True)
  # tokamax would keep them under no name, and a remat policy compute them again.
  out, statistics = (
    jax.tree.map(lambda x: checkpoint_name(x, ATTENDED), part) for part in (out, statistics)
  )
  return out, (q, k, v, seen, out, statistics)


def _gradients(op, saved, d_out):
  q, k, v, seen, out, statistics = saved
  bound = op.bind(q, k, v, **_settings(q, seen))
  rest = {name: value for name, value in bound.kwargs.items() if name != "return_residuals"}
  found = op.vjp(statistics, out, d_out, *bound.args, **rest)
  return *(found[name].astype(x.dtype) for name, x in (("q", q), ("k", k), ("v", v))), None


_attend.defvjp(_attend_and_save, _gradients)

"""Segment attention on TPUs: JAX's splash kernel, told which blocks to leave out.

The kernel ANDs segment ids inside of the blocks that it computes, but computes them all. It also
takes a `MaskInfo`, made for static masks, that says which blocks to run and which to fetch next:
made here from the segments of each row, under jit, it leaves out all blocks across segments.
Source: Dao et al. 2022, arXiv:2205.14135 (blocks); jax.experimental.pallas.ops.tpu.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

from data_pipeline.errors import BadInput
from sora_jax.attention.runs import Runs, block_ranges, choose_block, pad_slots, runs
from sora_jax.attention.saved import ATTENDED
from sora_jax.typed import Array, Float, Int, typed

BLOCKS = (1024, 512, 256, 128)
# The tables of blocks lie in a TPU's scalar memory, 1 MiB of a core: 3 bytes a pair of blocks.
# Longer rows look at blocks of a quarter more, about what the vector memory holds.
LONG_ROW = 512 * max(BLOCKS)
LONG_BLOCKS = (1024, 1280)
MAX_SLOTS = 128 * math.lcm(*LONG_BLOCKS)


def check_slots(slots: int) -> None:
  """Raises BadInput for rows that the kernel's tables have no room for."""
  if slots > MAX_SLOTS:
    raise BadInput(
      f"attention: data.slots={slots} is above the {MAX_SLOTS} of splash attention, whose tables of"
      " blocks fill a TPU's scalar memory. Use shorter rows, or a larger patch."
    )


@typed
def splash_segment_attention(
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
  Raises:
    BadInput: more than `MAX_SLOTS` slots.
  """
  slots = q.shape[1]
  check_slots(slots)
  block = choose_block(slots, BLOCKS)
  blocks = LONG_BLOCKS if slots > LONG_ROW else (block, block)
  multiple = math.lcm(*blocks)
  q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
  q, k, v = (jnp.swapaxes(pad_slots(x, multiple), 1, 2) for x in (q, k, v))  # [b,heads,n,head_dim]
  seen = runs(pad_slots(segment, multiple))

  def row(args):
    q, k, v, seen = args
    return _attend_row(q, k, v, seen, blocks=blocks, interpret=interpret)

  # One after the other: the tables of blocks are the kernel's scalars, which have no batch axis.
  out = jax.lax.map(row, (q, k, v, seen))
  return jnp.swapaxes(out, 1, 2)[:, :slots]


def _attend_row(q, k, v, seen: Runs, *, blocks: tuple[int, int], interpret: bool):
  """One row [heads,n,head_dim], q scaled; blocks of q and of kv."""
  block_q, block_kv = blocks
  compute = block_kv // 2 if block_kv > 512 else block_kv
  slots = len(seen.start)
  forward = _tables(*_pairs(*block_ranges(seen, block_q, block_kv), slots // block_kv))
  # The gradient of k and v goes over blocks of q inside, of kv outside; its tables do not turn.
  backward = _pairs(*block_ranges(seen, block_kv, block_q), slots // block_q)
  backward = _tables(*(jnp.swapaxes(x, 0, 1) for x in backward))
  return kernel._splash_attention(  # the public maker takes static masks alone
    forward,
    forward,
    backward,
    q,
    k,
    v,
    kernel.SegmentIds(seen.start, seen.start),
    is_mqa=False,
    block_sizes=kernel.BlockSizes(
      block_q=block_q,
      block_kv=block_kv,
      block_kv_compute=compute,
      block_q_dq=block_q,
      block_kv_dq=block_kv,
      block_q_dkv=block_q,
      block_kv_dkv=block_kv,
      block_kv_dkv_compute=compute,
    ),
    save_residuals=False,
    mask_value=kernel.DEFAULT_MASK_VALUE,
    attn_logits_soft_cap=None,
    residual_checkpoint_name=ATTENDED,
    mask_function=None,
    interpret=interpret,
  )


def _pairs(first: jax.Array, end: jax.Array, others: int) -> tuple[jax.Array, jax.Array]:
  """Whether a block runs with each of `others` blocks, and which of these to have at hand then.

  A pair outside the range asks for the nearest block inside: what is there already stays, what
  comes next is fetched early.
  """
  other = jnp.arange(others, dtype=jnp.int32)[None]
  first, end = first[:, None], end[:, None]
  small = jnp.int8 if others <= 128 else jnp.int16
  return (first <= other) & (other < end), jnp.clip(other, first, end - 1).astype(small)


def _tables(running: jax.Array, at_hand: jax.Array) -> MaskInfo:
  """What the kernel reads, of arrays [blocks of q, blocks of kv]."""
  tables: Any = dict(
    data_next=at_hand[None], block_mask=jnp.where(running, 2, 0).astype(jnp.int8)[None]
  )  # 2: no mask of its own, only the ids
  return MaskInfo(**tables, mask_next=None, partial_mask_blocks=None, q_sequence=None)

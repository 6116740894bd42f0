"""Model FLOPs against XLA's own count, and packed against alone."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.tokens import Segment, count_rows, pack_row, stack_rows
from sora_jax.attention.registry import segment_attention
from sora_jax.models.dit import DiT
from sora_jax.nn.block import mlp_hidden
from sora_jax.train.flops import count_packed, dit_forward_flops, forward_flops

WIDTH, PATCH_DIM, STATES = 256, 16, 48


def segment(patches, caption):
  return Segment(
    patches=np.zeros((patches, PATCH_DIM), np.float32),
    shape=(1, 1, patches),
    patch=(1, 1, 1),
    fps=8.0,
    time_factor=4,
    text_ids=np.ones(caption, np.int32),
    text_states=np.zeros((caption, STATES), np.float32),
  )


def batch_of(segments, slots, caption_slots):
  row = pack_row(segments, slots=slots, caption_slots=caption_slots, segments_per_row=len(segments))
  return stack_rows([row])


def settings(mlp, pooled, depth):
  hidden = mlp_hidden(WIDTH, 4.0, mlp)
  return dict(
    width=WIDTH,
    depth=depth,
    hidden=hidden,
    gated=mlp == "swiglu",
    patch_dim=PATCH_DIM,
    state_width=STATES,
    pooled=pooled,
  )


@pytest.mark.parametrize("mlp, pooled", [("swiglu", True), ("gelu", False)])
def test_one_full_row_costs_what_xla_counts(mlp, pooled):
  """XLA also counts what is not a matrix product, and products with one-hot rows: a little more."""
  batch = batch_of([segment(256 - 40, 40)], 256, 40)
  batch = {k: jnp.asarray(v) for k, v in batch.items() if k != "segment_record"}
  model = DiT(
    patch_dim=PATCH_DIM,
    width=WIDTH,
    depth=1,  # a scanned body is counted once
    heads=4,
    mlp=mlp,
    mlp_ratio=4.0,
    state_width=STATES,
    vocabulary=0,
    pooled_caption=pooled,
    rotary_seconds=(2.0, 128.0),
    dtype="float32",
    param_dtype="float32",
    zero_init=True,
    rngs=nnx.Rngs(0),
  )
  structure, params = nnx.split(model)
  attend = segment_attention("xla")

  def forward(params, z, t):
    return nnx.merge(structure, params)(z, t, batch, attend=attend, remat="none")

  counted = forward_flops(forward, params, jnp.zeros((1, 256, PATCH_DIM)), jnp.zeros((1, 2)))
  ours = dit_forward_flops(216, 40, 256.0**2, **settings(mlp, pooled, 1))
  assert 0.9 * counted < ours < counted


def test_packed_counts_its_segments_alone_and_no_padding():
  count = lambda segments, slots: count_packed(  # noqa: E731
    count_rows(batch_of(segments, slots, slots)), **settings("swiglu", True, 3)
  )
  parts = [segment(20, 5), segment(9, 3)]
  packed, alone = count(parts, 64), [count([part], 128) for part in parts]
  assert packed.tokens == 37 and packed.clips == 2
  assert packed.flops == pytest.approx(sum(one.flops for one in alone), rel=1e-12)
  square = 2 * 2 * 3 * WIDTH * ((25 + 12) ** 2 - 25**2 - 12**2) * 3  # what mixing them would add
  together = count([segment(29, 8)], 64)
  assert together.flops - packed.flops == pytest.approx(square, rel=1e-9)

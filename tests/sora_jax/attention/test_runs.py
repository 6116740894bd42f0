"""Ranges of slots and blocks against counting pair by pair."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.attention.runs import block_ranges, choose_block, pad_slots, runs
from sora_jax.attention.splash import _pairs

LENGTHS = st.lists(st.integers(1, 40), max_size=8)


SLOTS = 96  # one shape: JAX compiles for each


def row(lengths):
  ids = np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)[:SLOTS]
  return np.pad(ids, (0, SLOTS - len(ids)))


def sees(ids):
  """[n,n]: who sees whom; a padding slot sees itself."""
  return (ids[:, None] == ids) & ((ids[:, None] > 0) | np.eye(len(ids), dtype=bool))


@settings(deadline=None)
@given(LENGTHS)
def test_a_slot_sees_its_segment(lengths):
  ids = row(lengths)
  start, end = (np.asarray(x)[0] for x in runs(jnp.asarray(ids[None])))
  slot = np.arange(len(ids))
  assert ((start[:, None] <= slot) & (slot < end[:, None]) == sees(ids)).all()


@settings(deadline=None)
@given(LENGTHS, st.sampled_from([(8, 8), (8, 16), (16, 8)]))
def test_the_blocks_that_run_are_those_with_a_pair_that_sees_itself(lengths, blocks):
  block, other = blocks
  ids = row(lengths)
  first, end = (x[0] for x in block_ranges(runs(jnp.asarray(ids[None])), block, other))
  running, at_hand = _pairs(first, end, len(ids) // other)
  pairs = sees(ids).reshape(len(ids) // block, block, len(ids) // other, other)
  assert (np.asarray(running) == pairs.any(axis=(1, 3))).all()
  index = np.arange(len(ids) // other)
  assert (np.asarray(at_hand)[running] == np.broadcast_to(index, running.shape)[running]).all()
  assert np.take_along_axis(np.asarray(running), np.asarray(at_hand, int), 1).all()


def test_slots_are_padded_to_whole_blocks():
  assert pad_slots(jnp.ones((2, 5, 3)), 4).shape == (2, 8, 3)
  assert pad_slots(jnp.ones((2, 5), int), 4).tolist() == [[1] * 5 + [0] * 3] * 2
  assert pad_slots(jnp.ones((2, 8)), 4).shape == (2, 8)


@pytest.mark.parametrize(
  "slots, block", [(100, 128), (1024, 1024), (1100, 128), (9000, 1024), (4096, 1024), (700, 256)]
)
def test_the_block_is_large_and_the_padding_small(slots, block):
  assert choose_block(slots, (1024, 512, 256, 128)) == block

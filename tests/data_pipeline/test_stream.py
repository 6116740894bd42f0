"""The stream of draws: each dataset once a pass, shares by weight, cut into windows anywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import hashing
from data_pipeline.errors import BadInput
from data_pipeline.stream import Mixture, Pool

LIGHT = settings(max_examples=60, deadline=None)
WEIGHTS = st.lists(st.sampled_from([0.05, 0.3, 1.0, 1.5, 7.0]), min_size=1, max_size=4)


def mixture(sizes, weights=None, **more):
  weights = weights or [1.0] * len(sizes)
  pools = [Pool(columns={}, rows=range(n), weight=w) for n, w in zip(sizes, weights, strict=True)]
  return Mixture(pools, **{"seed": 3, **more})


def drawn(mixed, start, stop):
  """(pool, record) of the draws, a pool's own in order."""
  blocks = mixed.blocks(start, stop)
  return [(block.pool, record) for block in blocks for record in block.record.tolist()]


@LIGHT
@given(WEIGHTS, st.integers(0, 5000), st.integers(0, 500))
def test_shares_follow_the_weights_within_one_draw_each(weights, position, more):
  mixed = mixture([10] * len(weights), weights)
  counts, later = mixed.counts(position), mixed.counts(position + more)
  assert sum(counts) == position and sum(later) == position + more
  assert all(a <= b for a, b in zip(counts, later, strict=True))
  exact = position * np.array(weights) / sum(weights)
  assert np.all(abs(counts - exact) < len(weights)), (counts, exact)


@LIGHT
@given(
  st.lists(st.integers(1, 40), min_size=1, max_size=3),
  st.lists(st.integers(1, 60), min_size=1, max_size=8),
  st.data(),
)
def test_every_pass_shows_each_clip_once_however_the_stream_is_cut(sizes, lengths, data):
  weights = data.draw(st.lists(st.sampled_from([0.2, 1.0, 3.0]), min_size=3, max_size=3))
  mixed = mixture(sizes, weights[: len(sizes)])
  edges = np.concatenate([[0], np.cumsum(lengths)]).tolist()
  parts = [drawn(mixed, a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
  for pool, size in enumerate(sizes):
    records = [record for part in parts for number, record in part if number == pool]
    whole = [record for number, record in drawn(mixed, 0, edges[-1]) if number == pool]
    assert records == whole
    for start in range(0, len(records), size):
      turn = records[start : start + size]
      assert len(set(turn)) == len(turn)
      assert len(turn) < size or sorted(turn) == list(range(size))


def test_passes_seeds_stages_and_pools_have_orders_of_their_own():
  mixed = mixture([50, 50])
  orders = [
    tuple(turn.tolist()) for block in mixed.blocks(0, 200) for turn in block.record.reshape(-1, 50)
  ]
  orders += [tuple(b.record.tolist()) for b in mixture([50], seed=4).blocks(0, 50)]
  orders += [tuple(b.record.tolist()) for b in mixture([50], stage=1).blocks(0, 50)]
  assert len(orders) == len(set(orders)) == 6


@LIGHT
@given(st.integers(1, 1000), st.integers(1, 300), st.integers(0, 3))
def test_windows_are_equal_to_one_and_make_the_epoch(clips, window_clips, epoch):
  mixed = mixture([clips])
  count = mixed.windows(window_clips)
  edges = [mixed.window_edges(epoch, window, window_clips) for window in range(count)]
  assert edges[0][0] == epoch * clips and edges[-1][1] == (epoch + 1) * clips
  assert all(a[1] == b[0] for a, b in zip(edges[:-1], edges[1:], strict=True))
  lengths = [stop - start for start, stop in edges]
  assert max(lengths) <= window_clips and max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("size", [1, 2, 1000, 2**16, 2**16 + 1, 100_003, 2**17])
def test_slices_of_a_permutation_are_parts_of_one_bijection(size):
  whole = hashing.permuted(size, 0, size, 5, 6)
  assert np.array_equal(np.sort(whole), np.arange(size))
  edges = [0, size // 3, size // 2, size]
  parts = [
    hashing.permuted(size, a, b, 5, 6) for a, b in zip(edges[:-1], edges[1:], strict=True)
  ]
  np.testing.assert_array_equal(np.concatenate(parts), whole)
  if size > 2:
    assert not np.array_equal(whole, hashing.permuted(size, 0, size, 5, 7))


def test_a_long_permutation_looks_random():
  size = 300_000  # beyond what is sorted, and no power of two
  order = hashing.permuted(size, 0, size, 1, 2)
  ranks = np.arange(size)
  assert abs(np.corrcoef(ranks, order)[0, 1]) < 4 / np.sqrt(size)
  assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 4 / np.sqrt(size)
  fixed = (order == ranks).sum()
  neighbours = (abs(np.diff(order)) == 1).sum()  # 1 and 2 are expected
  assert fixed < 10 and neighbours < 12
  table = np.histogram2d(ranks, order, bins=32)[0]
  chi = ((table - size / 1024) ** 2 / (size / 1024)).sum()  # 961 degrees of freedom
  assert 961 - 5 * np.sqrt(2 * 961) < chi < 961 + 5 * np.sqrt(2 * 961)
  far = hashing.permuted(2**40, 2**39, 2**39 + 1000, 1)
  assert len(np.unique(far)) == 1000 and 0 <= far.min() and far.max() < 2**40


def test_permutations_are_the_same_as_ever():
  """A golden: others would continue old runs on other data. Raise packing.VERSION then."""
  assert hashing.permuted(10, 0, 5, 1, 2).tolist() == [5, 3, 4, 6, 2]
  long = hashing.permuted(2**20 + 1, 0, 5, 1, 2)
  assert long.tolist() == [589580, 443395, 699429, 928726, 655933]


def test_uniform_numbers_fill_the_unit_interval():
  """53 bits of each hash: mean 1/2, variance 1/12, and the last bit is used."""
  numbers = hashing.uniform(1, np.arange(40_000))
  assert 0 <= numbers.min() < 1e-3 and 1 - 1e-3 < numbers.max() < 1
  assert numbers.mean() == pytest.approx(1 / 2, abs=4 / np.sqrt(12 * 40_000))
  assert numbers.var() == pytest.approx(1 / 12, abs=2e-3)
  lowest = (numbers * 2.0**53).astype(np.uint64) & np.uint64(1)
  assert lowest.mean() == pytest.approx(1 / 2, abs=0.01)


def test_a_slice_outside_is_refused():
  with pytest.raises(ValueError, match=r"start=3, stop=11 is no slice of size=10"):
    hashing.permuted(10, 3, 11, 0)


@pytest.mark.parametrize(
  "changed, text",
  [
    (dict(rows=range(0)), "clips=0, so there is nothing to pack"),
    (dict(weight=0.0), r"weight=0\.0 of a dataset is not positive"),
    (dict(weight=float("nan")), "weight=nan"),
    (dict(caption_weights=(0.0, 0.0)), r"caption_weights=\(0\.0, 0\.0\) are no relative"),
    (dict(caption_weights=(1.0, -1.0)), "no relative probabilities"),
  ],
)
def test_pools_that_are_none(changed, text):
  with pytest.raises(BadInput, match=text):
    Pool(**{"columns": {}, "rows": range(3), **changed})


def test_whole_passes_at_once_are_those_one_by_one():
  mixed = mixture([5, 400], [1.0, 1.0])
  at_once = drawn(mixed, 3, 800)
  edges = list(range(3, 800, 7)) + [800]
  one_by_one = [drawn(mixed, a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
  for pool in (0, 1):
    small = [record for part in one_by_one for number, record in part if number == pool]
    assert [record for number, record in at_once if number == pool] == small
  blocks = [block for block in mixed.blocks(3, 800) if block.pool == 0]
  assert len(blocks) <= 3 and len(blocks[1].counters[2]) == len(blocks[1].record)

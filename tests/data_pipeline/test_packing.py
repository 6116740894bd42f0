"""The pack plan: exactly once an epoch, four capacities, near-equal steps, no state."""

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import bins, packing
from data_pipeline.errors import BadInput
from data_pipeline.stream import Mixture, Pool
from packed import SMALL, make_columns

LIGHT = settings(max_examples=40, deadline=None)
def plan(columns, records=None, config=SMALL, *, seed=0, stage=0, epoch=0, window=0, dataset=""):
  rows = range(len(columns["f"])) if records is None else records
  pool = Pool(columns=columns, rows=rows, fingerprint=dataset)
  mixture = Mixture([pool], seed=seed, stage=stage)
  return packing.plan_window(mixture, config, epoch=epoch, window=window)


def check_fit(columns, config=SMALL):
  packing.check_fit(Pool(columns=columns, rows=range(len(columns["f"]))), config)


def lengths(columns, record):
  cells = columns["h"][record] * columns["w"][record] // 4
  return columns["f"][record].astype(int) * cells


@LIGHT
@given(st.integers(1, 300), st.integers(0, 50), st.integers(0, 3))
def test_every_clip_once_within_the_capacities(clips, seed, epoch):
  columns = make_columns(clips, seed)
  records = np.random.default_rng(seed).permutation(clips)[: clips // 2 + 1]
  made = plan(columns, records, seed=seed, epoch=epoch)
  rows = [made.bin(i) for i in range(made.steps * SMALL.rows)]
  assert sorted(np.concatenate([row.record for row in rows])) == sorted(records)
  draws = np.concatenate([row.draw for row in rows])
  np.testing.assert_array_equal(draws, epoch * len(records) + np.arange(len(records)))
  used = 0
  for row in rows:
    first = columns["caption_offsets"][row.record]
    room = columns["caption_offsets"][row.record + 1] - first
    assert np.all(row.caption < np.maximum(room, 1))
    captions = [
      columns["caption_tokens"][a + b] if b >= 0 else 1
      for a, b in zip(first, row.caption, strict=True)
    ]
    assert all(caption > 0 for caption in captions)
    tokens = sum(captions) + lengths(columns, row.record).sum()
    assert tokens <= SMALL.slots and sum(captions) <= SMALL.caption_slots
    assert len(row.record) <= SMALL.segments
    used += tokens
  assert made.fill == pytest.approx(used / (len(rows) * SMALL.slots))


@LIGHT
@given(st.integers(1, 300), st.integers(0, 50))
def test_the_same_in_any_order_of_calls(clips, seed):
  columns = make_columns(clips, seed)
  forward = [plan(columns, seed=seed, epoch=epoch).fingerprint() for epoch in range(3)]
  backward = [plan(columns, seed=seed, epoch=epoch).fingerprint() for epoch in (2, 1, 0)]
  assert forward == backward[::-1]


def test_bins_are_numbered_without_gaps():
  one = np.array([3])
  assert bins.pack(one, one, slots=8, caption_slots=4, segments=2, rows=4).tolist() == [0]
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 30, 50)
  found = bins.pack(lengths, np.ones(50, int), slots=64, caption_slots=9, segments=4, rows=5)
  assert np.array_equal(np.unique(found), np.arange(found.max() + 1))


def test_the_fingerprint_sees_everything():
  columns = make_columns(100)
  base = plan(columns)
  others = [
    plan(columns, seed=1),
    plan(columns, epoch=1),
    plan(columns, stage=1),
    plan(columns, dataset="other"),
    plan(columns, np.arange(99)),
    plan(columns, config=dataclasses.replace(SMALL, slots=128)),
    plan({**columns, "caption_tokens": columns["caption_tokens"] % 8}),
  ]
  for name in ("offsets", "pool", "record", "caption", "patches", "caption_tokens"):
    column = getattr(base, name).copy()
    column[-1] += 1
    others.append(dataclasses.replace(base, **{name: column}))  # whatever it was a function of
  named = dict(seed=5, stage=1, epoch=2, window=0)
  assert plan(columns, dataset="a", **named).identity == {"datasets": [["a", 1.0, []]], **named}
  assert len({made.fingerprint() for made in [base, *others]}) == len(others) + 1


def test_the_plan_is_the_same_as_it_ever_was():
  """A golden: a changed plan would continue old runs on other data. Raise packing.VERSION then."""
  clip = np.arange(40)
  columns = dict(
    f=1 + clip % 3,
    h=2 + 2 * (clip % 2),
    w=2 + 2 * (clip % 5),
    caption_offsets=np.arange(0, 81, 2),
    caption_tokens=1 + np.arange(80) % 7,
  )
  made = plan(columns, seed=7, epoch=2)
  assert packing.VERSION == 2
  assert made.record[:8].tolist() == GOLDEN_RECORDS
  assert made.caption[:8].tolist() == GOLDEN_CAPTIONS
  assert made.offsets[:8].tolist() == GOLDEN_OFFSETS


GOLDEN_RECORDS = [33, 24, 32, 17, 28, 6, 9, 8]
GOLDEN_CAPTIONS = [1, -1, 0, 1, -1, 1, 0, 1]
GOLDEN_OFFSETS = [0, 5, 10, 15, 20, 25, 30, 36]


def test_captions_and_dropout_follow_their_probabilities():
  clips = 4000
  columns = make_columns(clips)
  columns["caption_offsets"] = np.arange(0, 3 * clips + 1, 3)
  columns["caption_tokens"] = np.full(3 * clips, 2)
  made = [plan(columns, epoch=epoch) for epoch in range(2)]
  share = np.bincount(made[0].caption + 1, minlength=4) / clips
  expected = np.array([0.3, 0.7 / 3, 0.7 / 3, 0.7 / 3])
  assert np.all(abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / clips)), share
  by_record = [made[e].caption[np.argsort(made[e].record)] for e in range(2)]
  same = np.mean(by_record[0] == by_record[1])
  assert same == pytest.approx((expected**2).sum(), abs=0.04)  # epochs draw independently


def heavy_tailed(clips, seed=0):
  rng = np.random.default_rng(seed)
  return dict(
    f=rng.choice([1, 3, 5, 9, 17], clips, p=[0.4, 0.25, 0.2, 0.1, 0.05]),
    h=2 * rng.choice([4, 6, 8, 12, 16], clips),
    w=2 * rng.choice([4, 6, 8, 12, 16], clips),
    caption_offsets=np.arange(0, 2 * clips + 1, 2),
    caption_tokens=rng.integers(5, 25, 2 * clips),
  )


@pytest.mark.parametrize("slots, captions, segments", [(8192, 1024, 64), (4608, 512, 32)])
def test_fill_and_balance_on_a_heavy_tailed_mix(slots, captions, segments):
  config = packing.PackSettings(
    slots=slots,
    caption_slots=captions,
    segments=segments,
    rows=8,
    patch=(1, 2, 2),
    caption_dropout=0.1,
    cost=packing.cost_of(768),
  )
  start = time.perf_counter()
  made = plan(heavy_tailed(20_000), config=config)
  seconds = time.perf_counter() - start
  imbalance = {ranks: round(made.imbalance(ranks), 5) for ranks in (1, 2, 4, 8)}
  print(f"n={slots}: fill {made.fill:.4f}, imbalance {imbalance}, {seconds:.2f} s for 20,000 clips")
  assert made.fill >= 0.98
  assert made.imbalance(1) == 0 and made.imbalance(8) < 0.01


def test_no_size_ordering_remains():
  config = dataclasses.replace(SMALL, slots=8192, caption_slots=512)
  made = plan(heavy_tailed(20_000), config=config)
  cost = made.costs.sum(axis=1)
  rank = np.corrcoef(np.arange(len(cost)), np.argsort(np.argsort(cost)))[0, 1]
  assert abs(rank) < 4 / np.sqrt(len(cost))
  longest_first = [
    np.argmax(made.patches[a:b]) == 0
    for a, b in zip(made.offsets[:-1], made.offsets[1:], strict=True)
    if b - a == 6
  ]
  assert np.mean(longest_first) == pytest.approx(1 / 6, abs=0.05)


def test_costs_and_imbalance_by_hand():
  columns = dict(
    f=np.array([1, 1, 1, 1]),
    h=np.array([2, 2, 4, 8]),
    w=np.array([2, 4, 4, 4]),
    caption_offsets=np.zeros(5, int),
    caption_tokens=np.zeros(0, int),
  )
  config = dataclasses.replace(SMALL, slots=9, segments=1, rows=2, cost=(2.0, 0.5))
  made = plan(columns, config=config)
  price = {length: 2.0 * length + 0.5 * length**2 for length in (2, 3, 5, 9)}
  steps = sorted(made.costs.tolist())
  assert steps == [[price[3], price[2]], [price[9], price[5]]]
  expected = [max(a, b) / ((a + b) / 2) - 1 for a, b in steps]
  assert made.imbalance(2) == pytest.approx(np.mean(expected))
  with pytest.raises(BadInput, match=r"imbalance: ranks=3 does not divide rows=2"):
    made.imbalance(3)


@LIGHT
@given(st.integers(1, 60), st.integers(1, 9))
def test_missing_rows_are_spread_over_the_cheapest_steps(count, rows):
  steps = -(-count // rows)
  costs = np.random.default_rng(count).random(count)
  place = bins.place_in_steps(costs, rows, np.arange(steps))
  assert len(set(place)) == count
  sizes = np.bincount(place // rows, minlength=steps)
  assert sizes.max() - sizes.min() <= 1 and np.all(np.diff(sizes) <= 0)
  means = np.bincount(place // rows, costs) / sizes
  assert np.all(np.diff(means) <= 0)


def test_bins_reach_the_lower_bound_when_segments_are_scarce():
  rng = np.random.default_rng(0)
  captions = rng.integers(5, 25, 5000)
  sizes = captions + rng.integers(16, 64, 5000)
  room = dict(slots=8192, caption_slots=1024, segments=64)
  bin_of = bins.pack(sizes, captions, **room, rows=1)
  assert bin_of.max() + 1 <= 1.02 * (5000 / 64)


def test_longer_than_a_bin():
  columns = make_columns(20)
  columns["f"][13] = 30
  columns["h"][13] = columns["w"][13] = 4
  for refuse in (plan, check_fit):
    with pytest.raises(BadInput, match=r"clip row 13 has 1\d\d tokens \(120 patches.* slots=96"):
      refuse(columns)
  columns = make_columns(20)
  columns["caption_tokens"][columns["caption_offsets"][9]] = 60
  config = dataclasses.replace(SMALL, slots=1000)
  row = np.searchsorted(columns["caption_offsets"], columns["caption_offsets"][9], "right") - 1
  with pytest.raises(BadInput, match=rf"clip row {row} has a caption of 60 tok.*caption_slots=24"):
    check_fit(columns, config)


def test_a_clip_that_only_its_longest_caption_makes_too_long_is_refused_before_training():
  columns = dict(
    f=np.array([1]),
    h=np.array([18]),
    w=np.array([20]),
    caption_offsets=np.array([0, 2]),
    caption_tokens=np.array([1, 7]),
  )
  with pytest.raises(BadInput, match=r"clip row 0 has 97 tokens \(90 patches, 7 capt"):
    check_fit(columns)


def test_other_bad_input():
  columns = make_columns(5)
  columns["h"][3] = 5
  with pytest.raises(BadInput, match=r"packing: h=5 of clip row 3 is not a multiple of its"):
    plan(columns)
  with pytest.raises(BadInput, match="clips=0"):
    plan(make_columns(5), np.arange(0))
  with pytest.raises(BadInput, match="window=1 is not below 1"):
    plan(make_columns(5), window=1)
  with pytest.raises(BadInput, match=r"caption_dropout=1\.5 is no probability"):
    dataclasses.replace(SMALL, caption_dropout=1.5)
  with pytest.raises(BadInput, match=r"rows=0 is below 1"):
    dataclasses.replace(SMALL, rows=0)
  for patch in [(0, 2, 2), (1, 2, -1), (2, 2), (1, 2.0, 2)]:
    with pytest.raises(BadInput, match=r"patch=\(.*\) is not three whole sides"):
      dataclasses.replace(SMALL, patch=patch)


def test_a_pair_of_tokens_costs_what_its_products_do():
  """A layer of width d: 12 d² multiply-adds a token, and d each for q·k and weights·v of a pair."""
  for width in (96, 768):
    token, pair = packing.cost_of(width)
    assert pair / token == pytest.approx((width + width) / (12 * width**2))

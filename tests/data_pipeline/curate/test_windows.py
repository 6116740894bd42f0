from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.curate.windows import Left, Window, find_windows, split


def find(shots, frames, fps=10, **changes):
  chosen = dict(min_seconds=2.0, max_seconds=5.0, overlap_seconds=0.0, trim_seconds=0.0)
  return find_windows(shots, frames, fps, **{**chosen, **changes})


def test_a_shot_that_fits_is_one_window():
  assert find([(0, 20), (20, 70)], 70) == ([Window(0, 20, 0), Window(20, 70, 1)], [])


def test_a_long_shot_is_split_evenly_and_leaves_nothing():
  windows, left = find([(0, 110)], 110)
  assert [w[:2] for w in windows] == [(0, 36), (36, 73), (73, 110)] and not left


def test_even_parts_that_would_be_too_short_give_way_to_full_windows():
  windows, left = find([(0, 60)], 60, min_seconds=4.0)
  assert windows == [Window(0, 50, 0)]
  assert left == [Left(50, 60, "too_short", "1.00 s, less than 4 s")]


def test_cuts_are_trimmed_and_the_ends_of_the_source_are_not():
  windows, left = find([(0, 30), (30, 60), (60, 90)], 90, trim_seconds=0.3)
  assert [w[:2] for w in windows] == [(0, 27), (33, 57), (63, 90)]
  assert [one[:3] for one in left] == [(27, 33, "trimmed"), (57, 63, "trimmed")]


@settings(max_examples=200, deadline=None)
@given(
  st.lists(st.integers(1, 60), min_size=1, max_size=8), st.floats(0, 0.5), st.floats(0.1, 2)
)
def test_every_frame_is_in_one_window_or_left_once(lengths, trim_seconds, min_seconds):
  edges = np.cumsum([0, *lengths]).tolist()
  shots = list(zip(edges[:-1], edges[1:], strict=True))
  windows, left = find(shots, edges[-1], trim_seconds=trim_seconds, min_seconds=min_seconds)
  covered = sorted([w[:2] for w in windows] + [one[:2] for one in left])
  assert [a for a, _ in covered] == [0, *(b for _, b in covered[:-1])]
  assert covered[-1][1] == edges[-1]


def test_short_shots_are_left_with_their_frames_and_duration():
  windows, left = find([(0, 19), (19, 40)], 40)
  assert windows == [Window(19, 40, 1)]
  assert left == [Left(0, 19, "too_short", "1.90 s, less than 2 s")]


def test_what_lies_between_shots_is_a_transition():
  windows, left = find([(0, 20), (24, 44)], 50)
  assert [w[:2] for w in windows] == [(0, 20), (24, 44)]
  assert [row[:3] for row in left] == [(20, 24, "transition"), (44, 50, "transition")]
  assert find([], 9) == ([], [Left(0, 9, "transition", "a gradual transition")])


def test_windows_overlap_by_what_is_asked():
  windows, left = find([(0, 100)], 100, overlap_seconds=1.0)
  spans = [w[:2] for w in windows]
  assert spans[0][0] == 0 and spans[-1][1] == 100 and not left
  assert [a[1] - b[0] for a, b in zip(spans, spans[1:], strict=False)] == [10] * (len(spans) - 1)


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), Fraction(24), 23.976, 60, 1])
def test_durations_are_never_shorter_or_longer_than_asked(fps):
  windows, _ = find([(0, 10_000)], 10_000, fps, min_seconds=1.1, max_seconds=3.7)
  assert all(1.1 <= (w.stop - w.start) / float(fps) <= 3.7 for w in windows)


@given(st.integers(0, 400), st.integers(1, 60), st.integers(0, 60), st.floats(0, 1))
def test_parts_of_a_shot_cover_it_in_order_within_their_lengths(length, least, room, part):
  most = least + room
  overlap = int(part * (most // 2))
  ranges = split(length, least, most, overlap)
  assert all(least <= b - a <= most for a, b in ranges)
  pairs = list(zip(ranges, ranges[1:], strict=False))
  assert all(b[0] == a[1] - overlap and a[0] < b[0] for a, b in pairs)
  end = ranges[-1][1] if ranges else 0
  assert end <= length and (not ranges or ranges[0][0] == 0)
  assert length - end < least  # what is left is no window
  if least <= most // 2 - overlap:
    assert end == length or length < least  # then nothing is left

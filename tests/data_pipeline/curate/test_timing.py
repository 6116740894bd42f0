"""The rule by which timestamps become a constant rate."""

import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.curate.media import frames, probe
from data_pipeline.curate.timing import fill, measure, nearest
from data_pipeline.curate.types import Refused

MS = Fraction(1, 1000)
LIMITS = {"max_seconds": 3600, "max_frames": 10_000, "max_fps": 120, "max_gap_seconds": 60}
LIMITS |= {"max_held_seconds": 1}


def laid(stamps, *, last=0, tick=MS, rates=(), **limits):
  return measure(np.array(stamps, np.int64), last, tick, rates, **(LIMITS | limits))


def rounded(rate, count, ticks=1000):
  """Timestamps of a constant rate, rounded to ticks as containers do."""
  return [round(number / Fraction(rate) * ticks) for number in range(count)]


@pytest.mark.parametrize("rate", ["24000/1001", "24", "25", "30000/1001", "30", "50", "60000/1001"])
@pytest.mark.parametrize("is_known", [True, False])
def test_constant_rates_survive_rounding_to_milliseconds(rate, is_known):
  timing = laid(rounded(rate, 300), rates=[Fraction(rate)] if is_known else [])
  assert (timing.fps, timing.frames, timing.is_variable) == (Fraction(rate), 300, False)


def test_an_unusual_rate_is_kept():
  timing = laid(rounded("17.5", 100, 90000), tick=Fraction(1, 90000), rates=[Fraction(35, 2)])
  assert (timing.fps, timing.frames) == (Fraction(35, 2), 100)


def test_dropped_frames_leave_the_rate():
  stamps = [stamp for i, stamp in enumerate(rounded(30, 90)) if i % 7 != 3]
  timing = laid(stamps, rates=[Fraction(77, 3)])
  assert (timing.fps, timing.frames, timing.source_frames) == (30, 90, 77)
  assert timing.is_variable


def test_jitter_is_not_variable():
  jitter = np.random.default_rng(0).uniform(-9, 9, 200)
  stamps = np.round(np.arange(200) * 1000 / 30 + jitter).astype(int)
  timing = laid(stamps, rates=[Fraction(30)])
  assert (timing.fps, timing.frames, timing.is_variable) == (30, 200, False)


def test_pulldown_keeps_the_rate_of_the_film():
  stamps = [round(1000 * slot / 60) for i in range(24) for slot in (5 * i, 5 * i + 3)]
  timing = laid(stamps, rates=[Fraction(60), Fraction(24)])
  assert (timing.fps, timing.frames) == (24, 48)


def test_fast_videos_are_divided():
  timing = laid(rounded(240, 240, 90000), tick=Fraction(1, 90000), rates=[Fraction(240)])
  assert (timing.fps, timing.frames) == (120, 120)
  timing = laid(rounded(144, 144, 90000), tick=Fraction(1, 90000), rates=[Fraction(144)])
  assert (timing.fps, timing.frames) == (72, 72)


def test_the_last_frame_lasts_as_long_as_it_says():
  assert laid([0, 100, 200, 500], last=300).frames == 8
  assert laid([0, 100, 200, 500]).frames == 6
  assert laid([0], last=400, rates=[Fraction(10)]).frames == 4


@pytest.mark.parametrize(
  "stamps, limits, reason",
  [
    ([0, 40, 80, 2**62], {}, "broken_timestamps"),
    ([-(2**63), 0, 2**63 - 1], {}, "broken_timestamps"),
    ([0] * 50, {}, "broken_timestamps"),
    ([0, 0, 0, 0, 40], {}, "broken_timestamps"),
    (range(0, 4_000_000, 40_000), {}, "too_long"),
    (range(0, 40_000, 40), {"max_frames": 999}, "too_many_frames"),
    ([*range(0, 900, 30), 10**12], {"max_gap_seconds": 1e9, "max_seconds": 1e9}, "too_many_frames"),
  ],
)
def test_what_no_video_has_is_refused(stamps, limits, reason):
  with pytest.raises(Refused) as caught:
    laid(stamps, **limits)
  assert caught.value.reason == reason


@settings(max_examples=200, deadline=None)
@given(
  st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(0, 30), st.integers(0, 20)
)
def test_fill_shows_the_last_frame_before(slots, start, length):
  slots = sorted([0, *slots])
  expected = [
    max(i for i, slot in enumerate(slots) if slot <= k) for k in range(start, start + length)
  ]
  shown = [(slot, number) for number, slot in enumerate(slots)]
  assert list(fill(shown, start, start + length)) == expected


def test_what_is_held_too_long_is_a_loss():
  """A leap of half a minute, one of less than a second, and a last frame that stays."""
  stamps = [*range(0, 1000, 40), *range(31_000, 32_000, 40), *range(32_720, 33_000, 40)]
  timing = laid(stamps, last=5000, rates=[Fraction(25)])
  assert timing.fps == 25 and timing.frames == 949
  assert [tuple(loss)[:3] for loss in timing.losses] == [(25, 775, "held"), (825, 949, "held")]
  assert "30.04 s" in timing.losses[0].detail
  assert timing.parts == [(0, 25), (775, 825)]


def test_slides_are_not_held():
  timing = laid(range(0, 60_000, 3000))
  assert timing.fps == Fraction(1, 3) and not timing.losses and timing.parts == [(0, 20)]


def test_holes_and_seams_divide_the_parts():
  stamps = [*range(0, 400, 40), *range(800, 1200, 40)]
  known = dict(holes=[(10, "zeros"), (15, "no time"), (20, "the end")], seams=[5])
  timing = laid(stamps, rates=[Fraction(25)], **known)
  assert [tuple(loss) for loss in timing.losses] == [
    (10, 20, "damaged", "zeros"),
    (25, 25, "damaged", "no time"),
    (30, None, "damaged", "the end"),
  ]
  assert timing.seams == (5,)
  assert timing.parts == [(0, 5), (5, 10), (20, 25), (25, 30)]


def test_halves_are_rounded_up():
  assert [nearest(Fraction(n, 2)) for n in (-3, -1, 1, 3)] == [-1, 0, 1, 2]


def test_variable_rate_agrees_with_ffmpeg(make, tmp_path):
  """Irregular times in a file: the frames shown are those of ffmpeg's fps filter."""
  rng = np.random.default_rng(3)
  stamps = np.cumsum(rng.integers(15, 120, 60)).tolist()
  path = make.write(tmp_path / "a.mkv", make.greys(60), stamps)
  with open(path, "rb") as file:
    info = probe(file)
    ours = np.stack(list(frames(file, info)))
  assert info.is_variable_rate and info.source_frames == 60
  theirs = make.reference(path, 16, 16, "-vf", f"fps={info.fps}:round=near")
  assert info.frames == len(ours) and abs(len(theirs) - len(ours)) <= 1  # the end: see the rule
  count = min(len(theirs), len(ours))
  assert np.array_equal(ours[:count], theirs[:count])


def test_frames_that_share_a_place_get_a_higher_rate_or_are_counted():
  mixed = np.cumsum([0, *[3, 10, 10] * 20]).tolist()
  timing = laid(mixed, tick=Fraction(1, 100), last=3)
  assert (timing.fps, timing.dropped, timing.is_variable) == (100, 0, True)
  assert timing.frames == mixed[-1] + 3
  slower = laid(mixed, tick=Fraction(1, 100), last=3, max_fps=50)  # no rate up to 50 has the places
  shown = {slower.slot(stamp) for stamp in mixed} & set(range(slower.frames))
  assert slower.fps == 10 and slower.dropped == 61 - len(shown) > 0


def test_a_grid_that_would_take_too_many_frames_is_not_taken():
  slides = np.cumsum([0, *[500] * 20, 1, *[500] * 20]).tolist()  # 5 s each, once 10 ms
  timing = laid(slides, tick=Fraction(1, 100), last=500)
  assert float(timing.fps) == pytest.approx(0.2) and timing.dropped == 1


@settings(max_examples=300, deadline=None)
@given(
  st.lists(st.integers(0, 400), min_size=1, max_size=60),
  st.sampled_from([Fraction(1, 100), MS, Fraction(1, 90000), Fraction(1001, 30000)]),
  st.integers(0, 40),
  st.sampled_from([7.5, 30, 120]),
  st.integers(-(10**12), 10**12),
)
def test_dropped_frames_are_those_that_are_never_shown(steps, tick, last, max_fps, start):
  stamps = (np.cumsum(steps) + start).tolist()
  try:
    timing = laid(stamps, last=last, tick=tick, max_fps=max_fps, max_gap_seconds=1e3)
  except Refused:
    return
  shown = [(timing.slot(stamp), number) for number, stamp in enumerate(stamps)]
  seen = set(fill(shown, 0, timing.frames))
  assert timing.dropped == len(stamps) - len(seen)
  assert timing.fps <= max_fps


def test_many_holes_and_seams_cost_moments():
  """Frames are put in order once, not once a hole."""
  count = 100_000
  holes = [(number, "zeros") for number in range(0, count, 2)]
  begin = time.process_time()
  timing = laid(
    range(0, 40 * count, 40), max_seconds=1e5, max_frames=count, holes=holes, seams=range(1, count)
  )
  assert time.process_time() - begin < 10
  assert len(timing.losses) == count // 2 and timing.seams[-1] == count - 1

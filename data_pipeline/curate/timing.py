"""From the timestamps of a video to frames at a constant rate.

The rule. Time 0 is the first frame that can be decoded, and output frame k is shown at k/fps: it is
the last source frame whose time, rounded to the nearest output frame (halves up), is k or earlier.
So a source frame in a gap is repeated, and of several that fall on one output frame the last is
kept. It ends where the last source frame ends. FFmpeg's `fps=FPS:round=near` does the same.

`fps` is the lowest rate, of those the file speaks of and the usual ones, at which every frame has a
place of its own, exactly but for the rounding of timestamps, and no more than half as high again as
the median interval says. If there is none, it is the file's own rate when at that rate no frame is
repeated or dropped; otherwise that of the median interval. Where frames would share a place there,
it is the lowest known or usual rate, no more than half as high again, at which none do; or the
lowest at which each has a place exactly, the grid of all times included, unless that takes very
many output frames. What still shares a place is counted (`Timing.dropped`). A rate above `max_fps`
is divided by the smallest whole number that brings it down.

Output frames in which nothing may be shown are `losses`: where frames could not be decoded, and
where one would be held longer than `max_held_seconds`.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple, TypeVar

import numpy as np

from data_pipeline.curate.types import Refused

Shown = TypeVar("Shown")

USUAL = tuple(Fraction(rate) for rate in (5, 6, 10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 100, 120))
USUAL += tuple(Fraction(rate * 1000, 1001) for rate in (12, 15, 24, 30, 48, 60, 120))
_ROUNDING = 0.49  # frames: timestamps this near to their place are in it
_MOST_BLUR = 0.25  # frames: where ticks are coarse, places say nothing
_MOST_ABOVE = 1.5  # times the rate of the median interval
_MOST_REPEATS, _FEW_FRAMES = 8, 3600  # output frames for one of the source, or in all
_MOST_TWINS = 0.5  # share of frames that may have the time of another


class Loss(NamedTuple):
  """Output frames `start <= k < stop` that nothing may be shown in; `stop` is None for the end.

  `stop == start` where frames are missing without leaving time.
  """

  start: int
  stop: int | None
  reason: str
  detail: str


@dataclasses.dataclass(frozen=True, eq=False)
class Timing:
  """How the frames of a source lie on the constant rate.

  Attributes:
    start: timestamp of time 0, in ticks.
    tick: seconds.
    fps: of the output.
    frames: of the output.
    is_variable: the source's frames are not evenly spaced.
    source_frames: that have a time.
    losses: in order, without overlap.
    seams: output frames at which another recording begins, that was joined to the one before.
    dropped: source frames that no output frame shows: a later one has their place.
  """

  start: int
  tick: Fraction
  fps: Fraction
  frames: int
  is_variable: bool
  source_frames: int
  losses: tuple[Loss, ...] = ()
  seams: tuple[int, ...] = ()
  dropped: int = 0

  def slot(self, stamp: int) -> int:
    """The output frame on which a timestamp falls."""
    places, ticks = self._places  # whole numbers: fractions take a tenth of what decoding takes
    return (2 * (stamp - self.start) * places + ticks) // (2 * ticks)

  @functools.cached_property
  def _places(self) -> tuple[int, int]:
    """Output frames, and the ticks that they take."""
    rate = self.tick * self.fps
    return rate.numerator, rate.denominator

  def stamp(self, slot: int) -> Fraction:
    """The first time, in ticks, that falls on an output frame."""
    return self.start + (slot - Fraction(1, 2)) / (self.fps * self.tick)

  @property
  def parts(self) -> list[tuple[int, int]]:
    """Ranges of output frames that follow each other in the source, without a loss or a seam."""
    edges = [(loss.start, self.frames if loss.stop is None else loss.stop) for loss in self.losses]
    edges += [(seam, seam) for seam in self.seams]
    parts, begin = [], 0
    for start, stop in [*sorted(edges), (self.frames, self.frames)]:
      if start > begin:
        parts.append((begin, start))
      begin = max(begin, stop)
    return parts


def nearest(value: Fraction) -> int:
  """Rounds to the nearest whole number, halves up."""
  return math.floor(value + Fraction(1, 2))


def measure(
  stamps: np.ndarray,
  last_ticks: int,
  tick: Fraction,
  rates: Iterable[Fraction | None],
  *,
  max_seconds: float,
  max_frames: int,
  max_fps: float,
  max_gap_seconds: float,
  max_held_seconds: float,
  holes: Iterable[tuple[int, str]] = (),
  seams: Iterable[int] = (),
) -> Timing:
  """Lays timestamps on a constant rate.

  Args:
    stamps: int64 [n], in any order, n >= 1.
    last_ticks: duration of the last frame; 0 if not known.
    tick: seconds a unit of `stamps`.
    rates: frames/second that the container speaks of, best first; None and 0 are not known.
    holes: source frames before which others are missing (n: behind the last), with the cause.
    seams: source frames at which another recording begins.
  Raises:
    Refused: "broken_timestamps", "too_long" or "too_many_frames".
  """
  first, last = int(stamps.min()), int(stamps.max())  # in Python: hostile ones overflow int64
  times = np.unique(stamps)
  _check_span(times, last_ticks, tick, max_seconds, max_gap_seconds)
  if len(stamps) > 1 and 1 - len(times) / len(stamps) > _MOST_TWINS:
    raise Refused("broken_timestamps", f"{len(stamps)} frames at {len(times)} times")
  offsets = (times - first).astype(np.float64) * float(tick)
  known = [rate for rate in rates if rate and rate > 0]
  usual, is_variable = _rate(offsets, float(tick), known)
  rate = usual
  if is_variable:
    grid = 1 / (int(np.gcd.reduce(np.diff(times))) * tick)
    rate = _keeping(offsets, tick, usual, [*known, grid], Fraction(max_fps), max_frames)
  fps = rate / max(1, math.ceil(rate / Fraction(max_fps)))
  length = last_ticks * tick if last_ticks > 0 and (is_variable or len(times) == 1) else 1 / usual
  frames = max(1, nearest(((last - first) * tick + length) * fps))
  if frames > max_frames:
    raise Refused("too_many_frames", f"{frames} frames at {float(fps):g} fps")
  timing = Timing(first, tick, fps, frames, is_variable, len(stamps))
  timing = dataclasses.replace(timing, dropped=_count_dropped(stamps, timing))
  losses, ordered = _held(timing, times, 1 / usual, max_held_seconds), np.sort(stamps)
  losses += [_missing(timing, ordered, 1 / usual, *hole) for hole in holes]
  starts = [timing.slot(int(ordered[seam])) for seam in seams]
  return dataclasses.replace(timing, losses=_merged(losses, frames), seams=tuple(starts))


def _after(timing: Timing, stamp: int, interval: Fraction) -> int:
  """The output frame at which a source frame has been shown for an interval."""
  shown = (stamp - timing.start) * timing.tick + interval
  return max(timing.slot(stamp) + 1, nearest(shown * timing.fps))


def _held(timing: Timing, times: np.ndarray, interval: Fraction, most: float) -> list[Loss]:
  """Finds where one frame would be shown longer than `most` seconds, and than usual."""
  most = max(most, _MOST_ABOVE * float(interval))
  ends = [*times[1:].tolist(), None]
  steps = np.append(np.diff(times.astype(np.float64)) * float(timing.tick), np.inf)
  losses = []
  for place in np.flatnonzero(steps > most):
    stamp, end = int(times[place]), ends[place]
    stop = timing.frames if end is None else timing.slot(end)
    start = _after(timing, stamp, interval)
    seconds = float((stop - timing.slot(stamp)) / timing.fps)
    if seconds > most and start < stop:
      losses.append(Loss(start, stop, "held", f"one frame is shown for {seconds:.4g} s"))
  return losses


def _missing(
  timing: Timing, stamps: np.ndarray, interval: Fraction, before: int, cause: str
) -> Loss:
  if before == len(stamps):
    return Loss(timing.frames, None, "damaged", cause)
  stop = timing.slot(int(stamps[before]))
  start = min(stop, _after(timing, int(stamps[before - 1]), interval)) if before else stop
  return Loss(start, stop, "damaged", cause)


def _merged(losses: list[Loss], frames: int) -> tuple[Loss, ...]:
  """Sorts losses and joins those that overlap; damage then tells the reason."""
  merged: list[Loss] = []
  for loss in sorted(losses, key=lambda loss: (loss.start, loss.reason != "damaged")):
    end = None if not merged else merged[-1].stop
    if merged and (end is None or loss.start < end):
      first = min(merged[-1], loss, key=lambda one: one.reason != "damaged")
      stop = None if None in (end, loss.stop) else max(end or 0, loss.stop or 0)
      merged[-1] = Loss(merged[-1].start, stop, first.reason, first.detail)
    else:
      merged.append(loss)
  return tuple(merged)


def _check_span(
  times: np.ndarray, last_ticks: int, tick: Fraction, max_seconds: float, max_gap_seconds: float
) -> None:
  """Refuses jumps and lengths that no video has, before anything is computed from them."""
  span = (int(times[-1]) - int(times[0]) + max(last_ticks, 0)) * tick
  steps = np.diff(times.astype(np.float64))  # as floats, they do not overflow
  gap = float(max(steps.max(initial=0.0), last_ticks)) * float(tick)
  if gap > max_gap_seconds:
    raise Refused("broken_timestamps", f"one frame lasts {gap:.6g} s")
  if span > max_seconds:
    raise Refused("too_long", f"{float(span):.6g} s")


def _rate(offsets: np.ndarray, tick: float, rates: list[Fraction]) -> tuple[Fraction, bool]:
  """Frames/second of frames at `offsets` (seconds, ascending), and whether it varies."""
  if len(offsets) == 1:
    return (rates[0] if rates else Fraction(25)), False
  steps = np.diff(offsets)
  middle = float(np.sort(steps)[(len(steps) - 1) // 2])  # one that occurs
  alike = steps[np.abs(steps - middle) <= max(1.5 * tick, 0.1 * middle)]
  common = _usual(float(alike.mean()), tick)
  able = [rate for rate in (*rates, *USUAL, common) if rate * middle <= _MOST_ABOVE]
  exact = [rate for rate in able if _misplaced(offsets, rate) <= _blur(rate, tick)]
  if exact:
    rate = min(exact) if min(exact) < 0.9 * exact[0] else exact[0]
    return rate, bool(round(offsets[-1] * rate) != len(offsets) - 1)
  for rate in (*rates, common):
    if np.abs(offsets * float(rate) - np.arange(len(offsets))).max() < _ROUNDING:
      return rate, False
  return common, True


def _keeping(
  offsets: np.ndarray,
  tick: Fraction,
  rate: Fraction,
  rates: list[Fraction],
  max_fps: Fraction,
  max_frames: int,
) -> Fraction:
  """The rate of the median interval, or a higher one if frames would share places there."""
  if _is_kept(offsets, rate):
    return rate
  able = sorted(able for able in {*rates, *USUAL} if rate < able <= max_fps)
  near = [able for able in able if able <= _MOST_ABOVE * rate and _is_kept(offsets, able)]
  most = min(max_frames, max(_MOST_REPEATS * len(offsets), _FEW_FRAMES)) / float(offsets[-1])
  blurs = {able: _blur(able, float(tick)) for able in able if able <= most}
  exact = [able for able, blur in blurs.items() if _misplaced(offsets, able) <= blur]
  return next(iter(near or exact), rate)


def _is_kept(offsets: np.ndarray, rate: Fraction) -> bool:
  """Tells whether every frame has an output frame of its own at a rate."""
  return bool((np.diff(np.floor(offsets * float(rate) + 0.5)) > 0).all())


def _count_dropped(stamps: np.ndarray, timing: Timing) -> int:
  """Frames less the output frames that they fall on; exact, as `Timing.slot` is."""
  frames = 2 * timing.tick * timing.fps  # half ones a tick
  offsets = np.unique(stamps) - timing.start
  if (int(offsets[-1]) + 1) * frames.numerator + frames.denominator >= 2**63:
    offsets = offsets.astype(object)
  slots = (offsets * frames.numerator + frames.denominator) // (2 * frames.denominator)
  return len(stamps) - len(np.unique(slots[slots < timing.frames]))


def _misplaced(offsets: np.ndarray, rate: Fraction) -> float:
  """How far the worst frame is from a place of its own at a rate, in frames."""
  places = offsets * float(rate)
  slots = np.round(places)
  return float(np.abs(places - slots).max()) if (np.diff(slots) > 0).all() else np.inf


def _blur(rate: Fraction, tick: float) -> float:
  """Frames by which rounding to ticks, of the first frame and of another, moves a frame."""
  return min(_MOST_BLUR, 1.01 * tick * float(rate) + 0.005)


def _usual(interval: float, tick: float) -> Fraction:
  """The usual rate nearest to 1/interval, if it is within a tick of it; else 1/interval."""
  best = min(USUAL, key=lambda rate: abs(interval - 1 / float(rate)))
  if abs(interval - 1 / float(best)) <= max(tick / 2, 0.002 * interval):
    return best
  slow = Fraction(interval).limit_denominator(1001)
  return 1 / slow if interval > 1 else Fraction(1 / interval).limit_denominator(1001)


def fill(shown: Iterable[tuple[int, Shown]], start: int, stop: int) -> Iterator[Shown]:
  """What is shown in the output frames `start <= k < stop`, one after the other.

  Args:
    shown: (output frame, what is shown from it on), ascending; may begin before `start`.
  """
  at, held, is_held = start, None, False
  for slot, item in shown:
    while is_held and at < min(slot, stop):
      yield held  # pyright: ignore[reportReturnType]
      at += 1
    if at >= stop:
      return
    held, is_held = item, True
  for _ in range(at, stop if is_held else at):
    yield held  # pyright: ignore[reportReturnType]

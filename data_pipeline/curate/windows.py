"""Cuts shots into windows: the ranges of frames that may become clips. Exact in frames."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from data_pipeline.curate.shots import Shot

TOO_SHORT = "too_short"
TRIMMED = "trimmed"
TRANSITION = "transition"  # between shots, as the detector tells them apart


class Window(NamedTuple):
  """Frames start .. stop-1 of a source. `shot` is the number of the shot that it lies in."""

  start: int
  stop: int
  shot: int


class Left(NamedTuple):
  """Frames that became no window, and why, as `Reject` has it."""

  start: int
  stop: int
  reason: str
  detail: str


def find_windows(
  shots: Sequence[Shot],
  frames: int,
  fps: Fraction | float,
  *,
  min_seconds: float,
  max_seconds: float,
  overlap_seconds: float,
  trim_seconds: float,
) -> tuple[list[Window], list[Left]]:
  """Splits every shot evenly into the fewest windows that are not too long.

  So a shot leaves nothing over, unless its even parts would be too short: then windows of full
  length follow each other, and the rest is left. Durations are rounded to frames so that no
  window is shorter or longer than it may be.

  Args:
    shots: in order, without overlap.
    frames: of the source; its ends are no cuts.
    fps: frames a second.
    min_seconds, max_seconds: duration of a window.
    overlap_seconds: that a window of a long shot shares with the one before.
    trim_seconds: left out at both sides of a cut, where frames may be mixed.
  Returns:
    The windows, and what is left, in order.
  """
  fps = Fraction(fps)
  least = max(1, math.ceil(round(Fraction(min_seconds) * fps, 6)))
  most = max(least, math.floor(round(Fraction(max_seconds) * fps, 6)))
  overlap = min(round(overlap_seconds * fps), most - 1)
  trim = round(trim_seconds * fps)
  windows: list[Window] = []
  left: list[Left] = []
  seen = 0
  for number, (start, stop) in enumerate(shots):
    left += _between(seen, start)
    seen = stop
    first = start + trim if start > 0 else start
    last = stop - trim if stop < frames else stop
    ranges = split(last - first, least, most, overlap)
    if ranges and first > start:
      left = _with_trimmed(left, start, first)
    windows += [Window(first + a, first + b, number) for a, b in ranges]
    end = ranges[-1][1] if ranges else 0
    if end < last - first or not ranges:
      begin = first + end if ranges else start
      seconds = float(max(0, last - first - end) / fps)
      detail = f"{seconds:.2f} s, less than {min_seconds:g} s"
      left.append(Left(begin, last if ranges else stop, TOO_SHORT, detail))
    if ranges and last < stop:
      left = _with_trimmed(left, last, stop)
  return windows, left + _between(seen, frames)


def _with_trimmed(left: list[Left], start: int, stop: int) -> list[Left]:
  """Adds frames beside a cut, to those on its other side if they are trimmed too."""
  if left and left[-1].reason == TRIMMED and left[-1].stop == start:
    start, left = left[-1].start, left[:-1]
  return [*left, Left(start, stop, TRIMMED, "beside a cut")]


def _between(start: int, stop: int) -> list[Left]:
  return [Left(start, stop, TRANSITION, "a gradual transition")] if start < stop else []


def split(length: int, least: int, most: int, overlap: int) -> list[Shot]:
  """Ranges of `least` to `most` frames within `range(length)`, in order.

  They cover it evenly (by one frame the same length) where that can be done, each sharing
  `overlap` frames with the one before; else full ranges follow each other from 0.
  """
  if length < least:
    return []
  count = max(1, math.ceil((length - overlap) / (most - overlap)))
  total = length + (count - 1) * overlap  # frames, the shared ones twice
  if total // count >= (max(least, overlap + 1) if count > 1 else least):
    starts = [total * i // count - overlap * i for i in range(count)]
    ends = [total * (i + 1) // count - overlap * i for i in range(count)]
    return list(zip(starts, ends, strict=True))
  stride = most - overlap
  ranges = [(a, min(a + most, length)) for a in range(0, length - overlap, stride)]
  return [(a, b) for a, b in ranges if b - a >= least]

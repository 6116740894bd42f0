"""Settles when the frames of a video are shown, in the decoder's order.

Times. Where they go back by no more than a decoder reorders, they were invented in decoding order:
the frames get them sorted. Where they go back further, or leap beyond `Limits.max_gap_seconds`,
another recording begins: it is laid behind the one before it (a seam). Where there are none, frames
are evenly spaced.
"""

from collections import deque
from collections.abc import Collection, Iterable

import numpy as np

from data_pipeline.curate.decode import NO_TIME
from data_pipeline.curate.faults import REORDERED
from data_pipeline.curate.types import Refused

MOST_TIMELESS = 0.1  # share of frames without a time; with more, none is believed
_MOST_SEAMS = 0.04  # of the frames, and eight more


def settle_kept(
  times: np.ndarray, kept: np.ndarray, most_gap: int, edits: Collection[int]
) -> tuple[np.ndarray, np.ndarray, list[int]]:
  """Settles the times of kept frames; invented ones are sorted together with those of the rest."""
  known = times[kept][times[kept] != NO_TIME]
  if not _is_invented(known):
    return settle(times[kept], most_gap, edits)
  stamps, shifts, seams = settle(times, most_gap)
  seams = sorted({int(np.searchsorted(kept, seam)) for seam in seams} - {0, len(kept)})
  return stamps[kept], shifts[kept], seams


def settle(
  times: np.ndarray, most_gap: int, edits: Collection[int] = ()
) -> tuple[np.ndarray, np.ndarray, list[int]]:
  """Makes the times of frames ascend, in the order in which they come.

  Args:
    times: int64 [n], ticks; NO_TIME for few of them.
    most_gap: ticks; a longer leap begins another recording.
    edits: frames at which a piece of an edit list begins: their times need not join exactly.
  Returns:
    Times from 0 on, int64 [n]; what was added to those of the frame's recording, int64 [n]; and
    the seams: the frames at which another recording begins.
  Raises:
    Refused: "broken_timestamps": there are more seams than a file is joined of.
  """
  known, times = times[times != NO_TIME], times.copy()
  usual = _usual(known)
  if len(known) == len(times) and _is_invented(times):
    ordered = _sorted(times, usual)
    return ordered, ordered - times, []
  _smooth(times, usual)
  filled, seams, top = [], [0], None
  recent: deque[int] = deque(maxlen=2 * REORDERED)
  for number, time in enumerate(times.tolist()):
    if time == NO_TIME:
      time = (top + usual) if top is not None else int(known[0]) - usual
    is_edit = top is not None and number in edits and abs(time - top - usual) > usual / 4
    if top is not None and (is_edit or not _goes_on(time, top, recent, usual, most_gap)):
      seams.append(number)
      recent.clear()
      top = time
    top = time if top is None else max(top, time)
    recent.append(time)
    filled.append(time)
  if len(seams) - 1 > _MOST_SEAMS * len(times) + 8:
    raise Refused("broken_timestamps", f"times leap {len(seams) - 1} times in {len(times)} frames")
  settled, shifts, end = [], [], None
  for first, stop in zip(seams, [*seams[1:], len(filled)], strict=True):
    ordered = sorted(filled[first:stop])
    shift = (0 if end is None else end + usual) - ordered[0]
    settled += [time + shift for time in ordered]
    shifts += [shift] * len(ordered)
    end = settled[-1]
  if max(map(abs, shifts)) >= 2**63:
    raise Refused("broken_timestamps", "times are beyond all numbers")
  return np.array(settled, np.int64), np.array(shifts, np.int64), seams[1:]


def _is_invented(times: np.ndarray) -> bool:
  """Tells whether times are those of decoding: even, but out of order by what decoders reorder."""
  steps = np.diff(np.sort(times))
  if len(times) < 3 or (np.diff(times) > 0).all():
    return False
  places = np.argsort(np.argsort(times, kind="stable"), kind="stable")
  is_near = np.abs(places - np.arange(len(times))).max() <= REORDERED
  even = np.abs(steps - np.median(steps)) <= np.median(steps) / 8
  is_often = (np.diff(times) <= 0).mean() > MOST_TIMELESS
  # Where they seldom go back, some are filled in wrongly, or another recording begins
  is_even = even.mean() > 1 - MOST_TIMELESS if is_often else even.all() and (steps > 0).all()
  return bool(is_near and is_even)


def _usual(times: np.ndarray) -> int:
  """Returns the usual interval, ticks."""
  steps = np.diff(np.sort(times) if _is_invented(times) else times).astype(np.float64)
  return max(1, round(float(np.median(steps[steps > 0])))) if (steps > 0).any() else 1


def _sorted(times: np.ndarray, usual: int) -> np.ndarray:
  """Lays invented times in order, from 0 on; evenly where all of them are there.

  Some are told twice, and others not at all.
  """
  even = usual * np.arange(len(times), dtype=np.int64)
  ordered = np.sort(times) - times.min()
  return even if abs(int(ordered[-1]) - int(even[-1])) <= 2 * usual else ordered


def _smooth(times: np.ndarray, usual: int) -> None:
  """Lays frames evenly where times come a second time and then go on as if they had not.

  Demuxers that fill in times of frames without one err so, for few frames.
  """
  for before in np.flatnonzero(np.diff(times) <= 0).tolist():
    recent = times[max(0, before - 2 * REORDERED) : before + 1]
    if _is_free(int(times[before + 1]), recent.tolist(), usual):
      continue
    for after in range(before + 2, min(before + REORDERED, len(times))):
      even = times[before] + usual * np.arange(1, after - before + 1)
      if abs(int(times[after]) - int(even[-1])) <= usual // 2:
        times[before + 1 : after] = even[:-1]
        break


def _is_free(time: int, others: Iterable[int], usual: int) -> bool:
  """Tells whether no other frame has about this time."""
  return all(2 * abs(time - other) > usual for other in others)


def _goes_on(time: int, top: int, recent: Iterable[int], usual: int, most_gap: int) -> bool:
  """Tells whether a time is of the same recording as recent ones, the latest of them being `top`.

  A time that goes back has to be free: none of the others is near it.
  """
  if time > top:
    return time <= top + most_gap
  return time == top or (time >= top - REORDERED * usual and _is_free(time, recent, usual))

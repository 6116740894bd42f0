"""Says whether objects move through a video as those of their family do, frame by frame.

A track that ends where it should is not yet a motion: still pictures that jump, dissolve or change
places do that too. So an object must be in sight, one body, at a speed of its family in every short
while, and change its step seldom. Speeds of `fall` and `ramp` grow from rest:

    |v| = sqrt(2 a s)     at the distance s from the start, on the way down and after each bounce

The bounds are the world's own (`scenes`), with half as much again on either side. What a clip's
events say holds as well: what has come out from behind a bar is in sight, what has not met a wall
does not come back. Where a clip shows too little to tell, no direction is claimed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.worlds import palette

MIN_FRAMES = 5  # of fewer, too few orders are out of order
MIN_SECONDS = 0.6  # in less, the slow cover half of their size: a crossfade looks the same
SEEN = 0.15  # of an object's area, from which on its place counts

_SLACK = 0.03  # world units that a step may be too long: a pixel of 32
_WHILE = 0.3  # seconds over which a speed is measured
_SHORT_WHILE = 0.2  # the same where a bar leaves less time
_TELLING = 0.04  # world units that the slowest of a family covers where its speed can be told
_HIDDEN = 0.45  # seconds for which a bar may hide most of an object, from and to a frame
_COVERED = 0.15  # seconds in which an object that is not yet wholly hidden may be missed
_EMERGED = 0.3  # of an object that has come out by half, where blur takes some
_BACK = 0.05  # world units that noise may throw a place back
_UNSEEN = 0.1  # of the frames in which an object that nothing hides may be missed
_BAR = 0.45  # world units of a bar, across which what is seen of an object leaps
_SPREAD = 1.3  # times its usual variance over area, with
_SOLID = 0.85  # of its usual coverage: two bodies that fade, or one that is smeared
_STRIP_SOLID = 0.75  # the same of what a bar leaves to see
_MARRED = 0.15  # of the frames that may be so: a codec mars one of nine
_STEADY = 0.5  # slowest over fast speed of one clip, where speed is constant by its law
_RESTLESS = 0.85  # changes of step over steps; 0.65 in lively clips, 1.0 at least out of order


@dataclasses.dataclass(frozen=True, eq=False)
class Track:
  """One object through a video.

  Attributes:
    colour, shape: names of `palette`.
    direction: that of the first leg, None if it hardly moves.
    centroid: of what is seen of it, (x, y) in world units [F, 2], nan where that is too little.
    area: square world units [F].
    spread: variance of its pixels' places over their area [F], about 1/6 for one body.
    solid: mean coverage of its pixels, weighted by coverage [F], 1 for a crisp opaque body.
    share: of all coloured pixels.
  """

  colour: str
  shape: str
  direction: str | None
  centroid: np.ndarray
  area: np.ndarray
  spread: np.ndarray
  solid: np.ndarray
  share: float


class _Law(NamedTuple):
  """How a family moves.

  Attributes:
    slow, fast: bounds of the speed in world units per second, or of sqrt(a) where it starts from
      rest; of `collide` the sum over both objects. `fast` grows with the frame's longer side.
    from_rest: the speed grows with the distance from the start, which an elastic object returns to.
    steady: the speed, or the acceleration, is the same throughout.
    hidden: a bar may hide it.
  """

  slow: float
  fast: float
  from_rest: bool = False
  steady: bool = False
  hidden: bool = False


_LAWS = {
  "drift": _Law(0.14, 0.63, steady=True),
  "fall": _Law(0.55, 2.4, from_rest=True, steady=True),
  "ramp": _Law(0.5, 2.4, from_rest=True, steady=True),
  "collide": _Law(0.15, 3.0),
  "occlude": _Law(0.1, 1.3, hidden=True),
}


def is_too_short(attributes: Mapping) -> bool:
  """Says whether no clip of these attributes can show its motion: it is brief, or ends hidden.

  Behind a bar at the end, an object that stops, vanishes or goes on there looks the same.
  """
  hides = _LAWS[attributes["family"]].hidden
  events = attributes["events"]
  return attributes["seconds"] < MIN_SECONDS or (
    hides and events["hidden"] > 0 and not events["emerged"]
  )


def find_fault(
  tracks: Sequence[Track],
  family: str,
  seconds: float,
  side: tuple[float, float],
  events: Mapping[str, int],
) -> str | None:
  """Names the first thing about the motion of all objects that cannot be.

  Args:
    tracks: the objects of one clip of at least two frames.
    family: a name of `scenes.FAMILIES`.
    seconds: from the first frame to the last.
    side: width and height of the frame in world units.
    events: counts by the last frame, as `Scene.events` has them.
  Returns:
    "vanishes", "is not one body", "jumps", "stands still", "changes speed" or "goes to and fro";
    None if nothing is wrong.
  """
  law, frames = _LAWS[family], len(tracks[0].area)
  pause = seconds / (frames - 1)
  speeds = _measure_speeds(tracks, law, pause)
  checks = {
    "vanishes": any(_vanishes(one, law, pause, events) for one in tracks),
    "is not one body": any(_dissolves(one, law) for one in tracks),
    "jumps": any(_jumps(one, law, pause, max(side)) for one in tracks),
    "stands still": bool((speeds < law.slow).any()),
    "changes speed": law.steady and _varies(speeds),
    "goes to and fro": _goes_to_and_fro(tracks)
    or (law.hidden and not events["bounces"] and any(_comes_back(one) for one in tracks)),
  }
  return next((fault for fault, found in checks.items() if found), None)


def _vanishes(track: Track, law: _Law, pause: float, events: Mapping[str, int]) -> bool:
  unseen = np.isnan(track.centroid[:, 0])
  if not law.hidden:
    return bool(unseen.mean() > _UNSEEN)
  edges = np.flatnonzero(np.diff(np.concatenate([[False], unseen, [False]])))
  longest = float((edges[1::2] - edges[::2]).max(initial=0) - 1) * pause
  if not events["hidden"]:
    return longest > _COVERED
  out = track.area[-1] >= _EMERGED * np.percentile(track.area, 90)
  stays_out = events["emerged"] > 0 and not events["bounces"]
  return longest > _HIDDEN or (stays_out and not out)


def _comes_back(track: Track) -> bool:
  """Whether the object is ever behind where it was, along its first leg."""
  if track.direction is None:
    return False
  place = track.centroid[~np.isnan(track.centroid[:, 0])]
  along = place @ np.array(palette.DIRECTIONS[track.direction], float)
  return bool((along < np.maximum.accumulate(along) - _BACK).any())


def _dissolves(track: Track, law: _Law) -> bool:
  """Whether what is seen in some frames is smeared or faded beside the other frames."""
  whole = track.area >= np.percentile(track.area, 90) / 2
  spread, solid = track.spread[whole], track.solid[whole]
  solid = solid / np.percentile(solid, 80)
  if law.hidden:  # what a bar leaves of a body is a strip, which is spread out anyway
    return bool((solid < _STRIP_SOLID).mean() > _MARRED)
  spread = spread / np.percentile(spread, 20)
  return bool(((spread > _SPREAD) & (solid < _SOLID)).mean() > _MARRED)


def _paces(track: Track, law: _Law, pause: float) -> tuple[np.ndarray, np.ndarray]:
  """Length of each step between two frames [F-1], nan where unseen, and what it is measured in:
  the seconds, or what sqrt(2 s) integrates to over them."""
  step = np.linalg.norm(np.diff(track.centroid, axis=0), axis=-1)
  if not law.from_rest:
    return step, np.full(len(step), pause)
  seen = track.centroid[~np.isnan(track.centroid[:, 0])]
  away = np.linalg.norm(track.centroid - seen[0], axis=-1)
  return step, np.sqrt(away[1:] + away[:-1]) * pause


def _jumps(track: Track, law: _Law, pause: float, side: float) -> bool:
  """Whether a step is longer than the family's fastest; past unseen frames, behind a bar or not."""
  seen = np.flatnonzero(~np.isnan(track.centroid[:, 0]))
  gap = np.diff(seen)
  place = track.centroid[seen]
  step = np.linalg.norm(np.diff(place, axis=0), axis=-1)
  room = law.fast * side * pause * gap.astype(float)
  if law.from_rest:
    away = np.linalg.norm(place - place[0], axis=-1)
    room = room * np.sqrt(away[1:] + away[:-1])
  if law.hidden:
    room = room + np.where(gap > 1, _BAR, 0)
  return bool((step > room + _SLACK).any())


def _measure_speeds(tracks: Sequence[Track], law: _Law, pause: float) -> np.ndarray:
  """Speeds over all short whiles in which the objects are seen and their speed can be told.

  Of several objects it is the sum: one may hand all of its speed to another.
  """
  paces = [_paces(one, law, pause) for one in tracks]
  step, measure = np.sum([pace[0] for pace in paces], axis=0), paces[0][1]
  length = max(2, int(np.ceil((_SHORT_WHILE if law.hidden else _WHILE) / pause)))
  ones = np.ones(max(1, min(length, len(measure) // 2)))
  covered, expected = (np.convolve(each, ones, "valid") for each in (step, measure))
  told = ~np.isnan(covered) & (expected > 0)
  if law.from_rest:
    told &= expected * law.slow > _TELLING
  return covered[told] / expected[told]


def _varies(speeds: np.ndarray) -> bool:
  return len(speeds) > 0 and bool(speeds.min() < _STEADY * np.percentile(speeds, 80))


def _goes_to_and_fro(tracks: Sequence[Track]) -> bool:
  """Whether the objects change their step by as much as they step, all in all.

  A turn changes it by two steps. Frames in any order change it by one and a half at each.
  """
  steps = [np.diff(one.centroid, axis=0) for one in tracks]
  changes = [np.diff(one, axis=0) for one in steps]
  covered, changed = (
    sum(np.nansum(np.linalg.norm(one, axis=-1)) for one in each) for each in (steps, changes)
  )
  return bool(changed > _RESTLESS * covered)

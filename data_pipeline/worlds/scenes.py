"""The families of physworld: each draws a little world and knows its motion for all time.

A scene does not know how it will be filmed: frames, fps and pixels come later, so the same index
shows the same world at any rate, length and resolution. Only the aspect ratio matters, because it
says where the walls are. Lengths are world units (`palette`), times seconds; t = 0 is the first
frame.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from data_pipeline.worlds import motion, palette
from data_pipeline.worlds.draws import Draws

Line = tuple[float, float, float, float]  # start, speed, low and high end on one axis
Path = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # time -> place, velocity


@dataclasses.dataclass(frozen=True)
class Body:
  """One object. `heading` is the direction in which it sets off, None if it rests."""

  colour: str
  shape: str
  size: str
  angle: float
  heading: str | None
  path: Path

  @property
  def radius(self) -> float:
    return palette.SIZES[self.size]

  @property
  def reach(self) -> tuple[float, float, float, float]:
    """To the left, to the right, up and down."""
    return palette.reach(self.shape, self.radius, self.angle)


@dataclasses.dataclass(frozen=True)
class Scene:
  """A world: bodies, perhaps an occluder (left, top, right, bottom), a ramp (y at x=0, slope).

  `events(seconds)` counts what has happened by then, e.g. {"bounces": 2}; every family has its
  own keys.
  """

  family: str
  bodies: tuple[Body, ...]
  events: Callable[[float], dict[str, int]]
  occluder: tuple[float, float, float, float] | None = None
  ramp: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class _Look:
  colour: str
  shape: str
  size: str

  @property
  def radius(self) -> float:
    return palette.SIZES[self.size]

  @property
  def mass(self) -> float:
    return palette.area(self.shape, self.radius)

  def reach(self, angle: float = 0.0) -> tuple[float, float, float, float]:
    return palette.reach(self.shape, self.radius, angle)


def _draw_look(draws: Draws, sizes: Sequence[str], room_for_large: bool = True) -> _Look:
  """Draws one of `sizes`; where a large one would not fit, it is small whatever they are."""
  colour = draws.choose("object", list(palette.COLOURS))
  shape = draws.choose("object", palette.SHAPES)
  size = draws.choose("object", sizes)
  return _Look(colour, shape, size if room_for_large else "small")


def _along(reach: tuple[float, float, float, float], axis: int) -> tuple[float, float]:
  """Reach towards smaller and larger coordinates on an axis (0 is x)."""
  return reach[2 * axis], reach[2 * axis + 1]


def _join(axis: int, along: np.ndarray, across: np.ndarray | float) -> np.ndarray:
  pair = np.broadcast_arrays(along, across)
  return np.stack(pair if axis == 0 else pair[::-1], axis=-1)


def _straight(axis: int, along: Line, across: Line) -> Path:
  """Constant velocity between walls on both axes."""

  def path(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, v = motion.bounce_between(*along, time=time)
    y, w = motion.bounce_between(*across, time=time)
    return _join(axis, x, y), _join(axis, v, w)

  return path


def drift(draws: Draws, side: tuple[float, float], sizes: Sequence[str]) -> Scene:
  """Constant velocity between walls: over 28 % of the frame a second, first wall after 1.05 s."""
  look = _draw_look(draws, sizes)
  heading = draws.choose("motion", list(palette.DIRECTIONS))
  axis = 0 if heading in ("left", "right") else 1
  sign = sum(palette.DIRECTIONS[heading])
  before, after = _along(look.reach(), axis)
  low, high = before, side[axis] - after
  speed = draws.between("motion", 0.28, 0.42) * side[axis]
  offset = draws.unit("motion") * (high - low - 1.05 * speed)
  along = (low + offset if sign > 0 else high - offset, sign * speed, low, high)
  before, after = _along(look.reach(), 1 - axis)
  low, high = before, side[1 - axis] - after
  place, sideways = draws.between("motion", low, high), draws.between("motion", -0.15, 0.15)
  across = (place, sideways * speed, low, high)

  def events(seconds: float) -> dict[str, int]:
    ahead, aside = motion.wall_hits(*along, seconds), motion.wall_hits(*across, seconds)
    return {"bounces": ahead + aside, "bounces_ahead": ahead}

  body = Body(look.colour, look.shape, look.size, 0.0, heading, _straight(axis, along, across))
  return Scene("drift", (body,), events)


def fall(draws: Draws, side: tuple[float, float], sizes: Sequence[str]) -> Scene:
  """Dropped at rest under gravity, the floor is elastic. It takes 0.75 to 1.2 s to fall."""
  look = _draw_look(draws, sizes)
  left, right, up, down = look.reach()
  top = up + draws.between("motion", 0.0, 0.12) * (side[1] - up - down)
  height = side[1] - down - top
  gravity = 2 * height / draws.between("motion", 0.75, 1.2) ** 2
  x = draws.between("motion", left, side[0] - right)

  def path(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    fallen, speed = motion.bounce_on_floor(height, gravity, time)
    return _join(0, np.full_like(time, x), top + fallen), _join(0, np.zeros_like(time), speed)

  def events(seconds: float) -> dict[str, int]:
    return {"bounces": motion.floor_hits(height, gravity, seconds)}

  return Scene("fall", (Body(look.colour, look.shape, look.size, 0.0, "down", path),), events)


def ramp(draws: Draws, side: tuple[float, float], sizes: Sequence[str]) -> Scene:
  """From rest down an incline in 0.9 to 1.3 s; the wall at the bottom is elastic."""
  look = _draw_look(draws, sizes)
  heading = draws.choose("motion", ("left", "right"))
  sign = sum(palette.DIRECTIONS[heading])
  slope = min(draws.between("motion", 0.3, 0.5), (side[1] - 2.2 * look.radius) / side[0])
  tilt = math.atan(slope)
  angle = sign * tilt
  left, right, _, _ = look.reach(angle)
  behind, ahead = (left, right) if sign > 0 else (right, left)
  start = behind + draws.between("motion", 0.0, 0.1) * (side[0] - left - right)
  length = (side[0] - ahead - start) / math.cos(tilt)
  acceleration = 2 * length / draws.between("motion", 0.9, 1.3) ** 2
  surface = side[1] * 0.98 - slope * side[0]  # height of the surface at the upper end
  lift = palette.foot(look.shape, look.radius) / math.cos(tilt)

  def path(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    slid, speed = motion.bounce_on_floor(length, acceleration, time)
    far, fast = start + slid * math.cos(tilt), speed * math.cos(tilt)
    x = far if sign > 0 else side[0] - far
    return _join(0, x, surface + slope * far - lift), _join(0, sign * fast, slope * fast)

  def events(seconds: float) -> dict[str, int]:
    return {"bounces": motion.floor_hits(length, acceleration, seconds)}

  body = Body(look.colour, look.shape, look.size, angle, heading, path)
  line = (surface, slope) if sign > 0 else (surface + slope * side[0], -slope)
  return Scene("ramp", (body,), events, ramp=line)


def occlude(draws: Draws, side: tuple[float, float], sizes: Sequence[str]) -> Scene:
  """Crosses the frame behind a bar that hides it for about 0.1 s; crossing takes 0.95 to 1.25 s."""
  heading = draws.choose("motion", list(palette.DIRECTIONS))
  axis = 0 if heading in ("left", "right") else 1
  sign = sum(palette.DIRECTIONS[heading])
  look = _draw_look(draws, sizes, room_for_large=side[axis] >= 1.55)
  before, after = _along(look.reach(), axis)
  low, high = before, side[axis] - after
  thick = before + after + 0.06
  spare = max((side[axis] - thick) / 2 - before - after, 0.0)  # room beside the bar for all of it
  near = side[axis] / 2 + draws.between("motion", -spare, spare) - thick / 2
  far = near + thick
  speed = sign * (high - low) / draws.between("motion", 0.95, 1.25)
  along = (low if sign > 0 else high, speed, low, high)
  before, after = _along(look.reach(), 1 - axis)
  place = draws.between("motion", before, side[1 - axis] - after)
  across = (place, 0.0, before, side[1 - axis] - after)

  def events(seconds: float) -> dict[str, int]:
    inside, outside = (near + low, far) if sign > 0 else (far - (side[axis] - high), near)
    hidden = (inside - along[0]) / speed <= seconds
    emerged = (outside - along[0]) / speed <= seconds  # more than half of it is in sight again
    bounces = motion.wall_hits(*along, seconds)
    return {"bounces": bounces, "hidden": int(hidden), "emerged": int(emerged)}

  bar = (near, 0.0, far, side[1]) if axis == 0 else (0.0, near, side[0], far)
  body = Body(look.colour, look.shape, look.size, 0.0, heading, _straight(axis, along, across))
  return Scene("occlude", (body,), events, occluder=bar)


def _draw_pair(
  draws: Draws, axis: int, length: float, sizes: Sequence[str]
) -> tuple[_Look, _Look]:
  """Two looks whose colours are at least two steps apart round the hue circle."""
  first, second = (_draw_look(draws, sizes, length >= 1.55) for _ in range(2))
  names = list(palette.COLOURS)
  step = 2 + int(draws.unit("object") * (len(names) - 3))
  other = names[(names.index(first.colour) + step) % len(names)]
  return first, dataclasses.replace(second, colour=other)


def collide(draws: Draws, side: tuple[float, float], sizes: Sequence[str]) -> Scene:
  """Head-on elastic collision on the frame's longer axis; masses are as areas, walls reflect."""
  axis = int(side[1] > side[0]) if side[0] != side[1] else draws.choose("motion", (0, 1))
  looks = _draw_pair(draws, axis, side[axis], sizes)
  reaches = [_along(look.reach(), axis) for look in looks]
  low = (reaches[0][0], reaches[1][0])
  high = (side[axis] - reaches[0][1], side[axis] - reaches[1][1])
  contact = palette.contact_distance(*((k.shape, k.radius) for k in looks), horizontal=axis == 0)
  spare = high[1] - low[0] - contact
  gap = min(spare, 0.6)
  start = low[0] + draws.unit("motion") * (spare - gap)
  closing = gap / draws.between("motion", 0.45, 0.6)
  shares = draws.choose("motion", ("both", "both", "first", "second"))
  share = {"both": draws.between("motion", 0.4, 0.6), "first": 1.0, "second": 0.0}[shares]
  pair = motion.Pair(
    start=(start, start + contact + gap),
    speed=(share * closing, (share - 1) * closing),
    mass=(looks[0].mass, looks[1].mass),
    low=low,
    high=high,
    contact=contact,
  )
  edges = [_along(look.reach(), 1 - axis) for look in looks]
  before, after = (max(reach) for reach in zip(*edges, strict=True))
  across = draws.between("motion", before, side[1 - axis] - after)

  def path(time: np.ndarray, body: int) -> tuple[np.ndarray, np.ndarray]:
    place, speed = pair.at(time)
    return _join(axis, place[:, body], across), _join(axis, speed[:, body], 0.0)

  def events(seconds: float) -> dict[str, int]:
    when, _, _, kinds = pair.events(seconds)
    done = [kind for kind, t in zip(kinds, when, strict=True) if t <= seconds]
    return {"bounces": done.count("wall"), "collisions": done.count("collision")}

  towards = (("right", "left"), ("down", "up"))[axis]
  bodies = tuple(
    Body(
      k.colour,
      k.shape,
      k.size,
      0.0,
      towards[i] if pair.speed[i] else None,
      functools.partial(path, body=i),
    )
    for i, k in enumerate(looks)
  )
  return Scene("collide", bodies, events)


FAMILIES: dict[str, Callable[[Draws, tuple[float, float], Sequence[str]], Scene]] = {
  "drift": drift,
  "fall": fall,
  "collide": collide,
  "occlude": occlude,
  "ramp": ramp,
}

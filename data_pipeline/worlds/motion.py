"""Closed forms and events of one-dimensional mechanics: what every family moves by.

All motion is lossless: walls and floors reflect, collisions are elastic. Times are seconds.
"""

import dataclasses
import math

import numpy as np


def bounce_between(
  start: float, speed: float, low: float, high: float, time: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Constant speed between two reflecting walls (a triangle wave).

  Returns:
    Position and velocity, in the shape of `time`.
  """
  room, ahead = high - low, np.sign(speed) or 1.0
  behind = low if ahead > 0 else high  # the wall it comes from: one that starts there leaves it
  unfolded = (ahead * (start - behind) + abs(speed) * time) / room
  wall = np.floor(unfolded)
  back = wall % 2 == 1
  along = unfolded - wall
  position = behind + ahead * room * np.where(back, 1 - along, along)
  return position, np.where(back, -speed, speed)


def wall_hits(start: float, speed: float, low: float, high: float, seconds: float) -> int:
  """How often `bounce_between` meets a wall within (0, seconds]."""
  if speed == 0:
    return 0
  ahead = high - start if speed > 0 else start - low
  beyond = abs(speed) * seconds - ahead
  return 0 if beyond < 0 else 1 + math.floor(beyond / (high - low))


def bounce_on_floor(
  height: float, acceleration: float, time: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Dropped at rest, reflected by an elastic floor for ever: parabolas of period 2 sqrt(2 h / a).

  Returns:
    Distance fallen (0 at the start, `height` at the floor) and its velocity, in the shape of
    `time`.
  """
  fall = math.sqrt(2 * height / acceleration)
  phase = (time + fall) % (2 * fall) - fall
  return acceleration * phase**2 / 2, acceleration * phase


def floor_hits(height: float, acceleration: float, seconds: float) -> int:
  """How often `bounce_on_floor` meets the floor within (0, seconds]."""
  fall = math.sqrt(2 * height / acceleration)
  return math.floor((seconds + fall) / (2 * fall))


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two bodies on a line between walls, the first on the lower side.

  Attributes:
    start, speed, mass, low, high: of each body; low and high bound its centroid.
    contact: distance of the centroids when the bodies touch.
  """

  start: tuple[float, float]
  speed: tuple[float, float]
  mass: tuple[float, float]
  low: tuple[float, float]
  high: tuple[float, float]
  contact: float

  def events(self, seconds: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Plays wall hits and elastic collisions in order.

    Returns:
      time [e], position [e, 2], velocity after the event [e, 2] and kind ("start", "collision",
      "wall"), up to the first event past `seconds`.
    """
    time, place, speed = 0.0, np.array(self.start), np.array(self.speed)
    log, kinds = [(time, place, speed)], ["start"]
    while time <= seconds:
      wait, kind = self._next(place, speed)
      if math.isinf(wait):
        break
      time, place = time + wait, place + speed * wait
      speed = self._collide(speed) if kind == "collision" else self._reflect(place, speed)
      log.append((time, place, speed))
      kinds.append(kind)
    times, places, speeds = zip(*log, strict=True)
    return np.array(times), np.stack(places), np.stack(speeds), kinds

  def at(self, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities [F, 2] at times [F]."""
    when, place, speed, _ = self.events(float(time.max()))
    last = np.searchsorted(when, time, side="right") - 1
    return place[last] + speed[last] * (time - when[last])[:, None], speed[last]

  def _next(self, place: np.ndarray, speed: np.ndarray) -> tuple[float, str]:
    closing = speed[0] - speed[1]
    gap = max(place[1] - place[0] - self.contact, 0.0)
    waits = [(gap / closing, "collision")] if closing > 1e-12 else []
    for x, v, low, high in zip(place, speed, self.low, self.high, strict=True):
      if abs(v) > 1e-12:
        waits.append((max((high - x if v > 0 else low - x) / v, 0.0), "wall"))
    return min(waits, default=(math.inf, "none"))

  def _reflect(self, place: np.ndarray, speed: np.ndarray) -> np.ndarray:
    outwards = ((place >= np.array(self.high) - 1e-9) & (speed > 0)) | (
      (place <= np.array(self.low) + 1e-9) & (speed < 0)
    )
    return np.where(outwards, -speed, speed)

  def _collide(self, speed: np.ndarray) -> np.ndarray:
    """Elastic: every velocity is mirrored in that of the centre of mass."""
    mass = np.array(self.mass)
    return 2 * (mass @ speed) / mass.sum() - speed

"""The words of physworld: colours, shapes, sizes, directions, and the shapes' plane geometry.

Lengths are world units: 1 is the shorter side of the frame; x points right, y down, the origin is
the top left corner. A shape of radius r is a circle of radius r, a square of half side 0.9 r or
an upright equilateral triangle of circumradius 1.25 r; its position is its centroid.
"""

import functools
import math

import numpy as np

# Hues lie at least 28 degrees apart, so that they survive a VAE and H.264's halved chroma
# resolution.
COLOURS: dict[str, tuple[int, int, int]] = {
  "red": (222, 24, 32),
  "orange": (255, 122, 0),
  "yellow": (246, 230, 16),
  "green": (28, 172, 48),
  "cyan": (0, 204, 214),
  "blue": (36, 66, 232),
  "purple": (142, 40, 216),
  "pink": (255, 84, 184),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle")
SIZES: dict[str, float] = {"small": 0.16, "large": 0.24}
DIRECTIONS: dict[str, tuple[int, int]] = {
  "left": (-1, 0),
  "right": (1, 0),
  "up": (0, -1),
  "down": (0, 1),
}

_SQUARE = 0.9
_TRIANGLE = 1.25
_ROOT3 = math.sqrt(3.0)


def corners(shape: str, radius: float, angle: float) -> np.ndarray:
  """Corners of a square or triangle about its centroid.

  Args:
    angle: radians, clockwise on the screen.
  Returns:
    [corners, 2] of (x, y); a circle has none: [0, 2].
  """
  if shape == "circle":
    return np.zeros((0, 2))
  if shape == "square":
    around, reach = np.pi / 4 + np.arange(4) * np.pi / 2, _SQUARE * math.sqrt(2.0) * radius
  else:
    around, reach = -np.pi / 2 + np.arange(3) * 2 * np.pi / 3, _TRIANGLE * radius
  return reach * np.stack([np.cos(around + angle), np.sin(around + angle)], axis=-1)


@functools.lru_cache(maxsize=4096)
def reach(shape: str, radius: float, angle: float) -> tuple[float, float, float, float]:
  """How far a shape reaches from its centroid to the left, right, up and down; all positive."""
  if shape == "circle":
    return radius, radius, radius, radius
  x, y = corners(shape, radius, angle).T
  return float(-x.min()), float(x.max()), float(-y.min()), float(y.max())


def foot(shape: str, radius: float) -> float:
  """Distance from the centroid to the ground that the shape stands on."""
  return {"circle": 1.0, "square": _SQUARE, "triangle": _TRIANGLE / 2}[shape] * radius


def area(shape: str, radius: float) -> float:
  """Area, and so the mass at density 1."""
  if shape == "circle":
    return math.pi * radius**2
  if shape == "square":
    return (2 * _SQUARE * radius) ** 2
  return 3 * _ROOT3 / 4 * (_TRIANGLE * radius) ** 2


def radius_of_area(shape: str, size: float) -> float:
  """Inverse of `area`."""
  return math.sqrt(size / area(shape, 1.0))


def signed_distance(
  shape: str, x: np.ndarray, y: np.ndarray, radius: float, angle: float
) -> np.ndarray:
  """Distance to the outline, negative inside (a lower bound outside, near corners).

  Args:
    x: offsets from the centroid, broadcast against `y`.
  """
  if shape == "circle":
    return np.sqrt(x * x + y * y) - np.asarray(radius, x.dtype)
  if angle:
    cosine, sine = np.asarray([math.cos(angle), math.sin(angle)], x.dtype)
    x, y = x * cosine + y * sine, y * cosine - x * sine
  if shape == "square":
    return np.maximum(abs(x), abs(y)) - np.asarray(_SQUARE * radius, x.dtype)
  slanted = abs(x) * np.asarray(_ROOT3 / 2, x.dtype) - y * np.asarray(0.5, x.dtype)
  return np.maximum(slanted, y) - np.asarray(_TRIANGLE / 2 * radius, x.dtype)


def _profile(shape: str, radius: float, across: np.ndarray, side: str) -> np.ndarray:
  """Reach of an upright shape towards `side` at offsets `across`; -inf where it has no point."""
  if shape == "circle":
    value = np.sqrt(np.maximum(radius**2 - across**2, 0))
    return np.where(abs(across) <= radius, value, -np.inf)
  if shape == "square":
    return np.where(abs(across) <= _SQUARE * radius, _SQUARE * radius, -np.inf)
  big = _TRIANGLE * radius
  if side in ("left", "right"):
    return np.where((across >= -big) & (across <= big / 2), (across + big) / _ROOT3, -np.inf)
  value = big - _ROOT3 * abs(across) if side == "up" else np.full_like(across, big / 2)
  return np.where(abs(across) <= _ROOT3 / 2 * big, value, -np.inf)


@functools.lru_cache(maxsize=1024)
def contact_distance(
  first: tuple[str, float], second: tuple[str, float], horizontal: bool
) -> float:
  """Distance of two centroids on one line at which the upright shapes touch.

  Args:
    first: (shape, radius) of the one on the left (or above).
    second: (shape, radius) of the one on the right (or below).
  """
  sides = ("right", "left") if horizontal else ("down", "up")
  span = 1.5 * max(first[1], second[1])
  across = np.linspace(-span, span, 1201)
  touching = _profile(*first, across, sides[0]) + _profile(*second, across, sides[1])
  return float(touching.max())

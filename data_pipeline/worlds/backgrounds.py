"""Backdrops and scenery: muted greys, so that saturation alone tells the objects from the rest."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipeline.worlds.draws import Draws
from data_pipeline.worlds.scenes import Scene

STYLES = ("solid", "gradient", "checker", "stripes", "noise")
_CELLS = 7  # values of soft noise along the shorter side


@dataclasses.dataclass(frozen=True)
class Backdrop:
  """A style between two greys (RGB in 0..255, at most 12 apart within a grey).

  Attributes:
    tone: word for the mean brightness: "dark grey", "grey" or "light grey".
    turn: radians, direction of gradient and stripes.
    cell: side of a checker or width of a stripe, world units.
    knots: values in 0..1 of the soft noise [rows, columns].
    scenery: grey of occluder and ramp, far from both.
  """

  style: str
  tone: str
  greys: np.ndarray
  turn: float
  cell: float
  knots: np.ndarray
  scenery: float

  @property
  def scenery_word(self) -> str:
    return "dark" if self.scenery < 128 else "light"


def draw_backdrop(draws: Draws, styles: Sequence[str]) -> Backdrop:
  """Draws a backdrop of one of `styles` from the clip's background stream."""
  style = draws.choose("background", tuple(styles))
  middle, apart = draws.between("background", 62, 192), draws.between("background", 14, 26)
  tints = [draws.between("background", -6, 6) for _ in range(3)]
  greys = middle + np.array([[-apart], [apart]]) + np.array(tints)
  if style == "solid":
    greys = greys[::-1] * 0 + middle + np.array(tints)
  tone = "dark grey" if middle < 105 else "light grey" if middle > 150 else "grey"
  turn = draws.choose("background", (0, 1, 2, 3)) * np.pi / 4
  cell = draws.between("background", 0.12, 0.24)
  knots = _knots(draws) if style == "noise" else np.zeros((0, 0))
  return Backdrop(style, tone, greys, turn, cell, knots, 236.0 if middle < 127 else 22.0)


def _knots(draws: Draws) -> np.ndarray:
  """A soft cloud that tiles: a few sine waves with drawn phases."""
  phase = 2 * np.pi * np.array([draws.unit("background") for _ in range(3)])
  y, x = np.mgrid[0:_CELLS, 0:_CELLS] * (2 * np.pi / _CELLS)
  field = np.sin(x + phase[0]) * np.cos(y + phase[1]) + np.sin(2 * y - x + phase[2])
  return (field - field.min()) / (field.max() - field.min())


def _interpolate_knots(knots: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Bilinear, repeated beyond one world unit. x [w], y [h] in world units -> [h, w]."""

  def weights(at: np.ndarray) -> np.ndarray:
    place = at * _CELLS
    cell = np.floor(place).astype(int)
    table = np.zeros((len(at), _CELLS))
    rows = np.arange(len(at))
    table[rows, cell % _CELLS] = 1 - (place - cell)
    table[rows, (cell + 1) % _CELLS] += place - cell
    return table

  return weights(y) @ knots @ weights(x).T


def _soft_step(wave: np.ndarray, cell: float, unit: float) -> np.ndarray:
  """0 and 1 by turns, a cell each, with edges one pixel wide; `wave` is a place in world units."""
  distance = np.abs(wave / cell % 2 - 1) - 0.5  # signed, in cells
  return np.clip(distance * cell * unit + 0.5, 0, 1)


def _blend(backdrop: Backdrop, x: np.ndarray, y: np.ndarray, unit: float) -> np.ndarray:
  """Share of the second grey in each pixel [h, w]; x [w], y [h] are pixel centres, world units."""
  if backdrop.style == "noise":
    return _interpolate_knots(backdrop.knots, x, y)
  if backdrop.style == "checker":
    across, down = (_soft_step(at, backdrop.cell, unit) for at in (x, y))
    return across[None] * (1 - down[:, None]) + (1 - across[None]) * down[:, None]
  along = x[None] * np.cos(backdrop.turn) + y[:, None] * np.sin(backdrop.turn)
  if backdrop.style == "stripes":
    return _soft_step(along, backdrop.cell, unit)
  low, high = along.min(), along.max()
  return (along - low) / max(high - low, 1e-6)


def draw_set(
  backdrop: Backdrop, scene: Scene, height: int, width: int
) -> tuple[np.ndarray, np.ndarray | None]:
  """Paints all that does not move.

  Returns:
    float32 RGB [height, width, 3] in 0..255, and the occluder's coverage [height, width] in 0..1
    or None.
  """
  unit = min(height, width)
  x, y = (np.arange(width) + 0.5) / unit, (np.arange(height) + 0.5) / unit
  if backdrop.style == "solid":
    picture = np.broadcast_to(backdrop.greys[0], (height, width, 3)).astype(np.float32)
  else:
    mix = _blend(backdrop, x, y, unit).astype(np.float32)[..., None]
    first, second = backdrop.greys.astype(np.float32)
    picture = first + mix * (second - first)
  if scene.ramp is not None:
    surface, slope = scene.ramp
    depth = (y[:, None] - surface - slope * x[None]) / np.hypot(1, slope)
    picture = _cover(picture, np.clip(depth * unit + 0.5, 0, 1), backdrop.scenery)
  if scene.occluder is None:
    return picture, None
  left, top, right, bottom = scene.occluder
  across = np.clip((x - left) * unit + 0.5, 0, 1) * np.clip((right - x) * unit + 0.5, 0, 1)
  down = np.clip((y - top) * unit + 0.5, 0, 1) * np.clip((bottom - y) * unit + 0.5, 0, 1)
  bar = (down[:, None] * across[None]).astype(np.float32)
  return _cover(picture, bar, backdrop.scenery), bar


def _cover(picture: np.ndarray, coverage: np.ndarray, grey: float) -> np.ndarray:
  return picture + coverage.astype(np.float32)[..., None] * (np.float32(grey) - picture)

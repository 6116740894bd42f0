"""Judges a video against physworld attributes by its pixels: which colours, shapes, directions.

The backdrop, bars and ramps of physworld are grey, so chroma tells the objects. Hue peaks
separate two objects; each object's coverage is its pixels' chroma along its hue; colour is the
nearest palette hue, shape the best of rendered and blurred templates, direction the first leg of
the centroid's track, where all of the track is a motion that its family allows (`laws`). Made for
blurred and compressed video.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.errors import BadInput
from data_pipeline.worlds import palette
from data_pipeline.worlds.agreement import Look, Looks, compare, looks_of
from data_pipeline.worlds.laws import MIN_FRAMES, SEEN, Track, find_fault

VERSION = 2  # raised whenever the same video and attributes give another verdict or chance
MIN_CHROMA = 40.0  # of 255; no object is paler
MIN_TRAVEL = 0.06  # world units that count as motion
TURN_BACK = 0.08  # world units of return that end the first leg
MIN_AREA = 0.01  # square world units; the smallest shape has 0.05
DOMINANT = 0.6  # share of the coloured pixels that a lone object must have

_FULL_SIDE = 48  # larger videos are averaged down to this side or a little more
_SECOND_SHARE = 0.25  # of the first object's pixels that make a second object
_HUE_APART = np.deg2rad(24.0)
_ANGLES = np.deg2rad([0.0, -24.0, -14.0, 14.0, 24.0])  # ramps tilt what slides on them
_BLURS = (0.5, 0.9, 1.4)  # pixels, standard deviation
_SHAPE_FRAMES = 12


class Verdict(NamedTuple):
  """What a video shows of what was asked.

  Attributes:
    agrees: colour, shape and direction: True if all objects agree, None if nothing is claimed (the
      direction of an image, or of too short a clip). Without the objects, False in all else.
    reasons: of each that is False, what is seen instead: "shows red", "jumps", "no such object";
      of a direction that the attributes name and no clip so short can show, "too short to tell".
  """

  agrees: dict[str, bool | None]
  reasons: dict[str, str]


def _shrink(video: np.ndarray) -> np.ndarray:
  """float32, averaged over square blocks until the shorter side is under twice `_FULL_SIDE`."""
  _, height, width, _ = video.shape
  block = max(1, min(height, width) // _FULL_SIDE)
  h, w = height // block, width // block
  cut = video[:, : h * block, : w * block].reshape(len(video), h, block, w, block, 3)
  return cut.mean((2, 4), dtype=np.float32)


def _chroma(rgb: np.ndarray) -> np.ndarray:
  """Complex chroma: its angle is the hue (red 0), its size 0 for greys and 255 for a pure red."""
  red, green, blue = np.moveaxis(np.asarray(rgb, np.float32), -1, 0)
  return (red - (green + blue) / 2) + 1j * (np.float32(3**0.5 / 2) * (green - blue))


_PALETTE_HUES = np.angle(_chroma(np.array(list(palette.COLOURS.values()))))


def _angle_between(first: np.ndarray, second: np.ndarray | float) -> np.ndarray:
  return abs((first - second + np.pi) % (2 * np.pi) - np.pi)


def nearest_colour(hue: float) -> str:
  """Name of the palette colour whose hue (radians, `numpy.angle` of the chroma) is nearest."""
  return list(palette.COLOURS)[int(_angle_between(_PALETTE_HUES, hue).argmin())]


def _find_hues(hue: np.ndarray) -> list[float]:
  """Hues of at most two objects, the larger first: peaks of the coloured pixels' histogram."""
  bins = 90
  centres = (np.arange(bins) + 0.5) * (2 * np.pi / bins) - np.pi
  counts, _ = np.histogram(hue, bins=bins, range=(-np.pi, np.pi))
  kernel = np.exp(-0.5 * (_angle_between(centres[:, None], centres) / np.deg2rad(7.0)) ** 2)
  first = centres[(kernel @ counts).argmax()]
  mine = _angle_between(centres, first) <= _HUE_APART
  rest = kernel @ np.where(mine, 0, counts)
  second = centres[np.where(mine, -1, rest).argmax()]
  others = counts[_angle_between(centres, second) <= _HUE_APART / 2].sum()
  found = [float(first), float(second)]
  return found if others >= _SECOND_SHARE * counts[mine].sum() else found[:1]


def _cover(chroma: np.ndarray, mine: np.ndarray) -> tuple[np.ndarray, float]:
  """Coverage [F, H, W] in 0..1 of the object that owns the pixels `mine`, and its hue."""
  strength = abs(chroma[mine])
  core = chroma[mine & (abs(chroma) >= np.percentile(strength, 60))].mean()
  along = (chroma * np.conj(core)).real / abs(core) ** 2
  return np.where(mine & (along > 0.25), np.clip(along, 0, 1), 0).astype(np.float32), np.angle(core)


def _locate(cover: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Centroids [F, 2], nan where less than `SEEN` is seen, areas and variances [F], in pixels."""
  _, height, width = cover.shape
  x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
  area = cover.sum((1, 2))
  seen = area >= max(np.percentile(area, 90) * SEEN, 1.0)
  whole = np.where(seen, area, np.nan)
  across, down = cover.sum(1) / whole[:, None], cover.sum(2) / whole[:, None]
  centroid = np.stack([across @ x, down @ y], axis=-1)
  return centroid, area, across @ x**2 + down @ y**2 - (centroid**2).sum(-1)


def _blur_matrix(size: int, sigma: float) -> np.ndarray:
  apart = np.arange(size)[:, None] - np.arange(size)
  weight = np.exp(-0.5 * (apart / sigma) ** 2)
  return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def classify_shape(cover: np.ndarray, centroid: np.ndarray, area: np.ndarray) -> str:
  """The shape whose blurred template of the same area and place differs least from the coverage.

  Args:
    cover: [F, H, W] in 0..1. centroid: pixels [F, 2]. area: pixels [F].
  """
  _, height, width = cover.shape
  whole = np.flatnonzero((area >= 0.85 * np.percentile(area, 80)) & ~np.isnan(centroid[:, 0]))
  whole = whole[np.linspace(0, len(whole) - 1, min(len(whole), _SHAPE_FRAMES)).astype(int)]
  target, size = cover[whole], float(np.median(area[whole]))
  x = (np.arange(width) + 0.5 - centroid[whole, :1]).astype(np.float32)[:, None, :]
  y = (np.arange(height) + 0.5 - centroid[whole, 1:]).astype(np.float32)[:, :, None]
  blurs = [(_blur_matrix(height, sigma), _blur_matrix(width, sigma)) for sigma in _BLURS]

  def misfit(shape: str, angle: float) -> float:
    inside = palette.signed_distance(shape, x, y, palette.radius_of_area(shape, size), angle)
    crisp = np.clip(np.float32(0.5) - inside, 0, 1)
    return min(float(((down @ crisp @ across - target) ** 2).sum()) for down, across in blurs)

  misfits = {
    shape: min(misfit(shape, angle) for angle in (_ANGLES[:1] if shape == "circle" else _ANGLES))
    for shape in palette.SHAPES
  }
  return min(misfits, key=misfits.__getitem__)


def first_direction(centroid: np.ndarray) -> str | None:
  """Direction of the first leg of a track: up to where it turns back, the larger axis decides.

  Args:
    centroid: world units [F, 2]; nan rows are skipped.
  Returns:
    A name of `palette.DIRECTIONS`, or None below `MIN_TRAVEL`.
  """
  place = centroid[~np.isnan(centroid[:, 0])]
  if len(place) < 2:
    return None
  away = np.linalg.norm(place - place[0], axis=-1)
  furthest = np.maximum.accumulate(away)
  back = np.flatnonzero((away < furthest - TURN_BACK) & (furthest >= MIN_TRAVEL))
  leg = slice(0, back[0] if len(back) else len(place))
  end = int(away[leg].argmax())
  if away[end] < MIN_TRAVEL:
    return None
  move = place[end] - place[0]
  return max(palette.DIRECTIONS, key=lambda name: float(np.dot(palette.DIRECTIONS[name], move)))


def track(video: np.ndarray) -> tuple[Track, ...]:
  """Finds at most two coloured objects, the larger first.

  Args:
    video: uint8 [F, H, W, 3], any number of frames and any size.
  Raises:
    BadInput: not such an array.
  """
  if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or video.size == 0:
    raise BadInput(
      f"judge: video {video.dtype}{list(video.shape)} is not uint8 [F, H, W, 3]. Decode it to RGB."
    )
  chroma = _chroma(_shrink(video))
  chroma = chroma - (
    np.median(np.real(chroma)) + 1j * np.median(np.imag(chroma))
  )  # the backdrop's tint
  unit = min(chroma.shape[1:])
  strong = abs(chroma)
  top = np.percentile(strong, 99)
  coloured = strong >= max(MIN_CHROMA, 0.4 * top)
  if top < MIN_CHROMA or not coloured.any():
    return ()
  hue = np.angle(chroma)
  peaks = _find_hues(hue[coloured])
  apart = np.stack([_angle_between(hue, peak) for peak in peaks])
  faint = strong >= max(MIN_CHROMA / 2, 0.15 * top)
  tracks = []
  for i in range(len(peaks)):
    mine = faint & (apart.argmin(0) == i) & (apart[i] <= np.pi / 3)
    cover, tone = _cover(chroma, mine)
    centroid, area, variance = _locate(cover)
    if np.isnan(centroid).all() or area.max() < MIN_AREA * unit**2:
      continue
    place = centroid / unit
    tracks.append(
      Track(
        colour=nearest_colour(tone),
        shape=classify_shape(cover, centroid, area),
        direction=first_direction(place),
        centroid=place,
        area=area / unit**2,
        spread=variance / np.maximum(area, 1.0),
        solid=(cover**2).sum((1, 2)) / np.maximum(area, 1.0),
        share=float((coloured & mine).sum() / coloured.sum()),
      )
    )
  return tuple(tracks)


def judge(video: np.ndarray, attributes: Mapping) -> Verdict:
  """Says which attributes the video follows, and of those that it does not, why.

  Args:
    video: uint8 [F, H, W, 3].
    attributes: `WorldClip.attributes` or `Description.attributes`.
  Returns:
    The verdict. A direction agrees only where all objects move as their family does.
  """
  asked = looks_of(attributes)
  if 1 < len(video) < MIN_FRAMES:  # a picture shows no motion
    asked = tuple(one._replace(direction=None) for one in asked)
  shown = track(video)
  if len(asked) == 1:
    shown = tuple(one for one in shown if one.share >= DOMINANT)
  fault = _find_fault(shown, asked, video, attributes)
  agrees = compare(
    [Look(one.colour, one.shape, None if fault else one.direction) for one in shown], asked
  )
  reasons = {name: _explain(name, shown, asked) for name, right in agrees.items() if right is False}
  if fault and "direction" in reasons:
    reasons["direction"] = fault
  if agrees["direction"] is None and any(one["direction"] for one in attributes["objects"]):
    reasons["direction"] = "too short to tell"
  return Verdict(agrees, reasons)


def _find_fault(
  shown: Sequence[Track], asked: Looks, video: np.ndarray, attributes: Mapping
) -> str | None:
  """What is wrong with the motion, where one is asked for and the objects are there."""
  frames, height, width, _ = video.shape
  if frames < 2 or len(shown) < len(asked) or all(one.direction is None for one in asked):
    return None
  unit = min(height, width)
  side = (width / unit, height / unit)
  family, seconds, events = (attributes[name] for name in ("family", "seconds", "events"))
  return find_fault(shown, family, seconds, side, events)


def _explain(name: str, shown: Sequence[Track], asked: Looks) -> str:
  if len(shown) < len(asked):
    return "no such object" if len(asked) == 1 else f"{len(shown)} of {len(asked)} objects"
  words = [getattr(one, name) or "no motion" for one in shown]
  return f"shows {' and '.join(words)}"

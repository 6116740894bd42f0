"""What is measured of a clip, and which clips the limits refuse.

Two looks: `MotionMeter` sees all frames, small (motion.py); `look_at` sees a few, whole. Names and
units of all scores are in SCORES.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from data_pipeline.curate.aesthetic import aesthetic_score
from data_pipeline.curate.near import hash_frame
from data_pipeline.curate.nsfw import nsfw_chance
from data_pipeline.curate.picture import (
  Bars,
  bar_share,
  common_bars,
  crop,
  frame_bars,
  measure_picture,
  reduce,
)
from data_pipeline.curate.settings import Letterbox, Limits, Scores
from data_pipeline.curate.text_area import text_area

SCORES = {
  "motion": "mean optical flow, frame diagonals a second",
  "pan_x": "motion of the camera to the right, frame diagonals a second",
  "pan_y": "motion of the camera down, frame diagonals a second",
  "zoom": "growth of the picture by the camera, 1 a second",
  "sharpness": "variance of the Laplacian of the luma, squared grey levels",
  "brightness": "mean luma, 0..1",
  "contrast": "standard deviation of the luma, 0..0.5",
  "letterbox": "share of the source's frame that is black bars, 0..1",
  "text": "share of the frame covered by writing, 0..1, where it is most",
  "nsfw": "probability that a frame is not safe for work, 0..1, where it is highest",
  "aesthetic": "by the user's weights",
}
REASONS = {  # below the minimum, above the maximum
  "motion": ("static", "restless"),
  "sharpness": ("blurred", "noisy"),
  "brightness": ("dark", "glaring"),
  "contrast": ("flat", "harsh"),
  "letterbox": ("no_bars", "letterboxed"),
  "text": ("no_text", "text"),
  "nsfw": ("safe", "nsfw"),
  "aesthetic": ("unaesthetic", "too_aesthetic"),
}
STILL = REASONS["motion"][0]
SMALL = "small_picture"  # between bars that are cut off


class Look(NamedTuple):
  """What a few frames of a clip tell.

  Attributes:
    bars: black bars at the sides, in pixels of the source.
    scores: of the picture (between the bars, when they are to be cut off).
    hashes: perceptual hashes of the picture between the bars, of frames that are not flat.
  """

  bars: Bars
  scores: dict[str, float]
  hashes: tuple[int, ...]


def look_at(frames: Iterable[np.ndarray], settings: Scores) -> Look:
  """Measures a few frames of a clip. Holds them at `settings.side` only.

  Args:
    frames: uint8 RGB [H,W,3], at least one; taken one at a time.
    settings: what is measured.
  Raises:
    BadInput: a package or file that a score needs is missing.
  """
  bars, small, shape = [], [], (1, 1)
  for frame in frames:
    shape = frame.shape[:2]
    bars.append(find_bars(frame, settings))
    small.append(reduce(frame, settings.side))
  common = common_bars(bars)
  pictures = [crop(frame, scale_bars(common, shape, frame.shape[:2])) for frame in small]
  share = bar_share(common, *shape)
  hashes = [value for picture in pictures if (value := hash_frame(picture)) is not None]
  scores = {"letterbox": share} if settings.letterbox.measure else {}
  scores |= _measure(pictures if settings.letterbox.crop else small, settings)
  return Look(common, scores, tuple(hashes))


def find_bars(frame: np.ndarray, settings: Scores) -> Bars | None:
  """The bars of a frame; none where they are not to be measured, None where it is black."""
  is_wanted = settings.letterbox.measure
  return frame_bars(frame, max_luma=settings.letterbox.max_luma) if is_wanted else Bars()


def scale_bars(bars: Bars, shape: tuple[int, int], small: tuple[int, int]) -> Bars:
  """Bars in the pixels of the reduced frame, rounded so that none of them is left."""
  sides = [small[0] / shape[0], small[1] / shape[1]] * 2
  top, left, bottom, right = (-int(-n * k // 1) for n, k in zip(bars, sides, strict=True))
  top, left = min(top, small[0] - 1), min(left, small[1] - 1)
  return Bars(top, left, min(bottom, small[0] - 1 - top), min(right, small[1] - 1 - left))


def _measure(pictures: list[np.ndarray], settings: Scores) -> dict[str, float]:
  """Means over the frames; text and nsfw by the frame where they are most."""
  found = [measure_picture(picture) for picture in pictures]
  scores = {
    name: float(np.mean([row[name] for row in found]))
    for name in ("sharpness", "brightness", "contrast")
    if getattr(settings, name).measure
  }
  if settings.text.measure:
    scores["text"] = max(text_area(picture, side=settings.text.side) for picture in pictures)
  if settings.nsfw.measure:
    scores["nsfw"] = max(map(nsfw_chance, pictures))
  if settings.aesthetic.measure:
    own = dict(encoder=settings.aesthetic.encoder, head=settings.aesthetic.head)
    scores["aesthetic"] = float(np.mean([aesthetic_score(frame, **own) for frame in pictures]))
  return scores


def judge(scores: Mapping[str, float], settings: Scores) -> tuple[str, str] | None:
  """Reason and detail of the first limit that a score breaks; None when all hold.

  Scores that were not measured, such as the motion of an image, break none.
  """
  for name, (low, high) in REASONS.items():
    limits: Limits = getattr(settings, name)
    if name not in scores or not limits.measure:
      continue
    if limits.min is not None and scores[name] < limits.min:
      return low, f"{name} {scores[name]:.4g} is below {limits.min:g} (scores.{name}.min)"
    if limits.max is not None and scores[name] > limits.max:
      return high, f"{name} {scores[name]:.4g} is above {limits.max:g} (scores.{name}.max)"
  return None


def judge_size(bars: Bars, height: int, width: int, letterbox: Letterbox) -> tuple[str, str] | None:
  """Reason and detail where too little is left of a frame without its bars; else None."""
  left = width - bars.left - bars.right, height - bars.top - bars.bottom
  if not any(bars) or min(left) >= letterbox.min_side:
    return None
  size = f"{left[0]}x{left[1]} of {width}x{height} pixels are picture"
  return SMALL, f"{size}, a side is below {letterbox.min_side} (scores.letterbox.min_side)"

"""What single frames tell: black bars, sharpness, brightness, contrast."""

from typing import Any, NamedTuple

import numpy as np

from data_pipeline.errors import BadInput

_DARK = 0.4  # standard deviations above the darkest level that bars may be
_EVEN = 0.1  # of the frame's contrast that is noise on bars


class Bars(NamedTuple):
  """Pixels at each side that belong to black bars."""

  top: int = 0
  left: int = 0
  bottom: int = 0
  right: int = 0


def opencv() -> Any:
  """The module cv2. Raises BadInput: it is not installed."""
  try:
    import cv2
  except ImportError as error:
    raise BadInput("curate: needs OpenCV. Run: pip install 'sora_jax[data]'.") from error
  return cv2


def grey(frame: np.ndarray) -> np.ndarray:
  """Luma of RGB, uint8 [H,W], by the weights of BT.601."""
  return opencv().cvtColor(np.ascontiguousarray(frame), opencv().COLOR_RGB2GRAY)


def reduce(frame: np.ndarray, side: int) -> np.ndarray:
  """The frame with its longer side at most `side` pixels, by averaging areas; never enlarged."""
  height, width = frame.shape[:2]
  longer = max(height, width)
  if longer <= side:
    return frame
  size = (max(1, round(width * side / longer)), max(1, round(height * side / longer)))
  return opencv().resize(frame, size, interpolation=opencv().INTER_AREA)


def frame_bars(frame: np.ndarray, *, max_luma: float) -> Bars | None:
  """Rows and columns at the sides that are black from end to end.

  A line is black when its mean is at most `max_luma` (0..255), and even: with a standard deviation
  of at most a quarter of that, so that a dark sky with some structure is none. Columns are judged
  within the rows of the picture only.

  Args:
    frame: uint8 RGB [H,W,3].
  Returns:
    None for a frame that is black all over: it tells nothing.
  """
  luma = grey(frame)
  rows = np.flatnonzero(~_is_black(luma, 1, max_luma))
  if not rows.size:
    return None
  top, bottom = int(rows[0]), int(rows[-1]) + 1
  columns = np.flatnonzero(~_is_black(luma[top:bottom], 0, max_luma))
  left, right = int(columns[0]), int(columns[-1]) + 1
  return Bars(top, left, luma.shape[0] - bottom, luma.shape[1] - right)


def _is_black(luma: np.ndarray, axis: int, max_luma: float) -> np.ndarray:
  cv2 = opencv()
  count = luma.shape[axis]
  sums = cv2.reduce(luma, axis, cv2.REDUCE_SUM, dtype=cv2.CV_64F).ravel()
  squares = cv2.reduce(np.square(luma, dtype=np.float32), axis, cv2.REDUCE_SUM, dtype=cv2.CV_64F)
  mean = sums / count
  deviation = np.sqrt(np.maximum(squares.ravel() / count - mean**2, 0))
  return (mean <= max_luma) & (deviation <= max_luma / 4)


def dark_bars(luma: np.ndarray) -> Bars | None:
  """Rows and columns at the sides that are dark and even beside the picture's own contrast.

  A line is one when its mean is near the darkest level of the frame and it has a tenth of the
  frame's contrast at most, both as standard deviations: so a dark copy of a film has the bars of
  the original, and noise on bars, or bars that are not quite black, change nothing.

  Args:
    luma: uint8 [H,W], reduced: noise is averaged away in it.
  Returns:
    None for a frame that is flat all over: it tells nothing.
  """
  deviation = float(opencv().meanStdDev(luma)[1][0, 0])
  if deviation < 1:
    return None
  darkest = float(luma.min()) + _DARK * deviation
  even = max(1.0, _EVEN * deviation)
  levels = luma.astype(np.float32)
  rows = np.flatnonzero(~_is_even(levels, 1, darkest, even))
  if not rows.size:
    return None
  top, bottom = int(rows[0]), int(rows[-1]) + 1
  columns = np.flatnonzero(~_is_even(levels[top:bottom], 0, darkest, even))
  if not columns.size:
    return None
  left, right = int(columns[0]), int(columns[-1]) + 1
  return Bars(top, left, luma.shape[0] - bottom, luma.shape[1] - right)


def _is_even(levels: np.ndarray, axis: int, darkest: float, even: float) -> np.ndarray:
  cv2 = opencv()
  mean = cv2.reduce(levels, axis, cv2.REDUCE_AVG).ravel()
  square = cv2.reduce(levels, axis, cv2.REDUCE_SUM2).ravel() / levels.shape[axis]
  return (mean <= darkest) & (square - mean**2 <= even**2)


def common_bars(found: list[Bars | None]) -> Bars:
  """The bars that all frames have: at each side the narrowest. None of them tells: no bars."""
  known = [bars for bars in found if bars is not None]
  return Bars(*(min(side) for side in zip(*known, strict=True))) if known else Bars()


def crop(frame: np.ndarray, bars: Bars) -> np.ndarray:
  """The picture between the bars, a view."""
  height, width = frame.shape[:2]
  return frame[bars.top : height - bars.bottom, bars.left : width - bars.right]


def bar_share(bars: Bars, height: int, width: int) -> float:
  """Share of the frame that is bars, 0..1."""
  inner = (height - bars.top - bars.bottom) * (width - bars.left - bars.right)
  return 1 - inner / (height * width)


def measure_picture(frame: np.ndarray) -> dict[str, float]:
  """Scores of one frame, uint8 RGB [H,W,3].

  Returns:
    `sharpness`: variance of the Laplacian of the luma (Pech-Pacheco et al. 2000, "Diatom
    autofocusing in brightfield microscopy", ICPR), squared grey levels; it depends on the size, so
    frames are compared at one. `brightness`: mean luma, 0..1. `contrast`: standard deviation of the
    luma, 0..0.5.
  """
  luma = grey(frame)
  laplacian = opencv().Laplacian(luma, opencv().CV_64F)
  return dict(
    sharpness=float(laplacian.var()),
    brightness=float(luma.mean() / 255),
    contrast=float(luma.std() / 255),
  )

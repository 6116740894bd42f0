"""Motion of a clip: how much moves in it, and how the camera moves. Dense optical flow (DIS,
Kroeger et al. 2016, arXiv:1603.03590) between small frames about a twelfth of a second apart.
"""

from array import array
from fractions import Fraction
from typing import Any

import numpy as np

from data_pipeline.errors import BadInput

CAMERA = (
  "static", "pan left", "pan right", "pan up", "pan down", "zoom in", "zoom out", "unsteady"
)  # fmt: skip
_PAIRS = 12  # a second, about: half of them missing changes the mean little
_LEAST = 32  # pixels a side that the flow needs; smaller frames are enlarged
_GRID = 8  # pixels between the points that the camera's motion is fitted to
_FITS = 8  # rounds of reweighting
_STEADY = 0.5  # share of the motion's size that its mean must keep to have a direction


class MotionMeter:
  """Takes the frames of a video in order, then measures any range of them.

  Keeps five numbers for every pair of frames, none of the frames.

  Args:
    fps: frames a second.
  Raises:
    BadInput: OpenCV is not installed.
  """

  def __init__(self, fps: Fraction | float):
    try:
      import cv2
    except ImportError as error:
      raise BadInput(
        "scores: motion needs OpenCV. Run: pip install 'sora_jax[data]', or set "
        "curate.scores.motion.measure=False."
      ) from error
    self._cv2: Any = cv2
    self._flow = self._cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    self._gap = max(1, round(fps / _PAIRS))
    self._per_second = float(fps) / self._gap
    self._frames = 0
    self._before: np.ndarray | None = None
    self._pairs: list[int] = []  # number of the later frame
    self._rows = array("d")  # size, camera's x and y, zoom, camera's size: of every pair

  def skip_to(self, number: int) -> None:
    """Says that the next frame is this one, and that nothing joins it to the frames before."""
    self._before, self._frames = None, number

  def add(self, frame: np.ndarray) -> None:
    """Args: frame: uint8 RGB [h,w,3]; all of one size, about 256 pixels wide."""
    if self._frames % self._gap == 0:
      now = self._grey(frame)
      if self._before is not None:
        self._pairs.append(self._frames)
        self._rows.extend(self._compare(self._before, now, frame.shape[:2]))
      self._before = now
    self._frames += 1

  def _grey(self, frame: np.ndarray) -> np.ndarray:
    grey = self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    if min(height, width) >= _LEAST:
      return grey
    return self._cv2.resize(grey, (max(width, _LEAST), max(height, _LEAST)))

  def _compare(self, before: np.ndarray, now: np.ndarray, shape: tuple[int, int]) -> list[float]:
    """One row: in fractions of the frame's diagonal, and of its size for zoom, a pair."""
    flow = self._flow.calc(before, now, None)
    sides = np.array([shape[1] / now.shape[1], shape[0] / now.shape[0]])
    flow = flow * (sides / np.hypot(*shape))
    size = float(np.hypot(flow[..., 0], flow[..., 1]).mean())
    rows, columns = np.mgrid[_GRID // 2 : now.shape[0] : _GRID, _GRID // 2 : now.shape[1] : _GRID]
    points = ((columns - (now.shape[1] - 1) / 2) * sides[0]) + 1j * (
      (rows - (now.shape[0] - 1) / 2) * sides[1]
    )
    points = (points / np.hypot(*shape)).ravel()
    moved = (flow[rows, columns, 0] + 1j * flow[rows, columns, 1]).ravel()
    shift, zoom = fit_camera(points, moved)
    # The scene moves to the right when the camera turns left.
    whole = float(np.abs(shift + zoom * points).mean())
    return [size, -shift.real, -shift.imag, zoom.real, whole]

  def measure(self, start: int, stop: int, *, min_camera: float) -> tuple[dict[str, float], str]:
    """Motion within frames start .. stop-1.

    Args:
      min_camera: slower motion of the camera, in diagonals a second, counts as none.
    Returns:
      Scores, and the camera's motion, one of CAMERA. Scores: `motion`, mean size of the flow;
      `pan_x` and `pan_y`, mean motion of the camera to the right and down; all in frame diagonals
      a second; and `zoom`, relative growth of the picture a second. Empty, and "", for frames that
      hold no pair.
    """
    low = np.searchsorted(self._pairs, start + self._gap)
    high = np.searchsorted(self._pairs, stop)
    if low >= high:
      return {}, ""
    rows = np.asarray(self._rows).reshape(-1, 5)[low:high] * self._per_second
    size, x, y, zoom, _ = rows.mean(0).tolist()
    scores = dict(motion=size, pan_x=x, pan_y=y, zoom=zoom)
    return scores, name_camera(rows[:, 1:], min_camera)


def fit_camera(points: np.ndarray, moved: np.ndarray) -> tuple[complex, complex]:
  """The similarity that most points follow: moved = shift + turn * points.

  Least absolute deviations by iteratively reweighted least squares, in closed form over complex
  numbers; objects that move on their own are outliers as long as the background is most of it.

  Args:
    points: complex [n], places x + iy from the centre.
    moved: complex [n], motion of these places.
  Returns:
    shift; turn, whose real part is the relative growth and whose imaginary part the rotation.
  """
  shift: Any = complex(np.median(np.real(moved)), np.median(np.imag(moved)))
  turn: Any = 0j
  for _ in range(_FITS):
    weight = 1 / (np.abs(moved - shift - turn * points) + 1e-5)
    weight /= weight.sum()
    centre, mean = (weight * points).sum(), (weight * moved).sum()
    spread = (weight * np.abs(points - centre) ** 2).sum()
    turn = (weight * (moved - mean) * (points - centre).conj()).sum() / max(spread, 1e-12)
    shift = mean - turn * centre
  return complex(shift), complex(turn)


def name_camera(rows: np.ndarray, min_camera: float) -> str:
  """The camera's motion in a word.

  Args:
    rows: [pairs, 4]: x, y (diagonals a second), zoom (1 a second), size of the whole motion.
    min_camera: diagonals a second.
  """
  if rows[:, 3].mean() < min_camera:
    return "static"
  x, y, zoom = rows[:, :3].mean(0)
  zoom *= 0.25  # diagonals a second at the mean distance from the centre
  size, name = max(
    (abs(x), "pan right" if x > 0 else "pan left"),
    (abs(y), "pan down" if y > 0 else "pan up"),
    (abs(zoom), "zoom in" if zoom > 0 else "zoom out"),
  )
  is_steady = size >= min_camera and size >= _STEADY * rows[:, 3].mean()
  return name if is_steady else "unsteady"

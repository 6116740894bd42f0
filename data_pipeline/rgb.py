"""Pictures of encoded clips between RGB and 4:2:0, and back for the part that is looked at alone.

Colours are converted exactly (BT.709, limited range), which takes longer than decoding: so of a
window only its own pixels are converted, and what the filters reach around them.
"""

from typing import Any, NamedTuple

import numpy as np
from av import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

_SCALER: dict[str, Any] = {
  "interpolation": Interpolation.BICUBIC
  | Interpolation.ACCURATE_RND
  | Interpolation.BITEXACT
  | Interpolation.FULL_CHR_H_INP  # without these two, flat colours come back 3 levels off
  | Interpolation.FULL_CHR_H_INT,
  "threads": 1,
}
_REACH = 8  # pixels: four of colour, as far as the bicubic filter reads
_ALIGNED = 16  # pixels that one instruction takes: parts begin and end where it would in the whole


class Area(NamedTuple):
  """A rectangle of a picture, in pixels."""

  top: int
  left: int
  height: int
  width: int

  def is_within(self, height: int, width: int) -> bool:
    """Whether it holds a pixel, and all of its pixels are those of a picture."""
    fits = self.top + self.height <= height and self.left + self.width <= width
    return fits and min(self.top, self.left) >= 0 and min(self.height, self.width) > 0

  def cut(self, pixels: np.ndarray) -> np.ndarray:
    """Its part of [..., H, W, 3]."""
    top, left, height, width = self
    return pixels[..., top : top + height, left : left + width, :]


class ToRGB:
  """Converts the decoded frames of one video.

  Args:
    area: what is wanted of every frame.
  """

  def __init__(self, area: Area):
    self._area, self._reformatter = area, VideoReformatter()
    self._part: VideoFrame | None = None  # memory of the part in hand

  def __call__(self, frame: VideoFrame) -> np.ndarray:
    """uint8 RGB [height, width, 3] of the area, equal to that part of the whole frame's."""
    if frame.format.name == "gbrp":
      return _interleave(frame, self._area)
    top, height = _surround(self._area.top, self._area.height, frame.height)
    left, width = _surround(self._area.left, self._area.width, frame.width)
    around = Area(top, left, height, width)
    if around != (0, 0, frame.height, frame.width):
      frame = self._cut(frame, around)
    planes = self._reformatter.reformat(
      frame,
      format="gbrp",  # the same values as rgb24, for which there are no vector instructions
      src_colorspace=Colorspace.ITU709,
      src_color_range=ColorRange.MPEG,
      dst_color_range=ColorRange.JPEG,
      **_SCALER,
    )
    inner = self._area._replace(top=self._area.top - top, left=self._area.left - left)
    return _interleave(planes, inner)

  def _cut(self, frame: VideoFrame, area: Area) -> VideoFrame:
    """A rectangle of a 4:2:0 frame; its sides and corner are even. The next one takes its place."""
    part, size = self._part, (area.width, area.height)
    if part is None or (part.width, part.height, part.format.name) != (*size, frame.format.name):
      part = self._part = VideoFrame(*size, frame.format.name)
    for i, (source, target) in enumerate(zip(frame.planes, part.planes, strict=True)):
      top, left, height, width = area if i == 0 else (side // 2 for side in area)
      inner = _pixels(source)[top : top + height, left : left + width]
      _pixels(target)[:height, :width] = inner
    return part


def _surround(start: int, size: int, whole: int) -> tuple[int, int]:
  """First pixel and size of what is converted, along one axis, for `size` pixels from `start`."""
  first = max(0, start - _REACH) // _ALIGNED * _ALIGNED
  end = -(-(start + size + _REACH) // _ALIGNED) * _ALIGNED
  return first, min(whole, end) - first


def _interleave(frame: VideoFrame, area: Area) -> np.ndarray:
  """uint8 RGB [height, width, 3] of a rectangle of a frame of three planes: G, B, R."""
  top, left, height, width = area
  rgb = np.empty((height, width, 3), np.uint8)
  for channel, plane in zip((1, 2, 0), frame.planes, strict=True):
    rgb[..., channel] = _pixels(plane)[top : top + height, left : left + width]
  return rgb


def _pixels(plane: Any) -> np.ndarray:
  """The memory of a plane: uint8 [rows, bytes a row], of which the first `width` are pixels."""
  return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)


def from_rgb(reformatter: VideoReformatter, pixels: np.ndarray) -> VideoFrame:
  """A 4:2:0 frame of uint8 [H,W,3], both sides even."""
  return reformatter.reformat(
    VideoFrame.from_ndarray(pixels, format="rgb24"),
    format="yuv420p",
    dst_colorspace=Colorspace.ITU709,
    src_color_range=ColorRange.JPEG,
    dst_color_range=ColorRange.MPEG,
    **_SCALER,
  )

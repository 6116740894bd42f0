"""Video of a clip as a compressed file in memory: H.264 in MP4, decoded in bounded memory.

The same frames give the same bytes on any number of cores: one thread, no date, and no encoder name
in container or stream. Time stamps are frame numbers at the clip's rate, by which frames are found.
"""

import contextlib
import dataclasses
import io
import math
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from data_pipeline.errors import BadInput

CODECS = ("h264", "lossless")
MAX_SIDE = 16_384  # pixels, of H.264
_BT709 = 1  # code point of ITU-T H.273 for primaries, transfer function and matrix alike
_RGB, _SRGB = 0, 13  # code points: no matrix; transfer function
_SCALER: dict[str, Any] = {
  "interpolation": Interpolation.BICUBIC
  | Interpolation.ACCURATE_RND
  | Interpolation.BITEXACT
  | Interpolation.FULL_CHR_H_INP  # without these two, flat colours come back 3 levels off
  | Interpolation.FULL_CHR_H_INT,
  "threads": 1,
}
_KEYFRAMES = "64"  # frames between two at most: what is decoded before a window in the middle
_FAILURES = (FFmpegError, LookupError, TypeError, ValueError, ZeroDivisionError)


@dataclasses.dataclass(frozen=True)
class EncodedVideo:
  """Frames of a clip, compressed. In a record it stands where an array would: as `video`.

  Attributes:
    data: an MP4 file, as `encode_video` makes it.
    shape: F, H, W, 3 of the frames; H and W of the picture, without what coding added.
  """

  data: bytes = dataclasses.field(repr=False)
  shape: tuple[int, int, int, int]

  @property
  def dtype(self) -> np.dtype:
    """Of the decoded frames: uint8."""
    return np.dtype(np.uint8)

  @property
  def nbytes(self) -> int:
    """Bytes of the compressed file, not of the frames."""
    return len(self.data)

  def decode(self) -> np.ndarray:
    """All frames: uint8 RGB [F,H,W,3]. Raises as `frames`."""
    return self.window(0, self.shape[0])

  def chunks(self, sizes: Iterable[int]) -> Iterator[np.ndarray]:
    """Frames from the first on, in pieces: only one is held at a time.

    Args:
      sizes: frames of each piece, 1 or more; they must not add up to more than there are.
    Yields:
      uint8 RGB [size,H,W,3].
    Raises:
      BadInput: as `frames`; ValueError: the sizes are not such.
    """
    left = self.shape[0]
    frames = self.frames()
    with contextlib.closing(frames):
      for size in sizes:
        if not 1 <= size <= left:
          raise ValueError(f"video: size={size} of a piece is not in 1..{left}, the frames left.")
        left -= size
        yield self._take(frames, size)
      if not left:
        next(frames, None)  # sees whether there are more than `shape` says

  def window(self, start: int, stop: int) -> np.ndarray:
    """Frames start .. stop-1: uint8 RGB [stop-start,H,W,3]. Raises as `frames`."""
    frames = self.frames(start, stop)
    with contextlib.closing(frames):
      piece = self._take(frames, stop - start)
      next(frames, None)  # sees whether there are more than `shape` says
    return piece

  def _take(self, frames: Iterator[np.ndarray], size: int) -> np.ndarray:
    return np.fromiter(frames, np.dtype((np.uint8, self.shape[1:])), size)

  def frames(self, start: int = 0, stop: int | None = None) -> Generator[np.ndarray, None, None]:
    """Frames start .. stop-1 one by one; decoding begins at the keyframe before `start`.

    Yields:
      uint8 RGB [H,W,3].
    Raises:
      BadInput: the data is no such video: damaged, or of another number of frames or size.
      ValueError: start and stop are no part of the clip.
    """
    stop = self.shape[0] if stop is None else stop
    if not 0 <= start < stop <= self.shape[0]:
      raise ValueError(f"video: frames {start}..{stop} are no part of {self.shape[0]} frames.")
    try:
      yield from self._decode(start, stop)
    except BadInput:
      raise
    except _FAILURES as error:
      raise self._damaged(str(error)) from error

  def _decode(self, start: int, stop: int) -> Iterator[np.ndarray]:
    count = self.shape[0]
    container: Any = av.open(io.BytesIO(self.data), format="mp4")
    with container:
      stream = container.streams.video[0]
      if stream.frames != count:
        raise self._damaged(f"it holds {stream.frames} frames")
      stream.codec_context.thread_count = 1  # who reads many clips has threads of its own
      ticks = 1 / (stream.average_rate * stream.time_base)  # of a frame
      if start:
        container.seek(int(start * ticks), stream=stream)
      reformatter, found = VideoReformatter(), None
      for frame in container.decode(stream):
        number = round(frame.pts / ticks)
        if number > start if found is None else number != found + 1:
          raise self._damaged(f"frame {number} follows frame {found}")
        found = number
        if number >= start:
          yield self._to_rgb(reformatter, frame)
        if number + 1 == stop < count:
          return
      if found != count - 1:
        raise self._damaged(f"its last frame is {found}")

  def _to_rgb(self, reformatter: VideoReformatter, frame: Any) -> np.ndarray:
    count, height, width, _ = self.shape
    if (frame.height, frame.width) not in ((height, width), _even(height, width)):
      raise self._damaged(f"a frame is {frame.width}x{frame.height}")
    if frame.format.name == "gbrp":
      return frame.to_ndarray()
    rgb = reformatter.reformat(
      frame,
      format="rgb24",
      src_colorspace=Colorspace.ITU709,
      src_color_range=ColorRange.MPEG,
      dst_color_range=ColorRange.JPEG,
      **_SCALER,
    )
    return rgb.to_ndarray()[:height, :width]

  def _damaged(self, why: str) -> BadInput:
    count, height, width, _ = self.shape
    return BadInput(
      f"video: data of {len(self.data)} bytes is not {count} frames of {width}x{height} ({why}). "
      "Copy the dataset again, or make it anew."
    )


Video = np.ndarray | EncodedVideo


def as_frames(video: Video) -> np.ndarray:
  """The frames of a record's video, however it is stored: uint8 RGB [F,H,W,3]."""
  return video.decode() if isinstance(video, EncodedVideo) else video


def window_of(video: Video, start: int, stop: int) -> np.ndarray:
  """Frames start .. stop-1 of a record's video, without decoding those after: uint8 [f,H,W,3]."""
  return video.window(start, stop) if isinstance(video, EncodedVideo) else video[start:stop]


def encode_video(
  frames: Iterable[np.ndarray],
  *,
  width: int,
  height: int,
  fps: Fraction | float,
  codec: str,
  quality: int | None = None,
) -> EncodedVideo:
  """Encodes frames as they come: about 60 of them are held at a time.

  4:2:0 has even sides only: an odd one gets its last row or column twice, which decoding cuts off.

  Args:
    frames: uint8 RGB [H,W,3] each, at least one.
    width, height: of every frame, 1 to 16,384 pixels.
    fps: frames a second, kept as a fraction: 23.976 and 30000/1001 are what they say.
    codec: "h264" (4:2:0, BT.709, limited range) or "lossless" (H.264 of RGB: every value returns).
    quality: of "h264": constant rate factor of x264, from 0 (largest) to 51. "lossless" has none.
  Raises:
    BadInput: a setting out of its range, no frame, or one of another shape or dtype.
  """
  if codec not in CODECS or not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
    raise BadInput(
      f"video: codec={codec!r} is not one of {', '.join(CODECS)}, or {width}x{height} is not "
      f"within 1..{MAX_SIDE} pixels. Choose another, or make the frames smaller."
    )
  if codec == "h264" and (quality is None or not 0 <= quality <= 51):
    raise BadInput(f"video: quality={quality} is no rate factor of h264. Give one from 0 to 51.")
  file, rate = io.BytesIO(), exact_rate(fps)
  with av.open(file, "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
    stream = _add_stream(container, rate, codec, quality)
    coded = (height, width) if codec == "lossless" else _even(height, width)
    stream.height, stream.width = coded
    count = _write(container, stream, _checked(frames, height, width))
  return EncodedVideo(file.getvalue(), (count, height, width, 3))


def exact_rate(fps: Fraction | float) -> Fraction:
  """Frames a second as the fraction with the smallest error among denominators up to 1001."""
  if not (math.isfinite(fps) and 0.01 <= fps <= 1000):
    raise BadInput(f"video: fps={fps} is not between 0.01 and 1000. Give frames a second.")
  rate = fps if isinstance(fps, Fraction) else Fraction(float(fps))
  return rate.limit_denominator(1001)


def _even(height: int, width: int) -> tuple[int, int]:
  return height + height % 2, width + width % 2


def _checked(frames: Iterable[np.ndarray], height: int, width: int) -> Iterator[np.ndarray]:
  """The frames, each compared with the size; at least one."""
  count = 0
  for count, pixels in enumerate(frames, 1):
    if pixels.dtype != np.uint8 or pixels.shape != (height, width, 3):
      raise BadInput(
        f"video: frame {count - 1} is {pixels.dtype} {pixels.shape}, not uint8 "
        f"({height}, {width}, 3). Give all frames of a clip one size."
      )
    yield pixels
  if not count:
    raise BadInput("video: there is no frame to encode. Give at least one.")


def _add_stream(container: Any, rate: Fraction, codec: str, quality: int | None) -> Any:
  # Macroblock trees read memory that x264 never wrote: the same frames would give other bytes.
  options = {"preset": "medium", "g": _KEYFRAMES, "mbtree": "0"}
  if codec == "lossless":
    stream = container.add_stream("libx264rgb", rate=rate, options=options | {"qp": "0"})
    stream.pix_fmt = "rgb24"
    matrix, transfer, levels = _RGB, _SRGB, ColorRange.JPEG
  else:
    # The scaler sites colour samples between pixels; a stream that does not say so is read as if
    # they sat on the left ones, a shift of half a pixel.
    options |= {"crf": str(quality), "chroma_sample_location": "center"}
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.pix_fmt = "yuv420p"
    matrix, transfer, levels = _BT709, _BT709, ColorRange.MPEG
  context = stream.codec_context
  context.thread_count, context.time_base = 1, 1 / rate
  context.color_primaries, context.color_trc, context.colorspace = _BT709, transfer, matrix
  context.color_range = levels
  return stream


def _write(container: Any, stream: Any, frames: Iterator[np.ndarray]) -> int:
  """Encodes all frames into the container. Returns their number."""
  # The encoder names its version and options in a message (SEI, type 6) that no player needs.
  strip = BitStreamFilterContext("filter_units=remove_types=6", stream)
  reformatter, count = VideoReformatter(), 0
  for count, pixels in enumerate(frames, 1):
    frame = _from_rgb(reformatter, pixels, stream)
    frame.pts, frame.time_base = count - 1, stream.codec_context.time_base
    _encode(container, stream, strip, frame)
  _encode(container, stream, strip, None)
  return count


def _encode(container: Any, stream: Any, strip: BitStreamFilterContext, frame: Any) -> None:
  try:
    for packet in [*stream.encode(frame), *([] if frame else [None])]:
      for stripped in strip.filter(packet):
        container.mux(stripped)
  except FFmpegError as error:  # and none of those that reading the frames may raise
    raise BadInput(
      f"video: {stream.width}x{stream.height} at {stream.codec_context.rate} frames a second "
      f"cannot be encoded ({error}). Choose another codec or size."
    ) from error


def _from_rgb(reformatter: VideoReformatter, pixels: np.ndarray, stream: Any) -> av.VideoFrame:
  """A frame as the stream codes it; rows and columns are doubled at the edge where it is odd."""
  height, width, _ = pixels.shape
  edges = ((0, stream.height - height), (0, stream.width - width), (0, 0))
  frame = av.VideoFrame.from_ndarray(np.pad(pixels, edges, mode="edge"), format="rgb24")
  if stream.pix_fmt == "rgb24":
    return frame
  return reformatter.reformat(
    frame,
    format="yuv420p",
    dst_colorspace=Colorspace.ITU709,
    src_color_range=ColorRange.JPEG,
    dst_color_range=ColorRange.MPEG,
    **_SCALER,
  )

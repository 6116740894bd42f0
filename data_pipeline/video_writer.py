"""Encodes frames as H.264 in MP4, for records. Inverse of `data_pipeline.video`.

The same frames give the same bytes on any number of cores: one thread, no date, and no encoder name
in container or stream. Time stamps are frame numbers at the clip's rate, by which frames are found.
"""

import io
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.error import FFmpegError
from av.video.reformatter import ColorRange, VideoReformatter

from data_pipeline.errors import BadInput
from data_pipeline.rgb import from_rgb
from data_pipeline.video import EncodedVideo, even_sides

CODECS = ("h264", "lossless")
MAX_SIDE = 16_384  # pixels, of H.264
_BT709 = 1  # code point of ITU-T H.273 for primaries, transfer function and matrix alike
_RGB, _SRGB = 0, 13  # code points: no matrix; transfer function
# Frames between two at most: what is decoded before a window in the middle.
_KEYFRAMES = "16"


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
    coded = (height, width) if codec == "lossless" else even_sides(height, width)
    stream.height, stream.width = coded
    count = _write(container, stream, _checked(frames, height, width))
  return EncodedVideo(file.getvalue(), (count, height, width, 3))


def exact_rate(fps: Fraction | float) -> Fraction:
  """Frames a second as the fraction with the smallest error among denominators up to 1001."""
  if not (math.isfinite(fps) and 0.01 <= fps <= 1000):
    raise BadInput(f"video: fps={fps} is not between 0.01 and 1000. Give frames a second.")
  rate = fps if isinstance(fps, Fraction) else Fraction(float(fps))
  return rate.limit_denominator(1001)


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
    # Training decodes a clip many times: twice as fast or more, for a tenth more bytes.
    options |= {"tune": "fastdecode"}
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
    frame = _as_coded(reformatter, pixels, stream)
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


def _as_coded(reformatter: VideoReformatter, pixels: np.ndarray, stream: Any) -> av.VideoFrame:
  """A frame as the stream codes it; rows and columns are doubled at the edge where it is odd."""
  height, width, _ = pixels.shape
  edges = ((0, stream.height - height), (0, stream.width - width), (0, 0))
  pixels = np.pad(pixels, edges, mode="edge")
  if stream.pix_fmt == "rgb24":
    return av.VideoFrame.from_ndarray(pixels, format="rgb24")
  return from_rgb(reformatter, pixels)

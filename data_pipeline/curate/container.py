"""Opens a media file through FFmpeg's libraries so that it can open nothing else.

A playlist, an edit list or a reference in a file names other files and addresses, and FFmpeg would
follow. Here it gets an open file and no name. Three locks hold, each by itself: only the formats
below are read, none of which is a list of other files; no protocol is allowed; and whatever still
asks for a file gets an exception, which refuses the source.
"""

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import av
import av.logging
from av.error import ArgumentError, FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from data_pipeline.curate.gif import SlowedGif
from data_pipeline.curate.types import Refused

FORMATS = (
  # several streams in a file
  *("mov", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf", "nut", "dv"),
  # one video and nothing else
  *("mpegvideo", "m4v", "h264", "hevc", "ivf", "obu", "mjpeg", "yuv4mpegpipe", "gif", "apng"),
)
_OPTIONS = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}
_OPTIONS |= {"max_fps": "99", "default_fps": "10"}  # of animated PNG: 100 ms for 10 ms or less
_BUFFER_BYTES = 1 << 18
_FORCED = {  # magic: the format that is meant, where FFmpeg misses it
  b"\x89PNG\r\n\x1a\n": "apng",  # behind long metadata
  b"\xff\xd8\xff": "mjpeg",  # with zeros between its pictures
}
logging.getLogger("libav").addHandler(logging.NullHandler())
av.logging.set_skip_repeated(False)
logging.getLogger("libav").propagate = False  # what decoders say is looked at by `decode`
_CONTAINERS = (  # (place, bytes): what a file begins with that was a video once
  *((4, word) for word in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")),
  *((0, word) for word in (b"\x1aE\xdf\xa3", b"FLV", b"OggS", b"GIF8", b"0&\xb2u", b"DKIF")),
  *((0, word) for word in (b"\0\0\1\xba", b"\0\0\1\xb3", b"YUV4MPEG2", *_FORCED)),
  *((8, word) for word in (b"AVI ", b"AVIX")),
)


@dataclasses.dataclass(frozen=True)
class Limits:
  """The bounds of a source, beyond which it is refused.

  Attributes:
    max_side: pixels.
    max_pixels: of one frame.
    max_seconds: of the source.
    max_frames: of the source, at the constant rate.
    max_fps: frames/second; a faster source is not refused, its rate is divided.
    max_gap_seconds: a longer leap in time is taken for another recording, joined to this one.
    max_held_seconds: that one frame may be shown; what is held longer is no clip.
    free_pixels, pixels_per_byte: that may be decoded of any file, and more for every byte of it.
  """

  max_side: int = 8192
  max_pixels: int = 8192 * 4320
  max_seconds: float = 4 * 3600.0
  max_frames: int = 1_000_000
  max_fps: float = 120.0
  max_gap_seconds: float = 60.0
  max_held_seconds: float = 2.0
  free_pixels: float = 5e9
  pixels_per_byte: float = 20_000.0

  def check_size(self, width: int, height: int) -> None:
    """Raises `Refused` ("too_large") for a picture that is larger."""
    if max(width, height) > self.max_side or width * height > self.max_pixels:
      raise Refused("too_large", f"{width}x{height} pixels")

  def check_count(self, frames: int, width: int, height: int, size: int) -> None:
    """Raises `Refused` ("too_many_frames", "bomb") for more than a file of `size` bytes may hold.

    Before constant rate: eight source frames may fall on one of `max_frames`.
    """
    if frames > 8 * self.max_frames:
      raise Refused("too_many_frames", f"more than {8 * self.max_frames} frames")
    if frames * width * height > self.free_pixels + self.pixels_per_byte * size:
      said = f"more than {frames - 1} frames of {width}x{height} pixels in {size} bytes"
      raise Refused("bomb", said)


class _Reader:
  """A file as the libraries see it: bytes without a name, never more than were asked for."""

  def __init__(self, file: BinaryIO | SlowedGif):
    self._file = file

  def read(self, size: int) -> bytes:
    return self._file.read(size)[:size]

  def seek(self, offset: int, whence: int) -> int:
    return self._file.seek(offset, whence)

  def tell(self) -> int:
    return self._file.tell()


@contextmanager
def open_media(file: BinaryIO, *, max_pixels: int) -> Iterator[Any]:
  """Opens a media file, from its beginning: yields PyAV's input container.

  Args:
    file: seekable, read from its beginning; it is not closed.
    max_pixels: decoders refuse pictures that are larger, before they take memory for them.
  Raises:
    Refused: "empty", "not_video", "damaged", "reaches_out" (it asks for another file), "unreadable"
      (the storage fails).
  """
  file.seek(0)
  head = file.read(512)
  if not head:
    raise Refused("empty", "0 bytes")
  file.seek(0)
  with refusing(head):
    container = av.open(
      _Reader(SlowedGif(file) if head.startswith(b"GIF8") else file),
      mode="r",
      format=next((form for magic, form in _FORCED.items() if head.startswith(magic)), None),
      options={"max_pixels": str(max_pixels), "threads": "1"},
      container_options=_OPTIONS,
      metadata_errors="replace",
      buffer_size=_BUFFER_BYTES,
      io_open=_refuse,
    )
  try:
    yield container
  finally:
    container.close()


def _refuse(url: str, flags: int, options: dict) -> Any:
  raise Refused("reaches_out", f"asks for {url[:200]!r}")


@contextmanager
def refusing(head: bytes = b"") -> Iterator[None]:
  """Turns what FFmpeg and the storage raise into `Refused`.

  Args:
    head: the first bytes of the file: whether one that cannot be opened was a video.
  """
  try:
    yield
  except MemoryError:
    raise
  except (FFmpegError, UnicodeError) as error:
    was_video = any(head[place : place + len(word)] == word for place, word in _CONTAINERS)
    raise Refused("damaged" if was_video else "not_video", _text(error)) from error
  except OSError as error:
    raise Refused("unreadable", _text(error)) from error


def _text(error: Exception) -> str:
  if isinstance(error, ArgumentError):  # what the whitelist answers
    return "of no format that is read here"
  return str(getattr(error, "strerror", None) or error)[:200]


def video_streams(container: Any) -> list[VideoStream]:
  """The video streams that are not cover pictures."""
  cover = Disposition.attached_pic | Disposition.timed_thumbnails
  return [stream for stream in container.streams.video if not stream.disposition & cover]


def video_stream(container: Any) -> VideoStream:
  """The stream to show: FFmpeg's best one that is not a cover picture.

  Raises:
    Refused: "no_video", or "no_decoder".
  """
  shown = video_streams(container)
  if not shown:
    kinds = sorted({stream.type for stream in container.streams})
    raise Refused("no_video", f"{container.format.name} with {', '.join(kinds) or 'no stream'}")
  best = container.streams.best("video")
  stream = best if best in shown else shown[0]
  if stream.codec_context is None:
    raise Refused("no_decoder", f"stream {stream.index} of {container.format.name}")
  return stream

"""Video of a clip as a compressed file in memory: H.264 in MP4, decoded in bounded memory.

`data_pipeline.video_writer` makes it. Time stamps are frame numbers at the clip's rate, by which
frames are found.
"""

import contextlib
import dataclasses
import io
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from data_pipeline.errors import BadInput
from data_pipeline.rgb import Area, ToRGB

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

  def window(self, start: int, stop: int, area: Area | None = None) -> np.ndarray:
    """Frames start .. stop-1, or an area of them: uint8 RGB [stop-start,H,W,3].

    Raises as `frames`.
    """
    frames = self.frames(start, stop, area)
    with contextlib.closing(frames):
      piece = self._take(frames, stop - start, area)
      next(frames, None)  # sees whether there are more than `shape` says
    return piece

  def _take(self, frames: Iterator[np.ndarray], size: int, area: Area | None = None) -> np.ndarray:
    sides = area[2:] if area else self.shape[1:3]
    return np.fromiter(frames, np.dtype((np.uint8, (*sides, 3))), size)

  def frames(
    self, start: int = 0, stop: int | None = None, area: Area | None = None
  ) -> Generator[np.ndarray, None, None]:
    """Frames start .. stop-1 one by one; decoding begins at the keyframe before `start`.

    Args:
      start, stop: by default all.
      area: what is wanted of each; the whole picture by default. The same pixels, in less time.
    Yields:
      uint8 RGB [H,W,3].
    Raises:
      BadInput: the data is no such video: damaged, or of another number of frames or size.
      ValueError: start and stop, or the area, are no part of the clip.
    """
    count, *sides, _ = self.shape
    stop = count if stop is None else stop
    area = area or Area(0, 0, *sides)
    if not 0 <= start < stop <= count:
      raise ValueError(f"video: frames {start}..{stop} are no part of {count} frames.")
    if not area.is_within(*sides):
      raise ValueError(f"video: {area} is no part of a picture of {sides[1]}x{sides[0]}.")
    try:
      yield from self._decode(start, stop, area)
    except BadInput:
      raise
    except _FAILURES as error:
      raise self._damaged(str(error)) from error

  def _decode(self, start: int, stop: int, area: Area) -> Iterator[np.ndarray]:
    count = self.shape[0]
    container: Any = av.open(io.BytesIO(self.data), format="mp4")
    with container:
      stream = container.streams.video[0]
      if stream.frames != count:
        raise self._damaged(f"it holds {stream.frames} frames")
      stream.codec_context.thread_count = 1  # who reads many clips has threads of its own
      ticks = float(1 / (stream.average_rate * stream.time_base))  # of a frame
      if start:
        container.seek(int(start * ticks), stream=stream)
      to_rgb, found = ToRGB(area), start - 1
      for number, frame in _decode_from(container, stream, start, ticks):
        if number != found + 1:
          raise self._damaged(f"frame {number} follows frame {found}")
        found = number
        self._check_size(frame)
        yield to_rgb(frame)
        if number + 1 == stop < count:
          return
      if found != count - 1:
        raise self._damaged(f"its last frame is {found}")

  def _check_size(self, frame: Any) -> None:
    sides = self.shape[1:3]
    if (frame.height, frame.width) not in (sides, even_sides(*sides)):
      raise self._damaged(f"a frame is {frame.width}x{frame.height}")

  def _damaged(self, why: str) -> BadInput:
    count, height, width, _ = self.shape
    return BadInput(
      f"video: data of {len(self.data)} bytes is not {count} frames of {width}x{height} ({why}). "
      "Copy the dataset again, or make it anew."
    )


def _decode_from(
  container: Any, stream: Any, start: int, ticks: float
) -> Iterator[tuple[int, av.VideoFrame]]:
  """Frames `start` and later with their numbers; of those before only what they are made of."""
  context, was_before = stream.codec_context, False
  for packet in container.demux(stream):
    is_before = packet.pts is not None and round(packet.pts / ticks) < start
    if is_before != was_before:
      context.skip_frame, was_before = "NONREF" if is_before else "DEFAULT", is_before
    for frame in packet.decode():
      number = round(frame.pts / ticks)
      if number >= start:
        yield number, frame


Video = np.ndarray | EncodedVideo


def as_frames(video: Video) -> np.ndarray:
  """The frames of a record's video, however it is stored: uint8 RGB [F,H,W,3]."""
  return video.decode() if isinstance(video, EncodedVideo) else video


def window_of(video: Video, start: int, stop: int, area: Area | None = None) -> np.ndarray:
  """Frames start .. stop-1 of a record's video, or an area of them: uint8 [f,H,W,3].

  Of an encoded one, neither later frames are decoded nor other pixels converted. Of an array it is
  a view.
  """
  if isinstance(video, EncodedVideo):
    return video.window(start, stop, area)
  return area.cut(video[start:stop]) if area else video[start:stop]


def even_sides(height: int, width: int) -> tuple[int, int]:
  """Sides as 4:2:0 codes them: of an odd one the last row or column stands twice."""
  return height + height % 2, width + width % 2

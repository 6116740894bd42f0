"""Reads all packets of a video without decoding them, and its frames from a place on."""

import dataclasses
from array import array
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from av import Packet
from av.error import FFmpegError
from av.stream import Discard

from data_pipeline.curate.colours import Orientation, has_alpha, orientation_of
from data_pipeline.curate.container import Limits, open_media, refusing, video_stream
from data_pipeline.curate.timing import Timing
from data_pipeline.curate.types import Refused

_TRIES = 300  # packets within which a frame has to come out
_SECONDS_BACK = 10  # for a second try, where seeking ended too late
_DECLARE = ("matroska,webm", "avi", "flv", "asf")  # their headers say how long they are
_MOST_TIMELESS = 0.1  # share of packets without a time
_INTERLACED = (2, 3, 4, 5)  # AVFieldOrder


@dataclasses.dataclass(frozen=True)
class Survey:
  """What a pass over the packets of a video finds.

  Attributes:
    stamps: int64 [n], timestamps of the frames that can be shown, in file order, in ticks.
    last_ticks: duration of the last of them; 0 if not known.
    tick: seconds.
    rates: frames/second that the container speaks of, best first.
    is_counted: there are no timestamps; `stamps` count the frames.
    width, height: of a frame, as stored.
    damage: "truncated" if the file ends before its header says, else "".
    declared_seconds: that the header says; 0 if it does not.
  """

  format: str
  codec: str
  stamps: np.ndarray
  last_ticks: int
  tick: Fraction
  rates: tuple[Fraction | None, ...]
  is_counted: bool
  width: int
  height: int
  orientation: Orientation
  pix_fmt: str
  matrix: int
  colour_range: int
  transfer: int
  has_alpha: bool
  is_interlaced: bool
  pixel_aspect: Fraction
  damage: str
  declared_seconds: float


def survey(file: BinaryIO, limits: Limits) -> Survey:
  """Reads all packets of a video, and decodes its first frame.

  Raises:
    Refused: see `media`.
  """
  with open_media(file, max_pixels=limits.max_pixels) as container, refusing():
    stream = _prepared(container, limits)
    stamps, last, first = _stamps(container, stream, limits)
    tick, rates = stream.time_base, (stream.guessed_rate, stream.average_rate, stream.base_rate)
    is_counted = not len(stamps)
    if is_counted:
      rates = (next((rate for rate in rates if rate and rate > 0), Fraction(25)),)
      stamps, last, tick = np.arange(last), 0, 1 / rates[0]
    declared = _declared_seconds(container, stream)
    end = float((int(stamps.max()) - int(stamps.min())) * tick) + 1
    is_short = container.format.name in _DECLARE and declared > 1.05 * end
    is_short = is_short or _ends_early(file, stream)
    context = stream.codec_context
    return Survey(
      format=container.format.name,
      codec=context.name,
      stamps=stamps,
      last_ticks=last,
      tick=tick,
      rates=rates,
      is_counted=is_counted,
      width=first.width,
      height=first.height,
      orientation=orientation_of(first),
      pix_fmt=first.format.name,
      matrix=int(first.colorspace),
      colour_range=int(first.color_range),
      transfer=int(first.color_trc),
      has_alpha=has_alpha(first),
      is_interlaced=first.interlaced_frame or context.field_order in _INTERLACED,
      pixel_aspect=stream.sample_aspect_ratio or Fraction(1),
      damage="truncated" if is_short else "",
      declared_seconds=declared,
    )


def _prepared(container: Any, limits: Limits) -> Any:
  """The video stream, ready to be decoded; what is not it is not read."""
  stream = video_stream(container)
  limits.check_size(stream.width, stream.height)
  if not stream.time_base or stream.time_base <= 0:
    raise Refused("broken_timestamps", f"a tick of {stream.time_base} s")
  for other in container.streams:
    if other is not stream:
      other.discard = Discard.all
  stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
  stream.thread_count = 1
  return stream


def _packets(container: Any, stream: Any) -> Iterator[Any]:
  """The packets of a stream, as far as the file can be read; an empty one ends them."""
  try:
    yield from container.demux(stream)
  except (FFmpegError, IndexError) as error:  # IndexError: PyAV, of streams that appear later
    if isinstance(error, MemoryError):
      raise
    end = Packet()
    end.stream = stream
    yield end


def _frames_of(packet: Any, limits: Limits) -> list[Any]:
  """The frames that a packet completes, without the damaged ones."""
  try:
    found = [frame for frame in packet.decode() if not frame.is_corrupt]
  except FFmpegError as error:
    if isinstance(error, MemoryError):
      raise
    return []
  for frame in found:
    limits.check_size(frame.width, frame.height)
  return found


def _stamps(container: Any, stream: Any, limits: Limits) -> tuple[np.ndarray, int, Any]:
  """Timestamps from the first key frame on, duration of the last, and the first frame.

  If there are no timestamps at all: none, the number of frames, and the first frame.
  """
  stamps, last, key, first, packets = array("q"), (0, 0), None, None, 0
  for packet in _packets(container, stream):
    if first is None and packets <= _TRIES:
      first = next(iter(_frames_of(packet, limits)), None)
    stamp = packet.dts if packet.pts is None else packet.pts
    if (stamp is None and not packet.size) or packet.is_discard or _is_hidden(packet, stream):
      continue
    packets += 1
    if packets > 8 * limits.max_frames:
      raise Refused("too_many_frames", f"more than {8 * limits.max_frames} packets")
    if stamp is not None:
      key = stamp if key is None and packet.is_keyframe else key
      stamps.append(stamp)
      if len(stamps) == 1 or stamp >= last[0]:
        last = (stamp, packet.duration or 0)
  if first is None:
    raise Refused("damaged", f"no frame comes out of the first {min(packets, _TRIES)} packets")
  if not stamps:
    return np.zeros(0, np.int64), packets, first
  if packets - len(stamps) > _MOST_TIMELESS * packets:
    raise Refused("broken_timestamps", f"{len(stamps)} of {packets} frames have a time")
  found = np.frombuffer(stamps, np.int64)
  return found if key is None else found[found >= key], last[1] or 0, first


def _is_hidden(packet: Any, stream: Any) -> bool:
  """Whether a packet holds a VP8 frame that is only referred to (RFC 6386, section 9.1)."""
  return stream.codec_context.name == "vp8" and not bytes(memoryview(packet)[:1])[0] >> 4 & 1


def _declared_seconds(container: Any, stream: Any) -> float:
  """Length of the stream by its header; 0 if it says nothing of this stream."""
  if stream.duration and stream.duration > 0:
    return float(stream.duration * stream.time_base)
  if len(container.streams) == 1 and container.duration and container.duration > 0:
    return container.duration / 1e6
  hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
  minutes, _, seconds = rest.partition(":")
  try:
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
  except ValueError:
    return 0.0


def _ends_early(file: BinaryIO, stream: Any) -> bool:
  """Whether the index of the stream speaks of bytes beyond the end of the file."""
  index = stream.index_entries
  return bool(len(index)) and index[-1].pos + index[-1].size > file.seek(0, 2)


def decoded(
  file: BinaryIO, timing: Timing, start: int, limits: Limits
) -> Iterator[tuple[int, Any]]:
  """Frames in order of time, each with the output frame it falls on; damaged ones are left out.

  Args:
    start: the first output frame that is wanted: the frame shown there is among them.
  """
  back = int(_SECONDS_BACK / timing.tick)
  target = timing.stamp(start)
  for seek in (target, target - back, None) if start > 0 and not timing.is_counted else (None,):
    frames = _decoded_from(file, timing, seek, limits)
    first = next(frames, None)
    if seek is None or (first and first[0] <= start):
      yield from () if first is None else (first,)
      yield from frames
      return
    frames.close()


def _decoded_from(
  file: BinaryIO, timing: Timing, seek: int | None, limits: Limits
) -> Generator[tuple[int, Any], None, None]:
  with open_media(file, max_pixels=limits.max_pixels) as container, refusing():
    stream = _prepared(container, limits)
    if seek is not None and not _sought(container, stream, seek):
      return
    key, stamp, count = None, timing.start, 0
    for packet in _packets(container, stream):
      if key is None and packet.is_keyframe and packet.pts is not None:
        key = packet.pts
      for frame in _frames_of(packet, limits):
        stamp = count if timing.is_counted else stamp if frame.pts is None else frame.pts
        count += 1
        if timing.is_counted or key is None or stamp >= key:  # others refer to what was not read
          yield timing.slot(stamp), frame


def _sought(container: Any, stream: Any, seek: int) -> bool:
  try:
    container.seek(seek, stream=stream)
  except FFmpegError:
    return False
  return True

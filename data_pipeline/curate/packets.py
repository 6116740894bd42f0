"""Reads all packets of a video without decoding them: what its container says of its frames.

Nothing is decoded but the first frame. What is found is believed only as long as decoding agrees
(`decode`): containers invent times, and what they index may be damaged.
"""

import dataclasses
from array import array
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from av import Packet
from av.error import FFmpegError
from av.stream import Discard

from data_pipeline.curate.colours import Orientation, has_alpha, orientation_of
from data_pipeline.curate.container import Limits, open_media, refusing, video_stream
from data_pipeline.curate.types import Refused

DAMAGED_PACKET = "a damaged packet"  # as the container says
ZEROS = "zeros in a packet"
_TRIES = 300  # packets within which a frame has to come out
_DECLARE = ("matroska,webm", "avi", "flv", "asf")  # their headers say how long they are
_INTERLEAVED = (*_DECLARE, "mpegts", "mpeg", "ogg", "nut")  # packets follow each other in the file
_BEGINNINGS = {  # of formats of which demuxers read one file only: what it begins with, where
  "mov,mp4,m4a,3gp,3g2,mj2": (b"ftyp", 4),
  "flv": (b"FLV\x01", 0),
  "matroska,webm": (b"\x1aE\xdf\xa3", 0),  # two at the most
  "asf": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", 0),
  "ivf": (b"DKIF\0\0 \0", 0),
  "apng": (b"\x89PNG\r\n\x1a\n", 0),
}
_INTERLACED = (2, 3, 4, 5)  # AVFieldOrder
_LEAP = 1.5  # usual intervals: a longer one is looked into
_LOST_SHARE = 0.2  # of the bytes that the time of a leap takes on average: so many are lost
_LOST_BYTES = 256
# Codecs whose packets never hold a run of zeros, but for stuffing before a start code or at the end
_NO_ZEROS = frozenset({"h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "mpeg4", "theora"})
_RUN = bytes(64)


@dataclasses.dataclass(frozen=True)
class Survey:
  """What a pass over the packets of a video finds.

  Attributes:
    stamps: int64 [n], ascending timestamps of the frames that can be shown, in ticks.
    last_ticks: duration of the last of them; 0 if not known.
    tick: seconds.
    rates: frames/second that the container speaks of, best first.
    doubt: why the timestamps cannot be believed before all frames are decoded; "" if they can.
    width, height: of a frame, as stored.
    damage: "truncated" if the file ends before its header says, else "".
    declared_seconds: that the header says; 0 if it does not.
    unread: byte at which another file begins, that is not read; 0 for none.
  """

  format: str
  codec: str
  stamps: np.ndarray
  last_ticks: int
  tick: Fraction
  rates: tuple[Fraction | None, ...]
  doubt: str
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
  unread: int


def survey(file: BinaryIO, limits: Limits) -> Survey:
  """Reads all packets of a video, and decodes its first frame.

  Raises:
    Refused: see `media`.
  """
  size = file.seek(0, 2)
  with open_media(file, max_pixels=limits.max_pixels) as container, refusing():
    stream = prepare(container, limits)
    stamps, last, first, doubt, end_byte = _stamps(container, stream, limits, size)
    declared = _declared_seconds(container, stream)
    seconds = float((int(stamps[-1]) - int(stamps[0])) * stream.time_base) if len(stamps) else 0
    is_short = container.format.name in _DECLARE and declared > 1.05 * (seconds + 1)
    is_short = (is_short and len(stamps) > 0) or _ends_early(size, stream)
    context = stream.codec_context
    found = Survey(
      format=container.format.name,
      codec=context.name,
      stamps=stamps,
      last_ticks=last,
      tick=stream.time_base,
      rates=(stream.guessed_rate, stream.average_rate, stream.base_rate),
      doubt=doubt,
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
      unread=0,
    )
  found = dataclasses.replace(found, unread=_another(file, found.format, end_byte))
  is_lost = not doubt and _leaps(stamps).any() and _loses_bytes(file, limits)
  return dataclasses.replace(found, doubt="bytes are skipped") if is_lost else found


def prepare(container: Any, limits: Limits, *, is_alone: bool = True) -> Any:
  """The video stream, ready to be decoded.

  Args:
    is_alone: packets of other streams are not read.
  Raises:
    Refused: "too_large", "broken_timestamps", or what `video_stream` refuses.
  """
  stream = video_stream(container)
  limits.check_size(stream.width, stream.height)
  if not stream.time_base or stream.time_base <= 0:
    raise Refused("broken_timestamps", f"a tick of {stream.time_base} s")
  for other in container.streams if is_alone else ():
    if other is not stream:
      other.discard = Discard.all
  stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
  stream.thread_count = 1
  return stream


def packets_of(container: Any, *streams: Any) -> Iterator[Any]:
  """The packets of streams, as far as the file can be read; an empty one ends them.

  Args:
    streams: none for all; then nothing ends them.
  """
  try:
    yield from container.demux(*streams)
  except (FFmpegError, IndexError) as error:  # IndexError: PyAV, of streams that appear later
    if isinstance(error, MemoryError):
      raise
    for stream in streams:
      end = Packet()
      end.stream = stream
      yield end


def find_fault(packet: Any, codec: str) -> str:
  """What is wrong with a packet, by its bytes alone; "" for nothing."""
  if packet.is_corrupt:
    return DAMAGED_PACKET
  return ZEROS if _holds_zeros(packet, codec) else ""


def _holds_zeros(packet: Any, codec: str) -> bool:
  """Tells whether a packet holds a run of zeros that its codec never writes: a hole in the file."""
  if codec not in _NO_ZEROS or packet.size < len(_RUN):
    return False
  data = bytes(packet)
  at = data.find(_RUN)
  if at < 0:
    return False
  rest = data[at:].lstrip(b"\0")
  return at == 0 or (bool(rest) and rest[0] != 1)


def _stamps(
  container: Any, stream: Any, limits: Limits, size: int
) -> tuple[np.ndarray, int, Any, str, int]:
  """Timestamps from the first key frame on, duration of the last, the first frame, a doubt, and
  a byte within the last packet."""
  stamps, last, key, first, packets, end = array("q"), (0, 0), None, None, 0, 0
  timeless, before, doubt, is_edited = 0, None, "", False
  codec = stream.codec_context.name
  for packet in packets_of(container, stream):
    if first is None and packets <= _TRIES:
      first = next(iter(_frames_of(packet, limits)), None)
    stamp = packet.dts if packet.pts is None else packet.pts
    if stamp is None and not packet.size:
      continue
    if key is None and packet.is_keyframe and stamp is not None:
      key = stamp
    doubt = doubt or find_fault(packet, codec)
    if packet.dts is not None:
      doubt = doubt or ("" if before is None or packet.dts >= before else "times that go back")
      before = packet.dts
    packets, end = packets + 1, max(end, (packet.pos or -1) + 1)
    limits.check_count(packets, stream.width, stream.height, size)
    if packet.is_discard:
      is_edited = bool(stamps)
      continue
    if is_edited:
      doubt, is_edited = doubt or "an edit list of several pieces", False
    if is_hidden(packet, codec):
      continue
    timeless += packet.pts is None
    if stamp is not None:
      stamps.append(stamp)
      if len(stamps) == 1 or stamp >= last[0]:
        last = (stamp, packet.duration or 0)
  if first is None:
    raise Refused("damaged", f"no frame comes out of the first {min(packets, _TRIES)} packets")
  found = np.frombuffer(stamps, np.int64) if stamps else np.zeros(0, np.int64)
  doubt = doubt or ("" if key is None or (found >= key).all() else "frames before a key frame")
  found = np.sort(found if key is None else found[found >= key])
  doubt = doubt or ("frames without a time" if timeless or not len(found) else "")
  doubt = doubt or ("two frames at one time" if (np.diff(found) == 0).any() else "")
  return found, last[1] or 0, first, doubt, end


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


def is_hidden(packet: Any, codec: str) -> bool:
  """Whether a packet holds a VP8 frame that is only referred to (RFC 6386, section 9.1)."""
  return codec == "vp8" and packet.size > 0 and not bytes(memoryview(packet)[:1])[0] >> 4 & 1


def _leaps(stamps: np.ndarray) -> np.ndarray:
  """Whether each interval, but the usual ones, is long: bool [n-1]."""
  steps = np.diff(stamps)
  return steps > _LEAP * np.median(steps) if len(steps) else np.zeros(0, bool)


class Gap(NamedTuple):
  """Bytes are missing before the packet that came `packets_ago` (0: the last one), and why."""

  packets_ago: int
  cause: str


class ByteCount:
  """Finds bytes of a file that belong to no packet: what a demuxer skipped.

  Formats whose packets do not follow each other in the file tell nothing.

  Args:
    name: of the format, FFmpeg's.
    size: of the file, bytes.
    seconds: of the file, about: what is skipped is compared with the mean rate.
  """

  def __init__(self, name: str, size: int, seconds: float):
    self._rate = size / seconds if seconds > 0 and name in _INTERLEAVED else None
    self._end: int | None = None
    self._skipped = [0, 0]  # before the last packet of the stream, and before this one
    self._before: int | None = None
    self._usual = 0.0

  def add(self, packet: Any, *, is_timed: bool) -> Gap | None:
    """Takes the next packet of the file, of any stream.

    Args:
      is_timed: it is of the stream whose times are looked at.
    Returns:
      None unless time leaps, and bytes were skipped that this time takes.
    """
    if self._rate is None or not packet.size:
      return None
    if packet.pos is not None and packet.pos >= 0:
      self._skipped[1] += 0 if self._end is None else max(0, packet.pos - self._end)
      self._end = max(packet.pos, self._end or 0)
    if self._end is not None:
      self._end += packet.size
    if not is_timed:
      return None
    gap = None if packet.dts is None else self._look(packet)
    self._skipped = [0, 0] if gap else [self._skipped[1], 0]
    return gap

  def _look(self, packet: Any) -> Gap | None:
    passed = 0.0 if self._before is None else float((packet.dts - self._before) * packet.time_base)
    self._before, usual, self._usual = packet.dts, self._usual, passed
    if self._rate is None or not 0 < _LEAP * usual < passed:
      return None
    least = max(_LOST_BYTES, _LOST_SHARE * self._rate * passed)
    for ago, skipped in enumerate(reversed(self._skipped)):  # time may leap one packet late
      if skipped > least:
        return Gap(ago, f"{skipped} bytes of the file belong to no packet")
    return None


def _loses_bytes(file: BinaryIO, limits: Limits) -> bool:
  """Reads all streams: tells whether bytes are skipped where the video's time leaps."""
  size = file.seek(0, 2)
  with open_media(file, max_pixels=limits.max_pixels) as container, refusing():
    stream = prepare(container, limits, is_alone=False)
    count = ByteCount(container.format.name, size, seconds_of(container))
    packets = packets_of(container, *container.streams)
    return any(count.add(packet, is_timed=packet.stream is stream) for packet in packets)


def seconds_of(container: Any) -> float:
  """Length of a file by its header; 0 if it says nothing."""
  return max(0.0, (container.duration or 0) / 1e6)


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


def _another(file: BinaryIO, form: str, start: int) -> int:
  """The byte from `start` on at which another file of the same format begins; 0 for none."""
  word, before = _BEGINNINGS.get(form, (b"", 0))
  start = 1 if form == "ivf" else start  # its last packet may reach into the next file
  file.seek(start)
  kept = b""
  while word and (data := file.read(1 << 20)):
    if (at := (kept + data).find(word)) >= 0:
      return start - len(kept) + at - before
    start, kept = start + len(data), data[1 - len(word) :]
  return 0


def _ends_early(size: int, stream: Any) -> bool:
  """Whether the index of the stream speaks of bytes beyond the end of the file."""
  index = stream.index_entries
  return bool(len(index)) and index[-1].pos + index[-1].size > size

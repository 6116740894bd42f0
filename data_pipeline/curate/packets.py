"""Reads all packets of a video without decoding them: what its container says of its frames.

Nothing is decoded but the first frame. What is found is believed only as long as decoding agrees
(`decode`): containers invent times, and what they index may be damaged.
"""

import dataclasses
from array import array
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple

import av.logging
import numpy as np
from av import Packet
from av.error import FFmpegError
from av.stream import Discard

from data_pipeline.curate.colours import Orientation, has_alpha, orientation_of
from data_pipeline.curate.container import Limits, open_media, refusing, video_stream, video_streams
from data_pipeline.curate.decoder import Decoder, refuse_layer
from data_pipeline.curate.faults import REORDERED, ByteCount, find_fault, is_hidden, is_leap
from data_pipeline.curate.types import Refused

DAMAGED_PAGE = "a damaged page, by its checksum"
CUT_OFF = "frames that are shown here are missing: the file was cut off before them, by its times"
_FAILURES = 10_000  # of a demuxer, one after the other
_TRIES = 300  # packets within which a frame has to come out
_DECLARE = ("matroska,webm", "avi", "flv", "asf")  # their headers say how long they are
_BEGINNINGS = {  # of formats of which demuxers read one file only: what it begins with, where
  "mov,mp4,m4a,3gp,3g2,mj2": (b"ftyp", 4),
  "flv": (b"FLV\x01", 0),
  "matroska,webm": (b"\x1aE\xdf\xa3", 0),  # two at the most
  "asf": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", 0),
  "ivf": (b"DKIF\0\0 \0", 0),
  "apng": (b"\x89PNG\r\n\x1a\n", 0),
}
_INTERLACED = (2, 3, 4, 5)  # AVFieldOrder


@dataclasses.dataclass(frozen=True)
class Survey:
  """The facts that a pass over the packets of a video finds.

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
    streams: of video, of which one is read.
    cut_off: frames at the end before which others are missing: the file was cut before those.
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
  streams: int
  cut_off: tuple[int, ...]


def survey(file: BinaryIO, limits: Limits) -> Survey:
  """Reads all packets of a video, and decodes its first frame.

  Raises:
    Refused: see `media`.
  """
  size = file.seek(0, 2)
  with open_media(file, max_pixels=limits.max_pixels) as container, refusing():
    stream = prepare(container, limits)
    read = _read(container, stream, limits, size)
    stamps, first = read.stamps, read.first
    declared = _declared_seconds(container, stream)
    seconds = _length(stamps, read.last_ticks) * float(stream.time_base)
    is_short = container.format.name in _DECLARE and declared > 1.05 * (seconds + 1)
    is_short = (is_short and len(stamps) > 0) or _ends_early(size, stream)
    context = stream.codec_context
    found = Survey(
      format=container.format.name,
      codec=context.name,
      stamps=stamps,
      last_ticks=read.last_ticks,
      tick=stream.time_base,
      rates=(stream.guessed_rate, stream.average_rate, stream.base_rate),
      doubt=read.doubt,
      width=first.width,
      height=first.height,
      orientation=orientation_of(first, context.name),
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
      streams=len(video_streams(container)),
      cut_off=() if read.doubt else _find_cut_off(stamps, read.decoding),
    )
  found = dataclasses.replace(found, unread=_another(file, found.format, read.end))
  is_lost = not read.doubt and is_leap(stamps).any() and _loses_bytes(file, limits)
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

  Where a demuxer gives up seeking the next packet, in a hole, it is asked again, from there on.

  Args:
    streams: none for all; then nothing ends them.
  """
  failures = 0
  while failures < _FAILURES:
    try:
      for packet in container.demux(*streams):
        failures = 0 if packet.size else failures
        yield packet
      return
    except (FFmpegError, IndexError) as error:  # IndexError: PyAV, of streams that appear later
      if isinstance(error, MemoryError):
        raise
      failures += 1
  for stream in streams:
    end = Packet()
    end.stream = stream
    yield end


def heard(packets: Iterator[Any]) -> Iterator[tuple[Any, str]]:
  """Adds what the demuxer says is damaged before each packet, "" for nothing.

  Ogg has checksums. Its other complaints do not tell damage from oddity.
  """
  av.logging.set_level(av.logging.WARNING)
  while True:
    with av.logging.Capture() as said:
      packet = next(packets, None)
    if packet is None:
      return
    yield packet, next((DAMAGED_PAGE for _, _, text in said if "CRC mismatch" in text), "")


class _Read(NamedTuple):
  """The sum of what the packets say.

  Attributes:
    stamps: int64 [n], ascending, from the first key frame on.
    decoding: int64 [m], decoding times of all packets, in file order.
    last_ticks: duration of the last frame.
    first: the first frame.
    doubt: why times cannot be believed.
    end: a byte within the last packet.
  """

  stamps: np.ndarray
  decoding: np.ndarray
  last_ticks: int
  first: Any
  doubt: str
  end: int


def _read(container: Any, stream: Any, limits: Limits, size: int) -> _Read:
  stamps, decoding = array("q"), array("q")
  last, key, first, packets, end = (0, 0), None, None, 0, 0
  timeless, doubt, is_edited = 0, "", False
  codec, decoder = stream.codec_context.name, Decoder(stream)
  for packet, said in heard(packets_of(container, stream)):
    doubt = doubt or said
    if first is None and packets <= _TRIES:
      refuse_layer(packet)
      first = next(iter(_frames_of(packet, decoder, limits)), None)
    stamp = packet.dts if packet.pts is None else packet.pts
    if stamp is None and not packet.size:
      continue
    if key is None and packet.is_keyframe and stamp is not None:
      key = stamp
    doubt = doubt or find_fault(packet, codec, container.format.name)
    if packet.dts is not None:
      decoding.append(packet.dts)
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
  found, times = (np.array(one, np.int64) for one in (stamps, decoding))
  doubt = doubt or _doubt(found, times, key, timeless)
  found = np.sort(found if key is None else found[found >= key])
  return _Read(found, times, last[1] or 0, first, doubt, end)


def _doubt(stamps: np.ndarray, decoding: np.ndarray, key: int | None, timeless: int) -> str:
  """Says what speaks against the times of packets; "" for nothing."""
  if (np.diff(decoding) < 0).any():
    return "times that go back"
  if timeless or not len(stamps):
    return "frames without a time"
  if len(np.unique(stamps)) < len(stamps):
    return "two frames at one time"
  return "frames before a key frame" if key is not None and (stamps < key).any() else ""


def _frames_of(packet: Any, decoder: Decoder, limits: Limits) -> list[Any]:
  """The frames that a packet completes, without the damaged ones."""
  try:
    found = [frame for frame in decoder.decode(packet) if not frame.is_corrupt]
  except FFmpegError as error:
    if isinstance(error, MemoryError):
      raise
    return []
  for frame in found:
    limits.check_size(frame.width, frame.height)
  return found


def _find_cut_off(stamps: np.ndarray, decoding: np.ndarray) -> tuple[int, ...]:
  """The frames at the end before which others are missing that were cut off.

  Of pictures that are stored before others which are shown before them the latter are gone, when
  the times at the end leap and those of decoding do not.

  Args:
    stamps: int64 [n], ascending.
    decoding: int64 [m], decoding times of all packets, in file order.
  """
  leaps = np.flatnonzero(is_leap(stamps))
  if len(leaps) and leaps[0] < len(stamps) - 1 - REORDERED:
    return ()  # its frames are not evenly spaced anyway
  is_even = not is_leap(decoding)[-2 * REORDERED :].any()
  return tuple((leaps + 1).tolist()) if len(decoding) and is_even else ()


def _loses_bytes(file: BinaryIO, limits: Limits) -> bool:
  """Reads all streams: tells whether bytes are skipped where the video's time leaps."""
  size = file.seek(0, 2)
  with open_media(file, max_pixels=limits.max_pixels) as container, refusing():
    stream = prepare(container, limits, is_alone=False)
    count = ByteCount(file, container.format.name, size, seconds_of(container))
    packets = packets_of(container, *container.streams)
    return any(count.add(packet, is_timed=packet.stream is stream) for packet in packets)


def _length(stamps: np.ndarray, last_ticks: int) -> float:
  """Ticks of all frames; the last is shown as long as others, or longer if it says so."""
  if not len(stamps):
    return 0.0
  usual = float(np.median(np.diff(stamps.astype(np.float64)))) if len(stamps) > 1 else 0.0
  return int(stamps[-1]) - int(stamps[0]) + max(usual, last_ticks)


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
  """Tells whether the index of the stream speaks of bytes beyond the end of the file."""
  index = stream.index_entries
  return bool(len(index)) and index[-1].pos + index[-1].size > size

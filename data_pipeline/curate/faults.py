"""Finds what is wrong with the packets of a file, without decoding them."""

from typing import Any, BinaryIO, NamedTuple

import numpy as np

DAMAGED_PACKET = "a damaged packet"  # as the container says
ZEROS = "zeros in a packet"
REORDERED = 17  # frames that a decoder holds back, at most (H.264 and HEVC: 16)
_LEAP = 1.6  # usual intervals: a longer one is looked into; pulldown makes some of 1.5
# Formats whose packets follow each other in the file
_INTERLEAVED = ("matroska,webm", "avi", "flv", "asf", "mpegts", "mpeg", "ogg", "nut")
_LOST_SHARE = 0.2  # of the bytes that the time of a leap takes on average: so many are lost
_LOST_BYTES = 100
_SYNC, _TS_PACKET_BYTES = 0x47, 188  # of transport streams, ISO/IEC 13818-1
_TS_STEPS = (188, 192, 204)  # from one packet to the next, with times or parity between them
_READ_BYTES = 1 << 20
# Runs of zeros that packets of a codec never hold, but for stuffing before a start code or at the
# end. H.264 and HEVC forbid three in a unit (7.4.1 of both); before it stand up to four more.
_RUNS: dict[str, bytes] = dict.fromkeys(["h264", "hevc"], bytes(8))
_RUNS |= dict.fromkeys(["vp8", "vp9", "libdav1d", "av1", "mpeg4", "theora"], bytes(24))
_STUFFED = ("mpegts", "mpeg", "h264", "hevc", "m4v")  # there zeros may stand between pictures


def is_leap(stamps: np.ndarray) -> np.ndarray:
  """Marks the intervals that are longer than usual: bool [n-1]."""
  steps = np.diff(stamps)
  return steps > _LEAP * np.median(steps) if len(steps) else np.zeros(0, bool)


def find_fault(packet: Any, codec: str, form: str) -> str:
  """Says what is wrong with a packet, by its bytes alone; "" for nothing."""
  if packet.is_corrupt:
    return DAMAGED_PACKET
  return ZEROS if _holds_zeros(packet, codec, is_stuffed=form in _STUFFED) else ""


def _holds_zeros(packet: Any, codec: str, *, is_stuffed: bool) -> bool:
  """Tells whether a packet holds a run of zeros that its codec never writes: a hole in the file."""
  run = _RUNS.get(codec)
  if run is None or packet.size < len(run):
    return False
  data = bytes(packet)
  at = data.find(run)
  if at < 0:
    return False
  rest = data[at:].lstrip(b"\0")
  return at == 0 or not is_stuffed or (bool(rest) and rest[0] != 1)


def is_hidden(packet: Any, codec: str) -> bool:
  """Tells whether a packet holds a VP8 frame that is only referred to (RFC 6386, section 9.1)."""
  return codec == "vp8" and packet.size > 0 and not bytes(memoryview(packet)[:1])[0] >> 4 & 1


class Gap(NamedTuple):
  """A place where bytes are missing.

  Attributes:
    packets_ago: the packet before which they are; 0 for the last one.
    is_timed: that packet has a time of its own, not that of one that is lost.
    cause: what is missing.
  """

  packets_ago: int
  is_timed: bool
  cause: str


class ByteCount:
  """Finds bytes of a file that belong to no packet: what a demuxer skipped.

  Formats whose packets do not follow each other in the file tell nothing.

  What formats hold by themselves is not missing: packets of tables, of clocks and of nothing in
  transport streams, the rest of a data packet of ASF.

  Args:
    file: that a demuxer reads; its place in it stays.
    name: of the format, FFmpeg's.
    size: of the file, bytes.
    seconds: of the file, about: what is skipped is compared with the mean rate.
  """

  def __init__(self, file: BinaryIO, name: str, size: int, seconds: float):
    self._file, self._name = file, name
    self._rate = size / seconds if seconds > 0 and name in _INTERLEAVED else None
    self._end: int | None = None
    self._position = 0  # of the last packet
    self._places = [0, 0, 0]  # positions of the last packets of the stream, and of this one
    self._step = 0  # the least between positions: of ASF, the size of a data packet
    self._skipped = [0, 0]  # before the last packet of the stream, and before this one
    self._before: int | None = None
    self._usual = 0.0
    self._latest: int | None = None  # presentation time
    self._jumps = [0.0, 0.0]  # seconds by which the last packet and this one are later than all

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
      step = packet.pos - self._position
      self._step = min(self._step or step, step) if step > 0 else self._step
      self._end, self._position = max(packet.pos, self._end or 0), packet.pos
    if self._end is not None:
      self._end += packet.size
    if not is_timed:
      return None
    self._note_jump(packet)
    self._places = [*self._places[1:], self._position]
    gap = None if packet.dts is None else self._look(packet)
    self._skipped = [0, 0] if gap else [self._skipped[1], 0]
    return gap

  def _look(self, packet: Any) -> Gap | None:
    passed = 0.0 if self._before is None else float((packet.dts - self._before) * packet.time_base)
    self._before, usual, self._usual = packet.dts, self._usual, passed
    if self._rate is None or not 0 < _LEAP * usual < passed:
      return None
    least = max(_LOST_BYTES, _LOST_SHARE * self._rate * passed)
    least = max(least, self._step) if self._name == "asf" else least
    for ago, skipped in enumerate(reversed(self._skipped)):  # time may leap one packet late
      if skipped > least and self._name == "mpegts":
        skipped = self._count_junk(*self._places[1 - ago : 3 - ago])
      if skipped > least:
        is_timed = ago == 0 or self._jumps[0] > passed / 2
        return Gap(ago, is_timed, f"{skipped} bytes of the file belong to no packet")
    return None

  def _count_junk(self, start: int, stop: int) -> int:
    """Bytes that are no packets of a transport stream, in a part of the file."""
    place, junk = self._file.tell(), 0
    while start < stop:
      self._file.seek(start)
      data = self._file.read(_READ_BYTES + max(_TS_STEPS))
      at, end = 0, min(_READ_BYTES, stop - start, len(data))
      while at < end:
        after = [data[at + step] for step in _TS_STEPS if at + step < len(data)]
        if data[at] == _SYNC and (_SYNC in after or not after):
          at += _TS_PACKET_BYTES
        else:
          found = data.find(_SYNC, at + 1, end)
          at, before = (end if found < 0 else found), at
          junk += at - before
      start = start + at if data else stop
    self._file.seek(place)
    return junk

  def _note_jump(self, packet: Any) -> None:
    latest, jump = self._latest, 0.0
    if packet.pts is not None:
      jump = 0.0 if latest is None else float((packet.pts - latest) * packet.time_base)
      self._latest = packet.pts if latest is None else max(latest, packet.pts)
    self._jumps = [self._jumps[1], jump]

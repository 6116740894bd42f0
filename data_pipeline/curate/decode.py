"""Decodes the frames of a video from a place on, each with its number.

Frames are numbered in the order of their times, over the whole file. There are two ways to know
the number of a frame:
  * by its timestamp, where the times of the container are believed (`Index.anchors` is None): a
    frame that does not come, or that comes without being known, raises `Misread`;
  * by counting the frames that the decoder gives, from a key frame whose place in the file is
    known.
Either way frame k is the same frame from wherever reading starts.
"""

import dataclasses
import itertools
from collections.abc import Generator, Iterator
from typing import Any, BinaryIO

import av.logging
import numpy as np
from av.error import FFmpegError

from data_pipeline.curate.container import Limits, open_media, refusing
from data_pipeline.curate.decoder import Decoder
from data_pipeline.curate.looks import Seen
from data_pipeline.curate.packets import packets_of, prepare

NO_TIME = -(1 << 63)  # int64, FFmpeg's AV_NOPTS_VALUE
_SECONDS_BACK = 10  # for a second try, where seeking ended too late
_PACKETS_TO_ANCHOR = 500  # after a seek
_BY_BYTES = ("mpegts", "flv", "h264", "hevc", "mpegvideo", "m4v", "mpeg")  # formats sought by bytes
# What decoders log of frames that they could not decode whole and yet show
NO_END = "EOI missing"
_CONCEALED = ("concealing", NO_END)
# Errors that they log of frames that are whole
_HARMLESS = ("co located POCs", "mmco", "number of reference frames", "Late SEI", "SEI type")
_HARMLESS += ("Header packet passed",)


class Misread(Exception):
  """The frames of a file are not those that its container speaks of: all have to be decoded."""


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
  """The frames of a video that can be shown, and how they are found again.

  Attributes:
    stamps: int64 [n], ticks, in order.
    anchors: int64 [k, 3], a row for each key frame: its number among all frames that the decoder
      gives, its byte position, its decoding time. None where timestamps are believed.
    kept: int64 [n], numbers of the frames among all that the decoder gives.
  """

  stamps: np.ndarray
  anchors: np.ndarray | None = None
  kept: np.ndarray | None = None


def decode_packet(packet: Any, decoder: Decoder, limits: Limits) -> tuple[list[Any], str]:
  """The frames that a packet completes, and what went wrong with it, "" for nothing.

  Frames that are known to be damaged are among them (`is_corrupt`), others may be if something is
  wrong.

  Raises:
    Refused: "too_large".
  """
  av.logging.set_level(av.logging.INFO)
  failed, found = "", []
  with av.logging.Capture() as said:
    try:
      found = decoder.decode(packet)
    except FFmpegError as error:
      if isinstance(error, MemoryError):
        raise
      failed = str(error.strerror)
  for frame in found:
    limits.check_size(frame.width, frame.height)
  faults = (text.strip().partition("\n")[0] for level, _, text in said if _is_fault(level, text))
  if failed and any(word in text for _, _, text in said for word in _HARMLESS):
    failed = ""
  return found, next(faults, failed)


def _is_fault(level: int, text: str) -> bool:
  is_error = level <= av.logging.ERROR and not any(word in text for word in _HARMLESS)
  return is_error or any(word in text for word in _CONCEALED)


def decoded(file: BinaryIO, index: Index, start: int, limits: Limits) -> Iterator[tuple[int, Seen]]:
  """Numbers and frames, in order, from a frame at or before `start` on.

  Raises:
    Refused: "too_large", "unreadable", "damaged".
    Misread: see above.
  """
  if index.anchors is None:
    return _stamped(file, index, start, limits)
  return _counted(file, index, start, limits)


# ---- by timestamps


def _stamped(
  file: BinaryIO, index: Index, start: int, limits: Limits
) -> Generator[tuple[int, Seen], None, None]:
  target, first = int(index.stamps[start]), None
  for seconds in (0, _SECONDS_BACK, None) if start > 0 else (None,):
    frames = _stamped_from(file, index, target, seconds, limits)
    first = next(frames, None)
    if seconds is None or (first and first[0] <= start):
      if first:
        yield first
      yield from frames
      return
    frames.close()


def _stamped_from(
  file: BinaryIO, index: Index, target: int, seconds_back: int | None, limits: Limits
) -> Generator[tuple[int, Seen], None, None]:
  """Reads from a place so long before a timestamp on; from the beginning of the file for None."""
  stamps = index.stamps
  with open_media(file, max_pixels=limits.max_pixels) as container, refusing():
    stream = prepare(container, limits)
    if seconds_back is not None:
      target -= int(seconds_back / stream.time_base)
      if not _seek(container, target, stream=stream):
        return
    decoder = Decoder(stream)
    key, last = None, None if seconds_back is not None else -1
    for packet in packets_of(container, stream):
      if key is None and packet.is_keyframe and packet.pts is not None:
        key = packet.pts
      found, fault = decode_packet(packet, decoder, limits)
      if fault and seconds_back is None and last is not None and last >= 0:
        raise Misread(fault)
      for frame in found:
        if key is None or frame.pts is None or frame.pts < key:
          continue  # it refers to what was not read
        number = int(np.searchsorted(stamps, frame.pts))
        if number == len(stamps) or stamps[number] != frame.pts or frame.is_corrupt:
          raise Misread(f"a frame at {frame.pts} that no packet speaks of")
        if last is not None and number != last + 1:
          raise Misread(f"frame {number} comes after frame {last}")
        last = number
        yield number, (decoder.look(frame), frame)
    is_short = seconds_back is None if last is None else last + 1 < len(stamps)
    if is_short:
      raise Misread(f"{len(stamps)} frames were expected, {last} was the last")


def _seek(container: Any, place: int, **options: Any) -> bool:
  try:
    container.seek(place, **options)
  except FFmpegError:
    return False
  return True


# ---- by counting


def _counted(
  file: BinaryIO, index: Index, start: int, limits: Limits
) -> Generator[tuple[int, Seen], None, None]:
  assert index.anchors is not None and index.kept is not None
  before = np.searchsorted(index.anchors[:, 0], index.kept[start], "right")
  for anchor in [*index.anchors[before - 1 : before], None] if start > 0 else [None]:
    frames = _counted_from(file, anchor, limits)
    first = next(frames, None)
    if first is None and anchor is not None:
      continue
    for place, frame in itertools.chain(() if first is None else (first,), frames):
      number = int(np.searchsorted(index.kept, place))
      if number < len(index.kept) and index.kept[number] == place:
        yield number, frame
    return


def _counted_from(
  file: BinaryIO, anchor: np.ndarray | None, limits: Limits
) -> Generator[tuple[int, Seen], None, None]:
  """All frames of the decoder with their numbers, from an anchor, or the beginning, on."""
  with open_media(file, max_pixels=limits.max_pixels) as container, refusing():
    stream = prepare(container, limits)
    packets, number = packets_of(container, stream), 0
    if anchor is not None:
      found = _find_anchor(container, stream, anchor)
      if found is None:
        return
      packets, number = found, int(anchor[0])
    is_begun, decoder = anchor is None, Decoder(stream)
    decoder.context.copy_opaque = True
    for place, packet in enumerate(packets):
      if place == 0 and packet.size:
        packet.opaque = True
      for frame in decode_packet(packet, decoder, limits)[0]:
        is_begun = is_begun or frame.opaque is True
        if is_begun:
          yield number, (decoder.look(frame), frame)
          number += 1


def _find_anchor(container: Any, stream: Any, anchor: np.ndarray) -> Iterator[Any] | None:
  """The packets from a key frame on; None if it is not found where it should be."""
  _, position, time = map(int, anchor)
  is_by_bytes = container.format.name in _BY_BYTES and position >= 0
  if not (is_by_bytes and _seek(container, position, unsupported_byte_offset=True)):
    is_by_bytes = False
    if time == NO_TIME or not _seek(container, time, stream=stream):
      return None
  packets = packets_of(container, stream)
  for _, packet in zip(range(_PACKETS_TO_ANCHOR), packets, strict=False):
    found = place_of(packet)
    is_same = found[0] == position if is_by_bytes else found == (position, time)
    if packet.is_keyframe and is_same:
      return _after(packet, packets)
  return None


def _after(packet: Any, packets: Iterator[Any]) -> Iterator[Any]:
  yield packet
  yield from packets


def place_of(packet: Any) -> tuple[int, int]:
  """Byte position, -1 if not known, and decoding time, NO_TIME if not known."""
  position = -1 if packet.pos is None else packet.pos
  return position, NO_TIME if packet.dts is None else packet.dts

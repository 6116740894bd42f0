"""Decodes a whole video to learn which frames it has, when each is shown, and where it is broken.

For files whose container cannot be believed. The decoder's order is the order of the frames.

Times are settled by `frame_times`.

Damage. When a packet cannot be decoded whole, or bytes of the file were skipped before it, nothing
is believed from there to the next whole key frame. What can be shown on both sides is kept.
"""

import dataclasses
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from data_pipeline.curate.container import Limits, open_media, refusing
from data_pipeline.curate.decode import NO_END, NO_TIME, Index, decode_packet, place_of
from data_pipeline.curate.decoder import Decoder
from data_pipeline.curate.faults import (
  DAMAGED_PACKET,
  ZEROS,
  ByteCount,
  Gap,
  find_fault,
  is_hidden,
)
from data_pipeline.curate.frame_times import MOST_TIMELESS, settle_kept
from data_pipeline.curate.packets import heard, packets_of, prepare, seconds_of
from data_pipeline.curate.types import Refused

_RATE = Fraction(25)


class Hole(NamedTuple):
  """Frames that are lost. Attributes: before: number of the first frame after them; detail."""

  before: int
  detail: str


@dataclasses.dataclass(frozen=True, eq=False)
class FrameIndex:
  """The frames that a video really holds, and what it lost.

  Attributes:
    index: its frames.
    tick: seconds a unit of the stamps.
    holes: where frames are lost, in order.
    seams: numbers of the frames at which another recording begins.
    is_counted: there were no times; the stamps count.
  """

  index: Index
  tick: Fraction
  holes: tuple[Hole, ...]
  seams: tuple[int, ...]
  is_counted: bool


class _Log:
  """Records what is seen while a file is decoded."""

  def __init__(self) -> None:
    self.places: list[tuple[int, int]] = []  # of packets: byte position, decoding time
    self.times: list[int] = []  # of packets, NO_TIME if unknown
    self.faults: dict[int, str] = {}  # by packet: it is not whole
    self.gaps: dict[int, str] = {}  # by packet: something before it is missing
    self.keys: set[int] = set()  # packets of key frames, as the container says
    self.silent: set[int] = set()  # packets that show nothing by themselves
    self.hidden: set[int] = set()  # those of them that an edit list leaves out
    self.shown: list[tuple[int, int, bool]] = []  # of frames: packet, time, is a key frame

  def forgive(self, packet: Any) -> None:
    """Takes back what was noted of a recording's last packets, if this is the first of another.

    Demuxers take a join for damage: the packets' counters do not go on.
    """
    before = self.places[-1][1] if self.places else NO_TIME
    if packet.dts is not None and packet.dts < before:
      for number in (len(self.places) - 1, len(self.places) - 2):
        if self.faults.get(number) == DAMAGED_PACKET:
          del self.faults[number]

  def _blame(self, number: int, fault: str) -> None:
    """Notes a packet that is not whole."""
    self.faults.setdefault(number, fault)
    if fault == ZEROS and number:
      self.faults.setdefault(number - 1, fault)  # its end may be cut by fewer zeros than are seen

  def end(self) -> None:
    """Blames the packets around a gap: that before may be cut, that behind refers back.

    No JPEG picture is blamed for want of its end marker in a file in which most have none.
    """
    endless = [number for number, fault in self.faults.items() if NO_END in fault]
    for number in endless if 2 * len(endless) > len(self.places) else ():
      del self.faults[number]
    for number, cause in self.gaps.items():
      for near in (number - 1, number):
        if near >= 0 and (near < number or near not in self.keys):
          self.faults.setdefault(near, cause)

  def add(
    self, packet: Any, frames: list[Any], fault: str, *, is_silent: bool, gap: Gap | None
  ) -> None:
    """Notes a packet that was decoded, or the end (an empty one), and what came out."""
    number = len(self.places)
    if packet.size:
      self.places.append(place_of(packet))
      self.times.append(NO_TIME if packet.pts is None else packet.pts)
      self.keys |= {number} if packet.is_keyframe else set()
      self.silent |= {number} if is_silent else set()
      self.hidden |= {number} if packet.is_discard else set()
      if gap:
        self.gaps[number - gap.packets_ago] = gap.cause
      if gap and not gap.is_timed:
        self.faults[number - gap.packets_ago] = gap.cause
    if fault:
      self._blame(min(number, len(self.places) - 1), fault)
    for frame in frames:
      origin = len(self.places) - 1 if frame.opaque is None else frame.opaque
      if frame.is_corrupt:
        self.faults.setdefault(origin, "a damaged frame")
      time = NO_TIME if frame.pts is None else frame.pts
      self.shown.append((origin, time, bool(frame.key_frame)))


def index_frames(file: BinaryIO, limits: Limits, rate: Fraction | None) -> FrameIndex:
  """Decodes a video from beginning to end.

  Args:
    rate: frames/second of a video without times, if it speaks of one.
  Raises:
    Refused: "damaged" when no frame is whole, "bomb", or what `packets` refuses.
  """
  log, tick = _decode_all(file, limits)
  if not log.shown:
    raise Refused("damaged", "no frame can be decoded")
  packet, times, is_key = (np.array(column) for column in zip(*log.shown, strict=True))
  is_key &= np.isin(packet, list(log.keys)) | (not log.keys)
  faults = np.array(sorted(log.faults), np.int64)
  hidden = np.array(sorted(log.keys - set(packet.tolist())), np.int64)
  leading = np.array(sorted(_find_leading(log, packet[is_key])), np.int64)
  is_good = find_whole(packet, is_key, faults, hidden, leading)
  is_good = _without_stragglers(packet, is_good, is_key, log, set(leading.tolist()))
  kept = np.flatnonzero(is_good)
  if not len(kept):
    raise Refused("damaged", f"none of {len(packet)} frames is whole")
  is_counted = bool((times[kept] == NO_TIME).mean() > MOST_TIMELESS)
  if is_counted:
    tick = 1 / (rate if rate and rate > 0 else _RATE)
    stamps, shifts, seams = np.arange(len(kept)), None, []
  else:
    edits = _find_edits(log, packet[kept])
    stamps, shifts, seams = settle_kept(times, kept, round(limits.max_gap_seconds / tick), edits)
  anchors = [
    (number, *log.places[packet[number]])
    for number in np.flatnonzero(is_key & is_good)
    if log.places[packet[number]][0] >= 0 or not seams
  ]
  index = Index(stamps, np.array(anchors, np.int64).reshape(-1, 3), kept)
  holes = _find_holes(log, packet, kept, stamps, shifts)
  return FrameIndex(index, tick, tuple(holes), tuple(seams), is_counted)


def _decode_all(file: BinaryIO, limits: Limits) -> tuple[_Log, Fraction]:
  log, size = _Log(), file.seek(0, 2)
  with open_media(file, max_pixels=limits.max_pixels) as container, refusing():
    stream = prepare(container, limits, is_alone=False)
    decoder = Decoder(stream)
    context = decoder.context
    context.copy_opaque = True
    codec = stream.codec_context.name
    skipped = ByteCount(file, container.format.name, size, seconds_of(container))
    for packet, said in heard(packets_of(container, *container.streams)):
      gap = skipped.add(packet, is_timed=packet.stream is stream)
      gap = gap or (Gap(0, False, said) if said else None)
      if packet.stream is not stream:
        continue
      log.forgive(packet)
      if packet.size:
        packet.opaque = len(log.places)
      is_silent = packet.is_discard or is_hidden(packet, codec)
      fault = find_fault(packet, codec, container.format.name)
      frames, wrong = decode_packet(packet, decoder, limits)
      log.add(packet, frames, fault or wrong, is_silent=is_silent, gap=gap)
      limits.check_count(len(log.shown), context.width, context.height, size)
    log.end()
    return log, stream.time_base


def find_whole(
  packet: np.ndarray,
  is_key: np.ndarray,
  faults: np.ndarray,
  hidden_keys: np.ndarray,
  leading: np.ndarray,
) -> np.ndarray:
  """Tells which frames refer to nothing that is damaged.

  Args:
    packet: int [n], of each frame, in the order in which frames are shown.
    is_key: bool [n], the frame refers to no other.
    faults: packets that are not whole, ascending.
    hidden_keys: packets of key frames that are decoded and not shown, as in trimmed files.
    leading: packets that lead the key frame before them: what follows does not refer to them.
  Returns:
    bool [n].
  """
  shown, places = np.unique(packet, return_index=True)  # a packet's first frame stands for it
  is_begin = is_key[places] & ~np.isin(shown, faults)
  hidden = np.setdiff1d(hidden_keys, faults)
  keys = np.concatenate([shown[is_begin], hidden])
  shown_at = np.concatenate([places[is_begin], np.zeros(len(hidden), places.dtype)])
  order = np.argsort(keys)
  keys, shown_at = keys[order], shown_at[order]
  if not len(keys):
    keys, shown_at = shown[:1], places[:1]
  group = np.searchsorted(keys, packet, "right") - 1  # the key frame before it in the file
  leads = (group >= 0) & (np.arange(len(packet)) < shown_at[np.maximum(group, 0)])
  begin = keys[np.maximum(group - leads, 0)]  # what is shown before its key refers further back
  harmful = np.setdiff1d(faults, leading)
  is_whole = np.where(
    leads,
    np.searchsorted(faults, begin) == np.searchsorted(faults, packet, "right"),
    np.searchsorted(harmful, begin) == np.searchsorted(harmful, packet, "right"),
  )
  return is_whole & (group - leads >= 0)


def _find_leading(log: _Log, keys: np.ndarray) -> Iterator[int]:
  """Yields damaged packets that are shown before the key frame that they follow in the file."""
  keys = np.sort(keys)
  for number in log.faults:
    at = int(np.searchsorted(keys, number, "right")) - 1
    if at >= 0 and NO_TIME < log.times[number] < log.times[int(keys[at])]:
      yield number


def _without_stragglers(
  packet: np.ndarray, is_good: np.ndarray, is_key: np.ndarray, log: _Log, leading: set[int]
) -> np.ndarray:
  """Drops whole frames between the first that is not and the next key frame.

  Decoders may give them out of order there, or with the time of another.
  """
  is_good = is_good.copy()
  lost = set(_find_silenced(log, packet, np.sort(packet[is_good]))) - leading
  known = sorted({*packet.tolist(), *lost})
  is_hurt, last = False, -1
  for place in range(len(packet)):
    between = known[bisect_right(known, last) : bisect_left(known, int(packet[place]))]
    is_hurt |= not is_good[place] or any(number in lost for number in between)
    if is_good[place]:
      is_hurt &= not is_key[place]
      is_good[place] = not is_hurt
    last = max(last, int(packet[place]))
  return is_good


def _find_edits(log: _Log, shown: np.ndarray) -> set[int]:
  """Finds frames before which packets are hidden: another piece of an edit list begins there."""
  hidden = np.array(sorted(log.hidden), np.int64)
  runs = hidden[np.diff(hidden, prepend=-2) > 1]
  group = np.searchsorted(runs, shown)
  return set((np.flatnonzero(np.diff(group) > 0) + 1).tolist())


def _find_holes(
  log: _Log, packet: np.ndarray, kept: np.ndarray, stamps: np.ndarray, shifts: np.ndarray | None
) -> list[Hole]:
  """Lists where frames are lost, between those that are kept."""
  counts: Counter[int] = Counter()
  causes: dict[int, str] = {}
  faults, shown = np.array(sorted(log.faults), np.int64), packet[kept]

  def tell(before: int, number: int, count: int) -> None:
    at = np.searchsorted(faults, number, "right") - 1
    cause = log.faults[int(faults[at])] if at >= 0 else "before the first key frame"
    causes.setdefault(before, log.gaps.get(number, cause))
    counts[before] += count

  for place in np.setdiff1d(np.arange(len(packet)), kept):
    tell(int(np.searchsorted(kept, place)), int(packet[place]), 1)
  order = np.argsort(shown, kind="stable")  # frames in file order
  ordered, latest = shown[order], np.maximum.accumulate(order)
  for number in _find_silenced(log, packet, ordered):
    at = int(np.searchsorted(ordered, number)) - 1
    near, before = (int(order[at]), int(latest[at]) + 1) if at >= 0 else (-1, 0)
    is_later = near >= 0 and log.places[number][1] >= log.places[int(shown[near])][1]
    if shifts is not None and is_later and log.times[number] != NO_TIME:  # of one recording
      before = int(np.searchsorted(stamps, log.times[number] + shifts[near], "right"))
    tell(before, number, 1)
  highest = np.maximum.accumulate(shown)
  for number in log.gaps:
    tell(int(np.searchsorted(highest, number)), number, 0)
  return [Hole(before, _detail(counts[before], causes[before])) for before in sorted(causes)]


def _detail(count: int, cause: str) -> str:
  return f"{count} frames cannot be decoded: {cause}" if count else f"frames are missing: {cause}"


def _find_silenced(log: _Log, packet: np.ndarray, good: np.ndarray) -> Iterator[int]:
  """Yields the packets of damaged stretches that show nothing and should."""
  shown, end = set(packet.tolist()), -1
  for fault in sorted(log.faults):
    if fault < end:
      continue
    after = np.searchsorted(good, fault)
    end = int(good[after]) if after < len(good) else len(log.places)
    yield from (n for n in range(fault, end) if n not in shown and n not in log.silent)

"""Near-duplicates of all sources, in steps for a keyed, parallel stage.

    prints ── keyed ──▶ (key, print) ── group ──▶ find_near ──▶ (better, worse) ── group ──▶ resolve
Prints travel as bytes, fifty times each at most (one for every key). A group is gone through twice
and never held: its 64 best clips are compared with all others (`near.find_pairs`). The edges, at
most 64 for each clip and key, meet in one place, where the graph is resolved from the best clip to
the worst (`near.resolve`): no part of it depends on an order of arrival.
"""

import heapq
import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.curate import near
from data_pipeline.curate.near import Print
from data_pipeline.curate.settings import Near
from data_pipeline.curate.spool import read_rows
from data_pipeline.curate.spool_writer import Summary

_HEAD = struct.Struct("<QIQB")  # pixels, frames, bytes, hashes
_BEST = 64  # clips of a group that all are compared with; not below that of `near`
_AT_ONCE = 1024  # of the others
_THERE = 1 << 62  # added to the pixels of a clip that is in the dataset: it ranks before new ones


def pack(clip: Mapping[str, Any], *, is_there: bool = False) -> bytes:
  """A clip of a summary, as much of it as the search for copies needs."""
  seen = near.read_print(clip)
  head = _HEAD.pack(seen.pixels | _THERE * is_there, seen.frames, seen.bytes, len(seen.hashes))
  return head + struct.pack(f"<{len(seen.hashes)}Q", *seen.hashes) + seen.id.encode()


def unpack(data: bytes) -> Print:
  pixels, frames, size, count = _HEAD.unpack_from(data)
  hashes = struct.unpack_from(f"<{count}Q", data, _HEAD.size)
  name = data[_HEAD.size + 8 * count :].decode()
  return Print(name, source_of(name), hashes, pixels, frames, size)


def source_of(clip: str) -> str:
  """Name of the source of a clip, by its id."""
  return clip.rpartition(":")[0]


def prints_of(summary: Summary) -> Iterator[bytes]:
  """Of the clips of a source."""
  return map(pack, summary["clips"])


def prints_there(table: str) -> Iterator[bytes]:
  """Of the clips that are in a dataset, by its table `sources.jsonl`."""
  for row in read_rows(Path(table)):
    for clip in row["clips"]:
      yield pack(clip, is_there=True)


def keyed(data: bytes) -> Iterator[tuple[int, bytes]]:
  """A print once for each of its keys."""
  for key in near.keys(unpack(data).hashes):
    yield key, data


def find_near(group: tuple[int, Iterable[bytes]], settings: Near) -> Iterator[tuple[bytes, bytes]]:
  """Near pairs among clips that share a key, the better one first.

  Args:
    group: key, and prints that can be gone through twice.
    settings: what is near.
  """
  _, prints = group
  best = heapq.nsmallest(_BEST, prints, key=lambda data: unpack(data).rank)
  if len(best) < 2:
    return
  others = iter(prints)
  while chunk := list(itertools.islice(others, _AT_ONCE)):
    known = {unpack(data).id: data for data in (*best, *chunk)}
    for better, worse in near.find_pairs(
      map(unpack, known.values()),
      max_distance=settings.max_distance,
      within_source=settings.within_source,
    ):
      if not _is_there(known[worse]):  # both are there: both stay
        yield known[better], known[worse]


def _is_there(data: bytes) -> bool:
  return bool(unpack(data).pixels & _THERE)


def resolve(
  stars: Iterable[tuple[bytes, Iterable[bytes]]],
) -> list[tuple[str, list[tuple[str, str]]]]:
  """Decides which clips go.

  Args:
    stars: a clip, and all worse ones that are near to it.
  Returns:
    (source, its clips that go: (id, id of the one it is like)), sorted.
  """
  clips: dict[bytes, Print] = {}
  pairs = set()
  for better, others in stars:
    for worse in others:
      a, b = (clips.setdefault(data, unpack(data)) for data in (better, worse))
      pairs.add((a.id, b.id))
  gone: dict[str, list[tuple[str, str]]] = {}
  for name, better in sorted(near.resolve(pairs, clips.values()).items()):
    gone.setdefault(source_of(name), []).append((name, better))
  return sorted(gone.items())

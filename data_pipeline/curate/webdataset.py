"""The videos in a tar archive, as WebDataset lays them out.

Members of one key, the name up to the first dot of its last part, follow each other: KEY.mp4 with
KEY.txt or KEY.json. Every member that is not a side-car is a source.
"""

import os
from collections.abc import Iterator, Sequence

from data_pipeline.curate import archives, side_cars, storage
from data_pipeline.curate.side_cars import Words, describe
from data_pipeline.curate.types import Refused, Reject, Source, escape
from data_pipeline.hashing import hash_text

_GROUP_MEMBERS = 64  # of one key that are held at a time, with their side-cars


def find_members(entry: storage.Entry, name: str) -> Iterator[Source | Reject]:
  """The members of an archive; those of one key follow each other and describe each other."""
  seen: set[int] = set()
  group: list[archives.Member] = []
  try:
    with storage.open_file(entry.path) as opened, storage.seekable(opened) as file:
      for member in archives.members(file, _is_side_car):
        is_full = len(group) == _GROUP_MEMBERS
        if group and (is_full or _key(member.name) != _key(group[0].name)):
          yield from _grouped(group, entry, name, seen)
          group = []
        if member.kind != "folder":
          group.append(member)
      yield from _grouped(group, entry, name, seen)
  except Refused as refused:
    yield from _grouped(group, entry, name, seen)
    yield Reject(escape(name), None, refused.reason, detail=refused.detail)
  except OSError as error:
    yield Reject(escape(name), None, "unreadable", detail=str(error))


def _key(name: bytes) -> bytes:
  """A WebDataset key: the name up to the first dot of its last part."""
  folder, slash, last = name.rpartition(b"/")
  return folder + slash + last.partition(b".")[0]


def _is_side_car(member: archives.Member) -> bool:
  ends = member.name.endswith(tuple(ending.encode() for ending in side_cars.ENDINGS))
  return ends and member.kind == "file" and member.size <= side_cars.MOST_BYTES


def _grouped(
  group: Sequence[archives.Member], entry: storage.Entry, archive: str, seen: set[int]
) -> Iterator[Source | Reject]:
  cars = [member for member in group if _is_side_car(member)]
  videos = [member for member in group if not _is_side_car(member)]
  words, fault = Words(), None
  try:
    for car in cars if videos else ():
      words = words.plus(side_cars.parse(os.path.splitext(os.fsdecode(car.name))[1], car.content))
  except Refused as refused:
    fault = refused
  for member in videos or cars:
    yield _of_member(member, entry, archive, words, fault, seen)


def _of_member(
  member: archives.Member,
  entry: storage.Entry,
  archive: str,
  words: Words,
  fault: Refused | None,
  seen: set[int],
) -> Source | Reject:
  name = escape(archive) + "!" + escape(member.name)
  if member.kind != "file":
    reason = "symlink" if member.kind == "link" else "not_a_file"
    return Reject(name, None, reason, detail="no file's content is in the archive")
  if (number := hash_text(name)) in seen:
    return Reject(name, None, "listed_twice", detail="the archive has this name before")
  seen.add(number)
  if fault:
    return Reject(name, None, fault.reason, detail=fault.detail)
  stamp = f"{entry.stamp}-{member.offset}-{member.size}"
  path, inside = escape(entry.path), escape(member.name)
  return describe(
    Source(name, path, "tar", inside, member.offset, size=member.size, stamp=stamp), words
  )

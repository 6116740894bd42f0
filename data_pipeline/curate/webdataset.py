"""The videos in a tar archive, as WebDataset lays them out: KEY.mp4 with KEY.txt or KEY.json.

Members may come in any order. The archive is gone through once; what is kept of it are the names
and places of its members, and what its caption files say. `pairing` says whose they are.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from data_pipeline.curate import archives, list_files, pairing, side_cars, storage
from data_pipeline.curate.notes import Notes
from data_pipeline.curate.side_cars import Words, describe
from data_pipeline.curate.types import Refused, Reject, Source, escape
from data_pipeline.hashing import hash_text

UNUSED_KEYS = "keys of JSON files that are not used"
SYSTEM_FILES = "files that operating systems leave behind, passed over"
ALONE = "files of captions that belong to no video here, see rejects.jsonl"
_METADATA = "members of archives that are neither video nor caption, passed over"


class _Index(NamedTuple):
  """The content of an archive. Attributes: words: by caption file, or why there are none."""

  members: list[archives.Member]
  words: dict[str, Words | Refused]
  fault: Reject | None


def find_members(
  entry: storage.Entry, name: str, wanted: tuple[str, ...] | None, notes: Notes
) -> Iterator[Source | Reject]:
  """The videos of an archive in their order, each with the captions that are in the archive.

  Raises:
    BadInput: captions may be of several videos.
  """
  found = _index(entry, name, wanted, notes)
  names = [os.fsdecode(member.name) for member in found.members]
  videos = [one for one, m in zip(names, found.members, strict=True) if m.kind == "file"]
  videos = [one for one in videos if one not in found.words and not list_files.is_list(one)]
  pairs = pairing.pair(entry.path, videos, found.words, by_key=True)
  seen: set[int] = set()
  for member, inside in zip(found.members, names, strict=True):
    is_used = inside in found.words and inside not in pairs.alone and member.kind == "file"
    if inside in pairs.alone:
      notes.add(ALONE, escape(f"{name}!{inside}"))
    if (reject := _refuse(member, name, inside in pairs.alone, seen)) or is_used:
      yield from [reject] if reject else ()
    else:
      yield _of_member(member, entry, name, _words(inside, pairs, found))
  if found.fault:
    yield found.fault


def _index(
  entry: storage.Entry, archive: str, wanted: tuple[str, ...] | None, notes: Notes
) -> _Index:
  """Goes through an archive; up to where it is broken."""
  found = _Index([], {}, None)
  try:
    with storage.open_file(entry.path) as opened, storage.seekable(opened) as file:
      for member in archives.members(file, _is_small_side_car):
        name = os.fsdecode(member.name)
        if member.kind == "folder":
          continue
        if pairing.is_system_file(name):
          notes.add(SYSTEM_FILES, escape(f"{archive}!{name}"))
        elif member.kind == "file" and name.lower().endswith(pairing.METADATA):
          notes.add(_METADATA, escape(f"{archive}!{name}"))
        else:
          if _is_side_car(member) and name not in found.words:
            found.words[name] = _parse(member, wanted, notes)
          found.members.append(member._replace(content=b""))
  except Refused as refused:
    return found._replace(fault=Reject(escape(archive), None, refused.reason, None, refused.detail))
  except OSError as error:
    return found._replace(fault=Reject(escape(archive), None, "unreadable", None, str(error)))
  return found


def _is_side_car(member: archives.Member) -> bool:
  return member.kind == "file" and side_cars.is_side_car(os.fsdecode(member.name))


def _is_small_side_car(member: archives.Member) -> bool:
  return _is_side_car(member) and member.size <= side_cars.MOST_BYTES


def _parse(
  member: archives.Member, wanted: tuple[str, ...] | None, notes: Notes
) -> Words | Refused:
  name = os.fsdecode(member.name)
  if not _is_small_side_car(member):
    return Refused("too_large", f"{name}: more than {side_cars.MOST_BYTES} bytes of captions")
  try:
    return side_cars.parse(
      name, member.content, wanted, lambda key: notes.add(UNUSED_KEYS, escape(key))
    )
  except Refused as refused:
    return refused


def _words(name: str, pairs: pairing.Pairs, found: _Index) -> Words | Refused:
  """Reads what the caption files of a member say, or the first fault in one."""
  words = Words()
  for car in pairs.of.get(name, ()):
    more = found.words[car]
    if isinstance(more, Refused):
      return more
    words = words.plus(more)
  return words


def _refuse(member: archives.Member, archive: str, is_alone: bool, seen: set[int]) -> Reject | None:
  """Why a member is no source, if so."""
  name = escape(archive) + "!" + escape(member.name)
  if member.kind != "file":
    reason = "symlink" if member.kind == "link" else "not_a_file"
    return Reject(name, None, reason, detail="no file's content is in the archive")
  if (number := hash_text(name)) in seen:
    return Reject(name, None, "listed_twice", detail="the archive has this name before")
  seen.add(number)
  return refuse_words(name, is_alone)


def refuse_words(name: str, is_alone: bool) -> Reject | None:
  """Why a file beside videos is no source, judged by its name, which is escaped."""
  if is_alone:
    return Reject(
      name,
      None,
      "stray_captions",
      detail="captions, and no video of this name; a list is what --input names",
    )
  if list_files.is_list(name):
    detail = "a list is read where --input names it, and as metadata.csv or .jsonl in a folder"
    return Reject(name, None, "unread_list", detail=detail)
  return None


def _of_member(
  member: archives.Member, entry: storage.Entry, archive: str, words: Words | Refused
) -> Source | Reject:
  name = escape(archive) + "!" + escape(member.name)
  if isinstance(words, Refused):
    return Reject(name, None, words.reason, detail=words.detail)
  stamp = f"{entry.stamp}-{member.offset}-{member.size}"
  path, inside = escape(entry.path), escape(member.name)
  return describe(
    Source(name, path, "tar", inside, member.offset, size=member.size, stamp=stamp), words
  )

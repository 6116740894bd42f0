"""Finds the videos of an input, and opens them: a folder, a list, archives, a TFDS dataset.

Every regular file is a source, whatever its name: what is in it decides. Not so those that hold the
captions of a video beside them (`side_cars`, `pairing`), VideoFolder's metadata, what operating
systems leave in folders, and archives, whose members are sources. What cannot be one is told as a
`Reject`, with the reasons
  symlink        links are never followed; a list may name files anywhere
  not_a_file     a pipe, a socket, a device, or a folder in a list
  stray_captions, unread_list    a caption file of no video, a list that is not --input itself
  not_found, unreadable, bad_side_car, too_large
  listed_twice   in an archive
  empty, not_an_archive, damaged, truncated, bomb       of an archive, which holds no more than was
                                                        found before
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from data_pipeline.curate import archives, list_files, pairing, side_cars, storage
from data_pipeline.curate.lists import Listed, is_videofolder, read_list
from data_pipeline.curate.notes import Notes
from data_pipeline.curate.side_cars import Words, describe
from data_pipeline.curate.types import Refused, Reject, Source, escape, unescape
from data_pipeline.curate.webdataset import (
  ALONE,
  SYSTEM_FILES,
  UNUSED_KEYS,
  find_members,
  refuse_words,
)
from data_pipeline.errors import BadInput

Found = Iterator[Source | Reject]


class _Reading(NamedTuple):
  """The way an input is read: columns of captions, None for known ones; who is told what."""

  wanted: tuple[str, ...] | None
  notes: Notes

  def unused(self, key: str) -> None:
    self.notes.add(UNUSED_KEYS, escape(key))


def find_sources(
  given: str,
  *,
  caption_columns: tuple[str, ...] | None = None,
  fps: float = 24.0,
  notes: Notes | None = None,
) -> Found:
  """Goes through an input, in an order that only depends on what is in it.

  Args:
    given: a folder, a file, or a glob, of this machine or by a url that fsspec knows; a list
      (.csv, .tsv, .jsonl, .json) of paths relative to it, with captions; a tar archive
      (WebDataset: KEY.mp4 with KEY.txt or KEY.json); "tfds:NAME[:SPLIT]", or the folder of a TFDS
      dataset, with a video in each row.
    caption_columns: columns of a list, keys of side-cars, or features of a TFDS dataset, that hold
      captions; None for those that `columns` knows.
    fps: frames/second of a TFDS dataset that stores frames and no rate.
    notes: told what a person is to know of the input.
  Raises:
    BadInput: there is no such input, a list is not one, or captions have no certain place.
  """
  reading = _Reading(caption_columns, notes or Notes())
  if given.startswith("tfds:") and not os.path.lexists(given):
    return _tfds_rows(given.removeprefix("tfds:"), reading, fps)
  given = storage.local(given)
  entry = storage.look(given if storage.is_url(given) else os.path.realpath(given))
  if entry is None:
    return _globbed(given, reading)
  if entry.kind == "folder":
    names = {inside.name for inside in storage.listed(entry.path)}
    is_dataset = {"dataset_info.json", "features.json"} <= names
    return _tfds_rows(entry.path, reading, fps) if is_dataset else _folder(entry.path, reading)
  if entry.kind == "file" and entry.name.lower().endswith((*list_files.ENDINGS, ".json")):
    return _listed(entry.path, reading)
  return _matched([entry], lambda entry: entry.name, reading)


def _globbed(pattern: str, reading: _Reading) -> Found:
  found = storage.matches(pattern)
  if not found:
    raise BadInput(f"curate: input={pattern!r} finds nothing. Give a folder, a file or a glob.")
  start = storage.folder_of(pattern)
  return _matched(found, lambda entry: storage.below(entry.path, start), reading)


def _matched(
  found: list[storage.Entry], name_of: Callable[[storage.Entry], str], reading: _Reading
) -> Found:
  """Files that a pattern found; their captions may lie beside them, and not fit it."""
  matched = {entry.path for entry in found}
  beside: dict[str, Listed] = {}
  more = []
  for folder in _folders(found, name_of):
    try:
      entries = storage.listed(folder or ".")
    except OSError as error:
      reading.notes.say(f"{folder}: captions beside its files cannot be looked for ({error})")
      continue
    entries = entries if folder else [entry._replace(path=entry.name) for entry in entries]
    beside |= _read_metadata(folder, entries, reading)
    more += [e for e in entries if _is_car(e) and e.path not in matched]
  return _entries(found, name_of, reading, beside=beside, more_cars=more)


def _folders(found: Iterable[storage.Entry], name_of: Callable[[storage.Entry], str]) -> list[str]:
  """The folders that hold found files, and those above them in which a pattern begins."""
  folders = set()
  for entry in found:
    folder = entry.path
    for _ in range(name_of(entry).count("/") + 1 if entry.kind == "file" else 0):
      folder = folder.rpartition("/")[0]
      folders.add(folder if folder or not entry.path.startswith("/") else "/")
  return sorted(folder for folder in folders if not folder.startswith("http"))


def _folder(folder: str, reading: _Reading) -> Found:
  """Everything below a folder, depth first, in order of the names' bytes."""
  waiting = [(folder, "")]
  beside: dict[str, Listed] = {}
  while waiting:
    path, prefix = waiting.pop()
    try:
      entries = storage.listed(path)
    except OSError as error:
      yield Reject(escape(prefix.rstrip("/") or "."), None, "unreadable", detail=str(error))
      continue
    beside |= _read_metadata(path, entries, reading)
    below = []
    for entry in entries:
      if entry.kind == "folder" and pairing.is_system_folder(entry.name):
        reading.notes.add(SYSTEM_FILES, escape(f"{prefix}{entry.name}/"))
      elif entry.kind == "folder":
        below.append((entry.path, f"{prefix}{entry.name}/"))
    waiting += reversed(below)
    yield from _entries(entries, lambda e, prefix=prefix: prefix + e.name, reading, beside=beside)
  for path, listed in beside.items():
    name = storage.below(path, folder)
    yield Reject(escape(name), None, "not_found", detail=escape(f"named at {listed.where}"))


def _read_metadata(
  folder: str, entries: Iterable[storage.Entry], reading: _Reading
) -> dict[str, Listed]:
  """Reads what VideoFolder's metadata in a folder says of files, by path."""
  found = {}
  for entry in entries:
    if entry.kind == "file" and is_videofolder(entry.path):
      for listed in read_list(entry.path, reading.wanted, reading.notes):
        path = listed.path or f"{folder}/{listed.name}"
        before = found[path].words if path in found else Words()
        found[path] = listed._replace(words=before.plus(listed.words))
  return found


def _entries(
  entries: Iterable[storage.Entry],
  name_of: Callable[[storage.Entry], str],
  reading: _Reading,
  *,
  beside: dict[str, Listed],
  more_cars: Iterable[storage.Entry] = (),
) -> Found:
  """The sources of the files among entries, with what lies beside them.

  Args:
    name_of: the name of an entry.
    beside: what lists in folders say of files by path; what is used is taken out.
    more_cars: caption files that are no entries themselves.
  """
  kept = []
  for entry in entries:
    if entry.kind == "file" and pairing.is_system_file(entry.name):
      reading.notes.add(SYSTEM_FILES, escape(name_of(entry)))
    elif entry.kind != "folder":
      kept.append(entry)
  cars = [e.path for e in (*kept, *more_cars) if _is_car(e)]
  videos = [e.path for e in kept if e.kind == "file" and not _is_car(e) and not _is_other(e)]
  pairs = pairing.pair_folders(videos, cars)
  for entry in kept:
    if _is_car(entry) and entry.path not in pairs.alone:
      continue
    if entry.kind == "file" and is_videofolder(entry.path):
      continue
    name = name_of(entry)
    reject = refuse_words(escape(name), entry.path in pairs.alone) if entry.kind == "file" else None
    if reject:
      reading.notes.add(ALONE, reject.source)
      yield reject
      continue
    try:
      words = _read_words(pairs.of.get(entry.path, ()), reading)
      if listed := beside.pop(_key(entry.path), None):
        words = words.plus(listed.words)
    except Refused as refused:
      yield Reject(escape(name), None, refused.reason, detail=refused.detail)
    else:
      yield from _of_entry(entry, name, words, reading)


def _key(path: str) -> str:
  """A path as lists spell it."""
  return path if storage.is_url(path) else os.path.normpath(path)


def _is_car(entry: storage.Entry) -> bool:
  return entry.kind == "file" and side_cars.is_side_car(entry.name)


def _is_other(entry: storage.Entry) -> bool:
  """Tells by its name whether a file is an archive or a list, of which nothing is said."""
  return list_files.is_list(entry.name) or entry.name.lower().endswith(archives.ENDINGS)


def _read_words(cars: Iterable[str], reading: _Reading) -> Words:
  words = Words()
  for car in cars:
    data = storage.read_small(car, side_cars.MOST_BYTES)
    words = words.plus(side_cars.parse(car, data, reading.wanted, reading.unused))
  return words


def _of_entry(entry: storage.Entry, name: str, words: Words, reading: _Reading) -> Found:
  if entry.kind == "link":
    yield Reject(escape(name), None, "symlink", detail="links are not followed")
  elif entry.kind != "file":
    yield Reject(escape(name), None, "not_a_file", detail="a pipe, a socket, a device or a folder")
  elif entry.name.lower().endswith(archives.ENDINGS):
    yield from find_members(entry, name, reading.wanted, reading.notes)
  else:
    source = Source(escape(name), escape(entry.path), size=entry.size, stamp=entry.stamp)
    yield describe(source, words)


# ---- lists


def _listed(path: str, reading: _Reading) -> Found:
  """The videos of a list."""
  lost = []
  for listed in read_list(path, reading.wanted, reading.notes):
    source = _named(listed)
    lost += [listed.words.count()] if isinstance(source, Reject) else []
    yield source
  if sum(lost):
    reading.notes.say(f"{path}: {sum(lost)} captions of {len(lost)} files that are not there")


def _named(listed: Listed) -> Source | Reject:
  name, path = escape(listed.name), listed.path
  if not path:
    return Reject(name, None, "not_found", detail=escape(listed.detail))
  try:
    entry = storage.look(path if storage.is_url(path) else os.path.realpath(path))
  except OSError as error:
    return Reject(name, None, "unreadable", detail=str(error))
  if entry is None:
    return Reject(name, None, "not_found", detail=escape(path))
  if entry.kind != "file":
    return Reject(name, None, "not_a_file", detail=escape(path))
  source = Source(name, escape(entry.path), size=entry.size, stamp=entry.stamp)
  return describe(source, listed.words)


# ---- datasets, and opening


def _tfds_rows(given: str, reading: _Reading, fps: float) -> Found:
  from data_pipeline.curate import tfds_videos  # starts in two seconds

  return tfds_videos.find_rows(given, reading.wanted, fps, reading.notes)


@contextmanager
def open_source(source: Source) -> Iterator[BinaryIO]:
  """Opens a source for reading: a seekable file of its content.

  Raises:
    Refused: "not_found", "unreadable", "not_a_file", or what its archive is refused for.
  """
  path = os.fsdecode(unescape(source.path))
  if source.kind == "tfds":
    from data_pipeline.curate import tfds_videos

    with tfds_videos.open_row(source) as file:
      yield file
    return
  with storage.open_file(path) as opened, storage.seekable(opened) as file:
    if source.kind == "tar":
      with archives.open_member(file, source.offset, source.size) as member:
        yield member
    else:
      yield file

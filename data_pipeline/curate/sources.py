"""Finds the videos of an input, and opens them: a folder, a list, archives, a TFDS dataset.

Every regular file is a source, whatever its name: what is in it decides. Two kinds of files are
not: those that hold the captions of a video beside them (`side_cars`), and archives, whose members
are sources. What cannot be one is told as a `Reject`, with the reasons
  symlink        links are never followed; a list may name files anywhere
  not_a_file     a pipe, a socket, a device, or a folder in a list
  not_found, unreadable, bad_side_car
  listed_twice   in a list, or in an archive
  empty, not_an_archive, damaged, truncated, bomb       of an archive, which holds no more than was
                                                        found before
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from data_pipeline.curate import archives, side_cars, storage
from data_pipeline.curate.side_cars import CAPTION_FIELDS, Words, describe, from_fields
from data_pipeline.curate.types import Refused, Reject, Source, escape, unescape
from data_pipeline.curate.webdataset import find_members
from data_pipeline.errors import BadInput
from data_pipeline.hashing import hash_text

LISTS = (".csv", ".tsv", ".jsonl")
_PATH_FIELDS = ("path", "file", "video", "url")

Found = Iterator[Source | Reject]


def find_sources(
  given: str, *, caption_fields: Sequence[str] = CAPTION_FIELDS, fps: float = 24.0
) -> Found:
  """Goes through an input, in an order that only depends on what is in it.

  Args:
    given: a folder, a file, or a glob, of this machine or by a url that fsspec knows; a list
      (.csv, .tsv with a header, .jsonl) of paths relative to it, with captions; a tar archive
      (WebDataset: KEY.mp4 with KEY.txt or KEY.json); "tfds:NAME[:SPLIT]", or the folder of a TFDS
      dataset, with a video in each row.
    caption_fields: columns of a list, or features of a TFDS dataset, that hold captions.
    fps: frames/second of a TFDS dataset that stores frames and no rate.
  Raises:
    BadInput: there is no such input, or a list is not one.
  """
  if given.startswith("tfds:"):
    return _tfds_rows(given.removeprefix("tfds:"), caption_fields, fps)
  given = storage.local(given)
  entry = storage.look(given if storage.is_url(given) else os.path.realpath(given))
  if entry is None:
    return _globbed(given)
  if entry.kind == "folder":
    names = {inside.name for inside in storage.listed(entry.path)}
    is_dataset = {"dataset_info.json", "features.json"} <= names
    return _tfds_rows(entry.path, caption_fields, fps) if is_dataset else _folder(entry.path)
  if entry.name.endswith(LISTS):
    return _listed(entry.path, caption_fields)
  return _of_entry(entry, entry.name, Words())


def _globbed(pattern: str) -> Found:
  found = storage.matches(pattern)
  if not found:
    raise BadInput(f"curate: input={pattern!r} finds nothing. Give a folder, a file or a glob.")
  start = storage.folder_of(pattern)
  return _entries(found, lambda entry: storage.below(entry.path, start))


def _folder(folder: str) -> Found:
  """Everything below a folder, depth first, in order of the names' bytes."""
  waiting = [(folder, "")]
  while waiting:
    path, prefix = waiting.pop()
    try:
      entries = storage.listed(path)
    except OSError as error:
      yield Reject(escape(prefix.rstrip("/") or "."), None, "unreadable", detail=str(error))
      continue
    below = [(entry.path, f"{prefix}{entry.name}/") for entry in entries if entry.kind == "folder"]
    waiting += reversed(below)
    yield from _entries(entries, lambda entry, prefix=prefix: prefix + entry.name)


def _entries(entries: Iterable[storage.Entry], name_of: Any) -> Found:
  """The sources of the files among entries; those of one folder and stem describe each other."""
  entries = [entry for entry in entries if entry.kind != "folder"]
  cars, videos = {}, set()
  for entry in entries:
    stem, ending = os.path.splitext(entry.path)
    if ending in side_cars.ENDINGS and entry.kind == "file":
      cars.setdefault(stem, {})[ending] = entry.path
    else:
      videos.add(stem)
  for entry in entries:
    stem, ending = os.path.splitext(entry.path)
    if stem in videos and ending in side_cars.ENDINGS and entry.kind == "file":
      continue
    name = name_of(entry)
    try:
      words = _read_words(cars.get(stem, {}) if ending not in side_cars.ENDINGS else {})
    except Refused as refused:
      yield Reject(escape(name), None, refused.reason, detail=refused.detail)
    else:
      yield from _of_entry(entry, name, words)


def _read_words(cars: Mapping[str, str]) -> Words:
  words = Words()
  for ending in side_cars.ENDINGS:
    if ending in cars:
      data = storage.read_small(cars[ending], side_cars.MOST_BYTES)
      words = words.plus(side_cars.parse(ending, data))
  return words


def _of_entry(entry: storage.Entry, name: str, words: Words) -> Found:
  if entry.kind == "link":
    yield Reject(escape(name), None, "symlink", detail="links are not followed")
  elif entry.kind != "file":
    yield Reject(escape(name), None, "not_a_file", detail="a pipe, a socket, a device or a folder")
  elif entry.name.endswith(archives.ENDINGS):
    yield from find_members(entry, name)
  else:
    source = Source(escape(name), escape(entry.path), size=entry.size, stamp=entry.stamp)
    yield describe(source, words)


# ---- lists


def _listed(path: str, caption_fields: Sequence[str]) -> Found:
  """The rows of a list."""
  folder = path.rpartition("/")[0]
  seen: set[int] = set()
  with storage.open_file(path) as file:
    text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
    for line, row in _rows(path, text):
      yield _of_row(f"{path}: line {line}", row, folder, caption_fields, seen)


def _rows(path: str, text: io.TextIOWrapper) -> Iterator[tuple[int, Any]]:
  """(line number, row) of a list."""
  if not path.endswith(".jsonl"):
    reader = csv.DictReader(text, delimiter="\t" if path.endswith(".tsv") else ",")
    yield from ((reader.line_num, row) for row in reader)
    return
  for line, content in enumerate(text, 1):
    if content.strip():
      try:
        yield line, json.loads(content)
      except (ValueError, RecursionError) as error:
        raise BadInput(f"curate: {path}: line {line} is not JSON ({error}). Mend it.") from error


def _of_row(
  where: str, row: Any, folder: str, caption_fields: Sequence[str], seen: set[int]
) -> Source | Reject:
  fields = row if isinstance(row, Mapping) else {}
  given = next((fields[name] for name in _PATH_FIELDS if fields.get(name)), None)
  if not isinstance(given, str):
    raise BadInput(
      f"curate: {where} names no file. Give a column {' or '.join(_PATH_FIELDS)} (CSV needs a "
      "header)."
    )
  name = escape(given)
  if (number := hash_text(name)) in seen:
    return Reject(name, None, "listed_twice", detail=f"{where}; give all captions in one row")
  seen.add(number)
  try:
    words = from_fields(fields, caption_fields)
  except ValueError as error:
    raise BadInput(f"curate: {where}: {error}. Mend the row.") from error
  return _named(name, _placed(given, folder), words)


def _placed(given: str, folder: str) -> str:
  """The path that a row means: relative ones start at the list."""
  if storage.is_url(given):
    return storage.local(given)
  return f"{folder}/{given}" if storage.is_url(folder) else os.path.join(folder, given)


def _named(name: str, path: str, words: Words) -> Source | Reject:
  try:
    entry = storage.look(path if storage.is_url(path) else os.path.realpath(path))
  except OSError as error:
    return Reject(name, None, "unreadable", detail=str(error))
  if entry is None:
    return Reject(name, None, "not_found", detail=escape(path))
  if entry.kind != "file":
    return Reject(name, None, "not_a_file", detail=escape(path))
  return describe(Source(name, escape(entry.path), size=entry.size, stamp=entry.stamp), words)


# ---- datasets, and opening


def _tfds_rows(given: str, caption_fields: Sequence[str], fps: float) -> Found:
  from data_pipeline.curate import tfds_videos  # starts in two seconds

  return tfds_videos.find_rows(given, caption_fields, fps)


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

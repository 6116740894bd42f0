"""Gathers what a list says of each video: the rows of one video make one source.

Captions of several rows follow each other; those of rows with times become spans. Rows without
captions add nothing. What a row says that has no place is BadInput, with line and column.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from data_pipeline.curate import list_files, side_cars, storage
from data_pipeline.curate.columns import Roles, plain
from data_pipeline.curate.notes import Notes
from data_pipeline.curate.rows import Row, find_roles_of
from data_pipeline.curate.side_cars import Words, read_words
from data_pipeline.curate.types import Refused
from data_pipeline.errors import BadInput
from data_pipeline.paths import expand_home

_PAGES = re.compile(r"https?://(?:[\w-]+\.)*(?:youtube\.com|youtu\.be|vimeo\.com)/", re.IGNORECASE)
_TEXT_FILE = re.compile(r"[^\r\n]{1,400}\.(?:txt|caption)", re.IGNORECASE)
_PROSE = re.compile(r"[^\W\d_]{2,}[,;:]?\s+[^\W\d_]+|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{4,}")


class Listed(NamedTuple):
  """A video of a list.

  Attributes:
    name: as the list gives it.
    path: of the file: relative ones start at the list. "" for an id without a file.
    words: what all its rows say.
    where: of its first row.
    detail: why there is no path.
  """

  name: str
  path: str
  words: Words
  where: str
  detail: str = ""


def read_list(path: str, wanted: tuple[str, ...] | None, notes: Notes) -> list[Listed]:
  """The videos of a list, in the order of their first rows.

  Args:
    path: of the list.
    wanted: names of columns that hold captions; None for the known ones.
    notes: told the columns that are not used.
  Raises:
    BadInput: the list cannot be read for certain, or a row makes no sense.
  """
  found: dict[str, Listed] = {}
  census, files = _Census(path, wanted), _Files(path)
  for row in list_files.read_rows(path):
    roles = find_roles_of(row.where, row.names, wanted)
    one = _name(row, roles, files)
    values = [
      _read_file(row.where, value, files.folder) if i in roles.captions else value
      for i, value in enumerate(row.values)
    ]
    words = _read(row.where, row.names, values, wanted, census.unused)
    census.add(row, roles, words)
    key = one.path or f"id {one.name}"
    there = found.get(key)
    found[key] = _joined(there, words, row.where) if there else one._replace(words=words)
  census.tell(notes)
  return list(found.values())


def is_videofolder(path: str) -> bool:
  """Tells whether a file in a folder is VideoFolder's metadata.

  Raises:
    BadInput: it has the name, and cannot be read.
  """
  if os.path.basename(path).lower() not in ("metadata.csv", "metadata.jsonl"):
    return False
  return find_roles_of(path, list_files.read_names(path)).is_file_name


def _read(where: str, names, values, wanted, unused) -> Words:
  try:
    return read_words(names, values, wanted, is_row=True, unused=unused)
  except ValueError as error:
    raise BadInput(f"curate: {where}, {error}. Mend the row.") from error


def _joined(one: Listed, words: Words, where: str) -> Listed:
  for field in ("licence", "split"):
    said, other = getattr(one.words, field), getattr(words, field)
    if said and other and said != other:
      raise BadInput(
        f"curate: {where}, column {field!r}: {other!r} of {one.name} is {said!r} at {one.where}. "
        "Mend one of them."
      )
  return one._replace(words=one.words.plus(words))


def _read_file(where: str, value: Any, folder: str) -> Any:
  """The captions of a text file that a cell names; the cell itself if there is no such file."""
  if not isinstance(value, str) or not _TEXT_FILE.fullmatch(value.strip()):
    return value
  path = placed(value.strip(), folder)
  if storage.is_url(path) or not os.path.isfile(path):
    return value
  try:
    data = storage.read_small(os.path.realpath(path), side_cars.MOST_BYTES)
    return list(side_cars.parse(path, data).captions)
  except Refused as refused:
    raise BadInput(f"curate: {where}: captions in {value.strip()}: {refused}.") from refused


# ---- which file


class _Files:
  """The files beside a list, by stem, for lists that name videos by ids."""

  def __init__(self, path: str):
    self.path, self.folder = path, path.rpartition("/")[0]
    self._names: dict[str, list[str]] | None = None

  def find(self, stem: str) -> list[str]:
    if self._names is None:
      self._names = {}
      for name in self._list():
        if not (side_cars.is_side_car(name) or list_files.is_list(name)):
          self._names.setdefault(os.path.splitext(os.path.basename(name))[0], []).append(name)
    return self._names.get(stem, [])

  def _list(self) -> Iterator[str]:
    """Names of the files in the list's folder, and in the folders in it."""
    entries = storage.listed(self.folder or ("/" if self.path.startswith("/") else "."))
    yield from (entry.name for entry in entries if entry.kind == "file")
    for folder in entries:
      if folder.kind == "folder":
        with contextlib.suppress(OSError):
          inside = storage.listed(folder.path)
          yield from (f"{folder.name}/{entry.name}" for entry in inside if entry.kind == "file")

  def has(self, name: str) -> bool:
    """Tells whether a file of this very name lies at the list."""
    path = placed(name, self.folder)
    return not storage.is_url(path) and os.path.lexists(path)


def _name(row: Row, roles: Roles, files: _Files) -> Listed:
  """The video that a row is about: by its path, its id, or its url."""
  path, key, url = (_first(row, places) for places in (roles.paths, roles.ids, roles.urls))
  if path and ("/" in path or os.path.splitext(path)[1]):
    return _at(path, row, files)
  for stem in filter(None, (path, key)):
    if files.has(stem):
      return _at(stem, row, files)
    names = [] if "/" in stem else files.find(stem)
    if len(names) > 1:
      raise BadInput(
        f"curate: {row.where}: {stem!r} may be {' or '.join(names[:3])}. Give a column path."
      )
    if names:
      return _at(names[0], row, files)
  if path or (url and not _PAGES.match(url)):
    return _at(path or url, row, files)
  if not (key or url):
    raise BadInput(
      f"curate: {row.where} names no file. Give a column path, or file_name, video, video_id, url "
      "(CSV needs a header)."
    )
  detail = f"{row.where}: no file of this name lies beside the list; a page is no file: fetch it"
  return Listed(key or url, "", Words(), row.where, detail)


def _first(row: Row, places: Sequence[int]) -> str:
  """The first of some cells that holds something."""
  given = next((row.values[i] for i in places if row.values[i] not in (None, "")), "")
  if isinstance(given, int) and not isinstance(given, bool):
    return str(given)
  try:
    if not isinstance(given, str) or "\0" in given:
      raise ValueError
    os.fsencode(given)
  except ValueError as error:
    raise BadInput(
      f"curate: {row.where} names no file: {ascii(given)[:60]} is no path. Mend the row."
    ) from error
  return given


def _at(given: str, row: Row, files: _Files) -> Listed:
  path = placed(given if storage.is_url(given) else os.path.normpath(given), files.folder)
  if not storage.is_url(path):
    path = os.path.normpath(path)
    for other in (given.strip(), given.replace("\\", "/")):  # as Windows writes it
      if other != given and files.has(other) and not files.has(given):
        return _at(other, row, files)
  return Listed(given, path, Words(), row.where)


def placed(given: str, folder: str) -> str:
  """The path that a row means: relative ones start at the list, and ~/ at home."""
  if storage.is_url(given):
    return storage.local(given)
  if given.startswith("~/") and not storage.is_url(folder):
    beside = os.path.join(folder, given)
    return beside if os.path.lexists(beside) else expand_home(given)
  return f"{folder}/{given}" if storage.is_url(folder) else os.path.join(folder, given)


# ---- which columns


class _Census:
  """Looks which columns of a list are used."""

  def __init__(self, path: str, wanted: tuple[str, ...] | None):
    self._path, self._wanted = path, wanted
    self._names: dict[str, None] = {}
    self._unused: dict[str, None] = {}
    self._spare: dict[str, None] = {}
    self._prose: dict[str, str] = {}
    self._has_captions = False

  def unused(self, name: str) -> None:
    self._unused[name.strip() or "(without a name)"] = None

  def add(self, row: Row, roles: Roles, words: Words) -> None:
    self._names |= dict.fromkeys(row.names)
    self._has_captions |= bool(words.count()) or (bool(roles.captions) and not roles.is_spare)
    if roles.is_spare and words.count():
      self._spare |= dict.fromkeys(row.names[i].strip() for i in roles.captions)
    if not self._has_captions and self._wanted is None:
      for name, value in zip(row.names, row.values, strict=True):
        text = value[0] if isinstance(value, list) and value else value
        if name.strip() in self._unused and isinstance(text, str) and _PROSE.search(text):
          self._prose.setdefault(name.strip(), text)

  def tell(self, notes: Notes) -> None:
    """Says which columns are not used. Raises BadInput: one of these should be."""
    known = {plain(name) for name in self._names}
    for name in self._wanted or ():
      if plain(name) not in known:
        raise BadInput(
          f"curate.sources.caption_columns: {self._path} has no column {name!r}. It has "
          f"{', '.join(name.strip() for name in self._names)}."
        )
    if self._prose and not self._has_captions and self._wanted is None:
      name, text = next(iter(self._prose.items()))
      raise BadInput(
        f"curate: {self._path}: no column is known to hold captions, and {name!r} holds text "
        f"({text[:40]!r}). Give --config.curate.sources.caption_columns with its name, or 'none'."
      )
    if self._spare:
      notes.say(f"{self._path}: captions are taken from {', '.join(self._spare)}")
    if self._unused:
      none = "" if self._has_captions or self._wanted == () else "no column holds captions; "
      names = ", ".join(self._unused)
      notes.say(f"{self._path}: {none}columns that are not used: {names}")

"""Folders and files, on this machine or wherever fsspec reaches: listed, and opened for reading.

Paths are text: local ones as `os.fsdecode` gives them, others are urls. Symbolic links are never
followed. What is opened is a regular file: no pipe, no device.
"""

import glob
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from data_pipeline.curate.types import Refused
from data_pipeline.errors import BadInput

COPY_BYTES = 1 << 20
MOST_COPIED_BYTES = 64 << 30
_STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")


class Entry(NamedTuple):
  """One name in a folder.

  Attributes:
    kind: "file", "folder", "link" or "other".
    stamp: changes when the content does, as far as can be told.
  """

  path: str
  name: str
  kind: str
  size: int
  stamp: str


def is_url(path: str) -> bool:
  return "://" in path


def local(path: str) -> str:
  """A file:// url as a path; anything else as it is."""
  return path[len("file://") :] if path.startswith("file://") else path


def below(path: str, root: str) -> str:
  """A path relative to the folder `root`, which it is in."""
  if is_url(root):
    fs, inner = _file_system(root)
    root = fs.unstrip_protocol(inner)
  return path.removeprefix(root).lstrip("/")


def listed(folder: str) -> list[Entry]:
  """What is in a folder, in order of name.

  Raises:
    OSError: it cannot be read.
  """
  if is_url(folder):
    fs, path = _file_system(folder)
    found = [_url_entry(fs, info) for info in fs.ls(path, detail=True)]
    entries = [entry for entry in found if entry.name]
  else:
    with os.scandir(folder) as scan:
      entries = [_local_entry(item.path, item.name) for item in scan]
  return sorted(entries, key=lambda entry: os.fsencode(entry.name))


def look(path: str) -> Entry | None:
  """The entry of a path; None if there is nothing. A link is told as a link."""
  if not is_url(path):
    return _local_entry(path, os.path.basename(path)) if os.path.lexists(path) else None
  fs, inner = _file_system(path)
  try:
    return _url_entry(fs, fs.info(inner))
  except FileNotFoundError:
    return None


def _local_entry(path: str, name: str) -> Entry:
  try:
    found = os.lstat(path)
  except OSError:
    return Entry(path, name, "other", -1, "")
  kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
  kind = kinds.get(stat.S_IFMT(found.st_mode), "other")
  return Entry(path, name, kind, found.st_size, f"{found.st_size}-{found.st_mtime_ns}")


def _url_entry(fs: Any, info: dict) -> Entry:
  url, size = fs.unstrip_protocol(info["name"]), info.get("size")
  kind = {"directory": "folder", "file": "file"}.get(info["type"], "other")
  kind = "link" if info.get("islink") else kind
  stamps = [str(info[key]) for key in _STAMPS if info.get(key)]
  size = -1 if size is None else int(size)
  return Entry(url, url.rstrip("/").rpartition("/")[2], kind, size, "-".join([str(size), *stamps]))


def matches(pattern: str) -> list[Entry]:
  """The entries that fit a glob, in order of path. What lies behind a link is told as a link."""
  if is_url(pattern):
    fs, inner = _file_system(pattern)
    found = [_url_entry(fs, info) for info in fs.glob(inner, detail=True).values()]
  else:
    paths = glob.glob(pattern, recursive=True, include_hidden=True)
    found = [_beyond_links(_local_entry(path, os.path.basename(path)), pattern) for path in paths]
  return sorted(found, key=lambda entry: os.fsencode(entry.path))


def open_file(path: str) -> BinaryIO:
  """Opens a regular file for reading.

  Raises:
    Refused: "not_found", "unreadable", or "not_a_file" (a link, a pipe, a device, a folder).
  """
  try:
    if is_url(path):
      fs, inner = _file_system(path)
      return fs.open(inner, "rb")
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
  except FileNotFoundError as error:
    raise Refused("not_found", str(error)) from error
  except OSError as error:
    raise Refused("unreadable", str(error)) from error
  if not stat.S_ISREG(os.fstat(number).st_mode):
    os.close(number)
    raise Refused("not_a_file", "neither a file nor a link to one")
  return os.fdopen(number, "rb")


def read_small(path: str, most: int) -> bytes:
  """A whole file of at most so many bytes.

  Raises:
    Refused: as `open_file`, or "too_large".
  """
  with open_file(path) as file:
    data = file.read(most + 1)
  if len(data) > most:
    raise Refused("too_large", f"more than {most} bytes")
  return data


@contextmanager
def seekable(file: BinaryIO) -> Iterator[BinaryIO]:
  """The file itself, or a temporary copy of one that can only be read forwards."""
  with file:
    if file.seekable():
      yield file
      return
    with tempfile.TemporaryFile() as copy:
      while data := file.read(COPY_BYTES):
        if copy.tell() > MOST_COPIED_BYTES:
          raise Refused("too_large", f"more than {MOST_COPIED_BYTES} bytes that cannot be sought")
        copy.write(data)
      copy.seek(0)
      yield copy


def _beyond_links(entry: Entry, pattern: str) -> Entry:
  start = folder_of(pattern)
  folder = os.path.dirname(entry.path)
  expected = os.path.join(os.path.realpath(start), below(folder, start)).rstrip("/")
  return entry if os.path.realpath(folder) == expected else entry._replace(kind="link")


def folder_of(pattern: str) -> str:
  """The folder in which a glob begins to search."""
  return pattern[: next((i for i, c in enumerate(pattern) if c in "*?["), 0)].rpartition("/")[0]


def _file_system(url: str) -> tuple[Any, str]:
  try:
    import fsspec

    return fsspec.core.url_to_fs(url)
  except (ImportError, ValueError) as error:
    raise BadInput(
      f"curate: input={url!r} cannot be reached ({error}). Install what fsspec needs for this "
      "kind of url, or copy the files."
    ) from error

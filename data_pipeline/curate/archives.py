"""Tar archives, listed and read without unpacking anything.

A member's name is only ever a name: nothing is written under it. Archives are read block by block,
so that what a header claims costs nothing. In a plain archive a member is a window on the file. A
gzipped one is read from its beginning for each member, which is copied to a nameless temporary
file: plain archives are faster. Of a gzipped one at most `RATIO` times what was read of it is
unpacked (or `FREE_BYTES` if that is more), and a member may have `COPIED_BYTES`.
"""

import gzip
import io
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from data_pipeline.curate.storage import COPY_BYTES
from data_pipeline.curate.types import Refused

ENDINGS = (".tar", ".tar.gz", ".tgz")
RATIO = 100
FREE_BYTES = 256 << 20
COPIED_BYTES = 8 << 30
NAME_BYTES = 1 << 16  # of the blocks that hold long names
_BLOCK = 512
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_END = ("EOFHeaderError", "EmptyHeaderError")
_SILENT = (*_LONG_NAMES, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE)


class Member(NamedTuple):
  """One entry of an archive.

  Attributes:
    name: as stored.
    kind: "file", "folder", "link" or "other".
    offset: of its content, in bytes of the unpacked archive.
    size: bytes.
    content: if it was wanted, else b"".
  """

  name: bytes
  kind: str
  offset: int
  size: int
  content: bytes = b""


class _Unpacked(io.RawIOBase):
  """A gzipped file, forwards only, that refuses to grow without end."""

  def __init__(self, file: BinaryIO):
    self._packed, self._file, self._at = file, gzip.GzipFile(fileobj=file), 0

  def read(self, size: int = -1) -> bytes:
    data = self._file.read(size)
    self._at += len(data)
    if self._at > max(FREE_BYTES, RATIO * self._packed.tell()):
      raise Refused("bomb", f"unpacks to more than {RATIO} times its size")
    return data

  def tell(self) -> int:
    return self._at

  def seek(self, offset: int, whence: int = 0) -> int:
    while self._at < offset and self.read(min(offset - self._at, COPY_BYTES)):
      pass
    return self._at


def _unpacked(file: BinaryIO) -> Any:
  file.seek(0)
  is_packed = file.read(2) == b"\x1f\x8b"
  file.seek(0)
  return _Unpacked(file) if is_packed else file


def members(file: BinaryIO, wanted: Callable[[Member], bool]) -> Iterator[Member]:
  """Goes through an archive, block by block.

  Args:
    file: seekable.
    wanted: whether the content of a member is wanted too: then it has to be small.
  Raises:
    Refused: "empty", "not_an_archive", "damaged", "truncated" or "bomb", after what precedes it.
  """
  size = file.seek(0, io.SEEK_END)
  stream = _unpacked(file)
  try:
    yield from _members(stream, size if stream is file else -1, wanted)
  except EOFError as error:
    raise Refused("truncated", str(error)) from error
  except (zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
    raise Refused("damaged", str(error)) from error


def _members(stream: Any, size: int, wanted: Callable[[Member], bool]) -> Iterator[Member]:
  changes = {}
  while header := _header(stream):
    at, length = stream.tell(), int(changes.get("size", header.size))
    if length < 0 or (size >= 0 and at + length > size):
      raise EOFError(f"{header.name[:200]!r} goes beyond the end")
    if header.type in _LONG_NAMES:
      changes |= _changes(header, stream.read(min(length, NAME_BYTES)))
    elif header.type not in _SILENT:
      name = changes.get("path", header.name.encode("utf-8", "surrogateescape"))
      member = Member(name, _kind(header, changes), at, length)
      yield member._replace(content=stream.read(length)) if wanted(member) else member
      changes = {}
    has_content = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
    has_content = has_content or header.type in _SILENT
    end = at + (-(-length // _BLOCK) * _BLOCK if has_content else 0)
    if stream.seek(end) < end:
      raise EOFError("the last member is not whole")


def _header(stream: Any) -> tarfile.TarInfo | None:
  """The next header; None at the end of the archive."""
  at = stream.tell()
  block = stream.read(_BLOCK)
  if not block and at == 0:
    raise Refused("empty", "0 bytes")
  try:
    return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
  except tarfile.HeaderError as error:
    if type(error).__name__ in _END and at > 0:
      return None
    raise Refused("damaged" if at else "not_an_archive", str(error)) from error


def _changes(header: tarfile.TarInfo, data: bytes) -> dict[str, Any]:
  """What a block of long names says of the member after it."""
  if header.type == tarfile.GNUTYPE_LONGNAME:
    return {"path": data.rstrip(b"\0")}
  fields = dict(_records(data))
  found: dict[str, Any] = {"path": fields[b"path"]} if b"path" in fields else {}
  if re.fullmatch(rb"\d{1,18}", fields.get(b"size", b"")):
    found["size"] = int(fields[b"size"])
  return found | ({"sparse": True} if any(key.startswith(b"GNU.sparse") for key in fields) else {})


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
  """The records of a pax header: "LENGTH KEY=VALUE\\n", the length being that of all of it."""
  while found := re.match(rb"(\d{1,6}) ([^=]*)=", data):
    end = int(found[1])
    yield found[2], data[found.end() : end - 1]
    data = data[max(end, found.end()) :]


def _kind(header: tarfile.TarInfo, changes: dict[str, Any]) -> str:
  if header.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) and not header.isdir():
    return "other" if "sparse" in changes else "file"
  return "folder" if header.isdir() else "link" if header.issym() or header.islnk() else "other"


@contextmanager
def open_member(file: BinaryIO, offset: int, size: int) -> Iterator[BinaryIO]:
  """A member's content as a seekable file.

  Args:
    file: the archive, seekable.
    offset, size: as `members` gave them.
  Raises:
    Refused: "too_large" or "bomb" (of a gzipped archive), "truncated", "damaged".
  """
  stream = _unpacked(file)
  if stream is file:
    yield io.BufferedReader(_Window(file, offset, size))
    return
  if size > COPIED_BYTES:
    raise Refused("too_large", f"{size} bytes in a gzipped archive")
  with tempfile.TemporaryFile() as copy:
    try:
      stream.seek(offset)
      while copy.tell() < size and (data := stream.read(min(COPY_BYTES, size - copy.tell()))):
        copy.write(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      raise Refused("damaged", str(error)) from error
    copy.seek(0)
    yield copy


class _Window(io.RawIOBase):
  """A part of a file, as a file."""

  def __init__(self, file: BinaryIO, offset: int, size: int):
    self._file, self._offset, self._size, self._at = file, offset, size, 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
    self._at = max(0, base + offset)
    return self._at

  def tell(self) -> int:
    return self._at

  def readinto(self, buffer: Any) -> int:
    count = max(0, min(len(buffer), self._size - self._at))
    self._file.seek(self._offset + self._at)
    data = self._file.read(count)
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)

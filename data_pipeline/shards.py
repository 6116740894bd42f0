"""Open shards of a dataset, a bounded number of them: a process may hold about 1,000 files."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}  # random access
_KEPT = 128  # readers kept open while nobody reads


class ShardReaders:
  """Lends readers, each to one thread at a time, and keeps the latest open. Safe from any thread.

  A reader that is lent is in nobody else's hands, so it cannot be closed under a thread that reads;
  two threads in one shard have a reader each. Open at once are `kept` and those lent.
  """

  def __init__(self, kept: int = _KEPT) -> None:
    self._kept = kept
    self._idle: list[tuple[str, Any]] = []  # the longest unused first
    self._lock = threading.Lock()

  @contextmanager
  def lend(self, path: Path) -> Iterator[Any]:
    """A reader of a shard for a `with` block. Raises as `open_shard`."""
    name = str(path)
    reader = self._take(name) or open_shard(path)  # opened outside the lock: a mount takes long
    try:
      yield reader
    except BaseException:
      _close(reader)
      raise
    self._put_back(name, reader)

  def _take(self, name: str) -> Any:
    with self._lock:
      for i in range(len(self._idle) - 1, -1, -1):
        if self._idle[i][0] == name:
          return self._idle.pop(i)[1]
    return None

  def _put_back(self, name: str, reader: Any) -> None:
    with self._lock:
      self._idle.append((name, reader))
      unused = self._idle.pop(0)[1] if len(self._idle) > self._kept else None
    if unused is not None:
      _close(unused)


def open_shard(path: Path) -> Any:
  """An `ArrayRecordReader`; that of a damaged shard is empty and raises RuntimeError when read.

  Raises:
    OSError: the process or the machine has no file descriptor left (EMFILE, ENFILE).
  """
  reader = array_record_module.ArrayRecordReader(str(path), **_OPTIONS)
  if not reader.ok():
    _check_descriptors(reader, path)
  return reader


def count_records(path: Path) -> int:
  """Records of a shard, 0 of a damaged one. Raises as `open_shard`."""
  reader = open_shard(path)
  count = reader.num_records()
  _close(reader)
  return count


def _close(reader: Any) -> None:
  with suppress(RuntimeError):  # closes all the same, and says again what ails a damaged shard
    reader.close()


def _check_descriptors(reader: Any, path: Path) -> None:
  """The reader says why it could not open its file only when it is read."""
  try:
    reader.read([0])
  except RuntimeError as error:
    for code in (errno.EMFILE, errno.ENFILE):
      if os.strerror(code) in str(error):
        raise OSError(code, f"{os.strerror(code)}, raise ulimit -n", str(path)) from error

"""Writes a dataset folder, whole or not at all. Its layout is in `data_pipeline.dataset`."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data_pipeline import index, records, stored, tfds_folder
from data_pipeline.errors import BadInput
from data_pipeline.facts import Facts
from data_pipeline.folder import (
  Claim,
  absolute,
  check_free,
  neighbour,
  settle,
  shard_name,
  sync,
  sync_file,
  writable,
)
from data_pipeline.records import Record

# One record a group: reading one decodes nothing beside it. zstd gains little on latents.
_OPTIONS = "group_size:1,uncompressed"
_ERRORS = (
  *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
  *(errno.ENOENT, errno.ENOTDIR, errno.EMFILE, errno.ENFILE, errno.EIO),
)
Sizes = dict[str, list[dict[str, int]]]  # `records` and `bytes` of every shard, by split


class DatasetWriter:
  """Context manager that makes a dataset folder out of records.

      with DatasetWriter("data/clips", "clip", name="physworld", shard_bytes=2**28, meta={}) as out:
        out.add(record)

  Everything is written into a hidden folder beside `path`, which gets its name when the block ends
  well. When it does not, the hidden folder is removed; when the process is killed, the next writer
  of `path` removes it. A lock file beside both, `.NAME.lock`, is held from beginning to end.

  Attributes:
    folder: the hidden folder; what else belongs to the dataset (`vae/`) is put there.
    fingerprint: of the dataset, once it is finished.

  Args:
    path: folder to make; absent, or empty.
    kind: "clip" or "latent".
    name: of the dataset, as TFDS shows it: small letters, digits, underscores.
    shard_bytes: a shard is closed before it grows beyond this; a larger record has its own.
    meta: JSON-able facts about the dataset: which VAE, which text encoder. Part of the fingerprint.
  Raises:
    BadInput: a bad argument or record; `path` is taken or cannot be written; no record was added.
    OSError: the disk is full.
  """

  def __init__(
    self, path: str | os.PathLike, kind: str, *, name: str, shard_bytes: int, meta: Mapping
  ):
    check_names(kind, name)
    if shard_bytes < 1:
      raise BadInput(f"dataset: shard_bytes={shard_bytes} is below 1. Give a positive size.")
    self.path = absolute(path)
    self.folder = neighbour(self.path, "partial")
    self.fingerprint: str | None = None
    self._facts = Facts(kind, name, meta)
    self._shard_bytes = shard_bytes

  def __enter__(self) -> "DatasetWriter":
    check_free(self.path)
    with writable(self.path):
      self._claim = Claim(self.path)
      try:
        settle(self.path)
        check_free(self.path)  # another writer may have finished before the lock was ours
        if self.folder.exists():
          shutil.rmtree(self.folder)  # what a killed writer left
        self.folder.mkdir()
      except BaseException:
        self._claim.release()
        raise
    self._shards = Shards(self.folder, self._facts, shard_bytes=self._shard_bytes)
    return self

  def add(self, record: Record) -> None:
    """Appends a record. Raises BadInput: not as its table says, or unlike those before it."""
    self._shards.add(record)

  def __exit__(self, kind: type | None, error: Any, trace: Any) -> None:
    try:
      if kind is None:
        self._finish()
    finally:
      self._shards.abandon()
      shutil.rmtree(self.folder, ignore_errors=True)
      self._claim.release()

  def _finish(self) -> None:
    columns, sizes = self._shards.finish()
    for split, shards in sizes.items():
      for i in range(len(shards)):
        final = shard_name(self._facts.name, split, i, len(shards))
        (self.folder / f"{split}-{i}").rename(self.folder / final)
    self.fingerprint = seal(self.folder, self._facts, columns, sizes, path=self.path)
    sync(self.folder)
    self.folder.rename(self.path)
    sync_file(self.path.parent)


def check_names(kind: str, name: str) -> None:
  """Raises BadInput: no kind of record, or a name that TFDS cannot use."""
  if kind not in records.CLASSES or not re.fullmatch("[a-z][a-z0-9_]*", name):
    raise BadInput(
      f"dataset: kind={kind!r} or name={name!r} is unusable. "
      "Use kind clip or latent, and a name of a-z, 0-9, _."
    )


def seal(
  folder: Path, facts: Facts, columns: Mapping[str, np.ndarray], sizes: Sizes, *, path: Path
) -> str:
  """Writes all that makes a dataset of the shards in a folder; `meta.json` comes last.

  Args:
    folder: holds the shards under their final names.
    facts: of the dataset.
    columns: its index.
    sizes: of the shards.
    path: of the dataset, to be named in errors.
  Returns:
    The fingerprint.
  Raises:
    BadInput: there is no record, or two have one id.
  """
  if not len(columns["row"]):
    raise BadInput(f"dataset: {path} would hold no records. Check what was to be written.")
  index.check_ids(columns)
  index.write_index(folder / "index", columns)
  tfds_folder.write_metadata(
    folder,
    facts.kind,
    name=facts.name,
    storage=facts.storage,
    tokenizers=facts.tokenizers or (),
    shards=sizes,
  )
  fingerprint = index.fingerprint(facts.hashed, columns)
  described = facts.hashed | {"meta": facts.meta}
  described |= {"name": facts.name, "shards": sizes, "fingerprint": fingerprint}
  text = json.dumps(described, indent=1) + "\n"
  (folder / "meta.json").write_text(text, encoding="utf-8")
  return fingerprint


class Shards:
  """Checks records and writes them into shards FOLDER/SPLIT-0, SPLIT-1 …, with their index.

  Args:
    folder: where to.
    facts: of the dataset; what the records tell is added.
    shard_bytes: a shard is closed before it grows beyond this; None for one shard a split.
  """

  def __init__(self, folder: Path, facts: Facts, *, shard_bytes: int | None):
    self._folder, self._facts, self._shard_bytes = folder, facts, shard_bytes
    self._index = index.IndexBuilder(facts.kind)
    self._open: dict[str, ShardFile] = {}  # the last shard of every split
    self._sizes: Sizes = {}  # of the shards before it

  def add(self, record: Record) -> None:
    """Appends a record. Raises BadInput: not as its table says, or unlike those before it."""
    self._facts.check(record)
    data = stored.serialize(record)
    file = self._file_for(record.split, len(data))
    self._index.add(record, data, shard=len(self._sizes[record.split]), row=file.records)
    file.write(data)

  def _file_for(self, split: str, size: int) -> "ShardFile":
    file, closed = self._open.get(split), self._sizes.setdefault(split, [])
    if file and self._shard_bytes and file.bytes + size > self._shard_bytes:
      closed.append(file.close())
      file = None
    if not file:
      file = self._open[split] = ShardFile(self._folder / f"{split}-{len(closed)}")
    return file

  def finish(self) -> tuple[dict[str, np.ndarray], Sizes]:
    """Closes the last shards. Returns the index, and the sizes by split in the order of SPLITS."""
    for split in list(self._open):
      self._sizes[split].append(self._open.pop(split).close())
    return self._index.columns(), {s: self._sizes[s] for s in records.SPLITS if s in self._sizes}

  def abandon(self) -> None:
    """Closes the files after a failure; what they say no longer matters."""
    for file in self._open.values():
      file.abandon()


class ShardFile:
  """One ArrayRecord file that is written; `records` and `bytes` say what it holds so far.

  Raises:
    OSError: from `write` and `close`, the disk is full or the file cannot be written.
  """

  def __init__(self, path: Path):
    self._path, self.records, self.bytes = path, 0, 0
    self._writer = array_record_module.ArrayRecordWriter(str(path), _OPTIONS)

  def write(self, data: bytes) -> None:
    self._try(self._writer.write, data)
    self.records += 1
    self.bytes += len(data)

  def close(self) -> dict[str, int]:
    """Ends the file. Returns its `records` and `bytes`."""
    self._try(self._writer.close)
    return {"records": self.records, "bytes": os.path.getsize(self._path)}

  def abandon(self) -> None:
    if self._writer.is_open():
      try:
        self._writer.close()
      except RuntimeError:  # the disk is full: that was raised before
        pass

  def _try(self, call, *arguments) -> None:
    try:
      call(*arguments)
    except RuntimeError as error:  # the library's, which names the system's in its text
      found = (code for code in _ERRORS if os.strerror(code) in str(error))
      code = next(found, errno.EIO)
      raise OSError(code, f"{os.strerror(code)} ({error})", str(self._path)) from error


def write_shard(path: Path, data: Iterable[bytes]) -> dict[str, int]:
  """Writes serialized records as one shard. Returns its `records` and `bytes`."""
  file = ShardFile(path)
  try:
    for one in data:
      file.write(one)
    return file.close()
  finally:
    file.abandon()

"""Writes a dataset folder, whole or not at all. Its layout is in `data_pipeline.dataset`."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data_pipeline import index, records, tfds_folder
from data_pipeline.errors import BadInput
from data_pipeline.records import Record

# One record a group: reading one decodes nothing beside it. zstd gains little on latents.
_OPTIONS = "group_size:1,uncompressed"
_REMOTE = re.compile(r"^[a-z0-9]+://", re.IGNORECASE)


def check_local(path: str | os.PathLike, where: str) -> Path:
  """A path that plain file calls reach. Raises BadInput for gs://, s3:// and the like."""
  if _REMOTE.match(os.fspath(path)):
    raise BadInput(
      f"{where}: path={path} is not a folder of this machine (remote shards read as empty). "
      "Mount the bucket, and give the path below the mount."
    )
  return Path(path)


def shard_name(name: str, split: str, shard: int, shards: int) -> str:
  """File name of a shard, as TFDS has it."""
  return f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"


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
  """

  def __init__(
    self, path: str | os.PathLike, kind: str, *, name: str, shard_bytes: int, meta: Mapping
  ):
    if kind not in records.CLASSES or not re.fullmatch("[a-z][a-z0-9_]*", name) or shard_bytes < 1:
      raise BadInput(
        f"dataset: kind={kind!r}, name={name!r} or shard_bytes={shard_bytes} is unusable. "
        "Use kind clip or latent, a name of a-z, 0-9, _, and a positive size."
      )
    self.path = Path(os.path.abspath(check_local(path, "dataset")))
    self.folder = self.path.with_name(f".{self.path.name}.partial")
    self._lock_path = self.path.with_name(f".{self.path.name}.lock")
    self.fingerprint: str | None = None
    self._kind, self._name, self._shard_bytes = kind, name, shard_bytes
    self._meta = json.loads(json.dumps(dict(meta)))
    self._index = index.IndexBuilder(kind)
    self._splits: dict[str, _Shards] = {}
    self._widths: dict[str, int | None] = {}

  def __enter__(self) -> "DatasetWriter":
    self._check_free()
    try:
      if not self.path.parent.exists():
        self.path.parent.mkdir(parents=True, exist_ok=True)
      self._claim()
      try:
        self._check_free()  # another writer may have finished before the lock was ours
        if self.folder.exists():
          shutil.rmtree(self.folder)  # what a killed writer left
        self.folder.mkdir()
      except BaseException:
        self._release()
        raise
    except OSError as error:
      raise BadInput(
        f"dataset: {self.path} cannot be written ({error.strerror}). Give another path."
      ) from error
    return self

  def _check_free(self) -> None:
    if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
      raise BadInput(
        f"dataset: {self.path} is not empty. Give another path, or remove what is there first."
      )

  def _claim(self) -> None:
    """Takes the lock file, which is held until the end, or says that somebody else has it."""
    while True:
      self._lock = open(self._lock_path, "w")
      try:
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        self._lock.close()
        raise BadInput(
          f"dataset: {self.path} is being written by another process. Wait for it to end."
        ) from None
      if self._lock_path.exists() and os.path.samestat(
        os.fstat(self._lock.fileno()), os.stat(self._lock_path)
      ):
        return
      self._lock.close()  # its holder removed it between our two calls

  def _release(self) -> None:
    """Removes the lock file while it is held, so that nobody can hold a removed one."""
    self._lock_path.unlink(missing_ok=True)
    self._lock.close()

  def add(self, record: Record) -> None:
    """Appends a record. Raises BadInput: not as its table says, or unlike those before it."""
    if not isinstance(record, records.CLASSES[self._kind]):
      raise BadInput(f"dataset: {type(record).__name__} is no {self._kind} record. Convert it.")
    records.check_record(record)
    self._check_widths(record)
    data = records.serialize(record)
    if record.split not in self._splits:
      self._splits[record.split] = _Shards(self.folder / record.split, self._shard_bytes)
    shard, row = self._splits[record.split].write(data)
    self._index.add(record, data, shard=shard, row=row)

  def _check_widths(self, record: Record) -> None:
    """Widths that a model is built for: the same in all records."""
    if not isinstance(record, records.LatentRecord):
      return
    widths: dict[str, int | None] = {"latent_channels": record.latent.shape[-1]}
    if record.captions:
      widths["text_state_width"] = record.text_states[0].shape[1] if record.text_states else None
    for name, width in widths.items():
      if self._widths.setdefault(name, width) != width:
        raise BadInput(
          f"dataset: {name}={width} of record {record.id!r} is not the {self._widths[name]} of "
          "those before it. Encode a dataset with one VAE and one text encoder."
        )

  def __exit__(self, kind: type | None, error: Any, trace: Any) -> None:
    try:
      if kind is None:
        self._finish()
    finally:
      for shards in self._splits.values():
        shards.abandon()
      shutil.rmtree(self.folder, ignore_errors=True)
      self._release()

  def _finish(self) -> None:
    if not len(self._index):
      raise BadInput(f"dataset: {self.path} would hold no records. Check what was to be written.")
    columns = self._index.columns()
    shards = {s: self._splits[s].finish() for s in records.SPLITS if s in self._splits}
    for split, sizes in shards.items():
      for i in range(len(sizes)):
        source = self.folder / f"{split}-{i}"
        source.rename(self.folder / shard_name(self._name, split, i, len(sizes)))
    index.write_index(self.folder / "index", columns)
    tfds_folder.write_metadata(self.folder, self._kind, name=self._name, shards=shards)
    facts = {
      "kind": self._kind,
      "version": records.VERSIONS[self._kind],
      "meta": self._meta,
      "widths": self._widths,
    }
    self.fingerprint = index.fingerprint(facts, columns)
    described = facts | {"name": self._name, "shards": shards, "fingerprint": self.fingerprint}
    text = json.dumps(described, indent=1) + "\n"
    (self.folder / "meta.json").write_text(text, encoding="utf-8")
    self.folder.rename(self.path)


class _Shards:
  """Shards of one split, numbered as they come: PREFIX-0, PREFIX-1 ..."""

  def __init__(self, prefix: Path, shard_bytes: int):
    self._prefix, self._shard_bytes = prefix, shard_bytes
    self._writer: Any = None
    self._sizes: list[dict[str, int]] = []  # of the shards closed: records, bytes
    self._records = self._bytes = 0

  def write(self, data: bytes) -> tuple[int, int]:
    """Appends a record. Returns the number of its shard, and its place in it."""
    if self._writer is not None and self._bytes + len(data) > self._shard_bytes:
      self._close()
    if self._writer is None:
      path = f"{self._prefix}-{len(self._sizes)}"
      self._writer = array_record_module.ArrayRecordWriter(path, _OPTIONS)
    self._writer.write(data)
    self._records += 1
    self._bytes += len(data)
    return len(self._sizes), self._records - 1

  def finish(self) -> list[dict[str, int]]:
    """Closes the last shard. Returns `records` and `bytes` of each."""
    if self._writer is not None:
      self._close()
    return self._sizes

  def abandon(self) -> None:
    """Closes the file of a writer that failed; what it says no longer matters."""
    writer, self._writer = self._writer, None
    if writer is not None and writer.is_open():
      try:
        writer.close()
      except RuntimeError:  # the disk is full: that was raised before
        pass

  def _close(self) -> None:
    """Ends the current shard."""
    self._writer.close()
    size = os.path.getsize(f"{self._prefix}-{len(self._sizes)}")
    self._sizes.append({"records": self._records, "bytes": size})
    self._writer, self._records, self._bytes = None, 0, 0

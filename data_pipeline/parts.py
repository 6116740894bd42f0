"""A dataset written in parts, each whole or not at all, by any process and in any order."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data_pipeline import index
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.facts import Facts
from data_pipeline.folder import Claim, absolute, shard_name, writable
from data_pipeline.records import SPLITS, STORAGES, Record
from data_pipeline.work_folder import Part, WorkFolder, part_name, write_index
from data_pipeline.writer import Shards, Sizes, check_names, seal

_OPENERS = 16  # parts looked at at once: it is waiting, not work


class Parts:
  """The parts of a dataset that is being made, and at last the dataset.

      with Parts("data/clips", "clip", name="film", meta={}, plan={"parts": 8}) as parts:
        for split, part in parts.missing({"train": 7, "held_out": 1}):
          parts.write(split, part, make_records(split, part))   # here, or in any other process
        dataset = parts.finish({"train": 7, "held_out": 1})

  Each part becomes a shard, in the order of `SPLITS` and of numbers; a part may have no records,
  and then becomes none. The dataset is that which `DatasetWriter` makes of the same records in that
  order, whoever wrote which part when. A kill at any moment loses the parts that were being written
  at most: the next object of the same arguments goes on.

  The lock of the dataset is held by the process that makes this object until `finish`, `discard` or
  `close`. A pickled copy, one in a forked child, or one made with `hold=False` after it writes
  parts for it. Of two that write the same part both succeed, and the later one's stays.

  Attributes:
    path: of the dataset.

  Args:
    path: folder to make; absent, or empty.
    kind: "clip" or "latent".
    name: of the dataset, as TFDS shows it.
    meta: JSON-able facts about the dataset, part of its fingerprint.
    plan: JSON-able: all that decides which records are in which part.
    storage: of the videos of clips, one of `records.STORAGES`.
    start_over: removes what is written, by this plan or another.
    hold: whether this object prepares the folder and holds the lock; else another process does.
  Raises:
    BadInput: a bad argument; `path` is taken, cannot be written, or is being written by another
      process; what is written there is of another plan, meta, name, kind, storage or version.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    kind: str,
    *,
    name: str,
    meta: Mapping,
    plan: Mapping,
    storage: str = "raw",
    start_over: bool = False,
    hold: bool = True,
  ):
    check_names(kind, name)
    if storage not in STORAGES:
      raise BadInput(f"parts: storage={storage!r} is not one of {', '.join(STORAGES)}. Choose one.")
    self.path = absolute(path)
    self._kind, self._name = kind, name
    self._meta: dict = json.loads(json.dumps(dict(meta)))
    self._storage = storage if kind == "clip" else None
    named = self._facts().hashed | {"name": name, "plan": json.loads(json.dumps(dict(plan)))}
    self._work = WorkFolder(self.path, named)
    self._claim: Claim | None = None
    if not hold:
      return
    with writable(self.path):
      self._claim = Claim(self.path)
      try:
        self._work.prepare(start_over=start_over)
      except BaseException:
        self.close()
        raise

  @property
  def folder(self) -> Path:
    """Hidden, beside `path`: what else belongs to the dataset (`vae/`) is put there before
    `finish`. What a killed run put there is still there.
    """
    return self._work.folder

  def __getstate__(self) -> dict:
    return self.__dict__ | {"_claim": None}

  def __enter__(self) -> "Parts":
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def close(self) -> None:
    """Gives the lock back. What is written stays, for the next `Parts` of the same arguments."""
    claim, self._claim = self._claim, None
    if claim:
      claim.release()

  def discard(self) -> None:
    """Removes all that was written, and gives the lock back."""
    self._check_claim()
    self._work.remove()
    self.close()

  def missing(self, counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Parts that are not written whole; the records of each shard are counted.

    Args:
      counts: parts of every split.
    Returns:
      (split, number of the part), in the order of the dataset.
    """
    if self._work.is_finished:  # but a process was killed before it had its name
      return []
    return [one for one, part in self._read(counts).items() if part is None]

  def write(self, split: str, part: int, records: Iterable[Record]) -> None:
    """Writes a part, in the place of one that is there: whole when this returns, or not at all.

    Args:
      split: of all its records.
      part: its number within the split, from 0.
      records: in order; they are held one at a time.
    Raises:
      BadInput: a bad record, one of another split or storage, or two of one id.
      OSError: the disk is full, or the parts are finished or discarded.
    """
    room = self._work.make_room()
    facts = self._facts()
    shards = Shards(room, facts, shard_bytes=None)
    try:
      for record in records:
        if record.split != split:
          raise BadInput(
            f"parts: split={record.split!r} of record {record.id!r} is not the {split!r} of its "
            "part. Write it into a part of its split."
          )
        shards.add(record)
      columns, _ = shards.finish()
      index.check_ids(columns)
      write_index(room, columns, facts.widths)
      self._work.put(room, split, part)
    finally:
      shards.abandon()
      shutil.rmtree(room, ignore_errors=True)

  def finish(self, counts: Mapping[str, int]) -> Dataset:
    """Makes the dataset of all parts, gives it its `path`, and gives the lock back.

    Args:
      counts: parts of every split.
    Raises:
      BadInput: a part is missing, or is none of these; two records have one id, or there is none;
        widths of latents differ. The parts are kept.
      OSError: the disk is full. The parts are kept.
    """
    self._check_claim()
    if not self._work.is_finished:
      self._work.close()
      try:
        self._assemble(counts)
      except BaseException:
        self._work.reopen()
        raise
    self._work.finish()
    self.close()
    return Dataset.open(self.path, kind=self._kind)

  def _facts(self) -> Facts:
    return Facts(self._kind, self._name, self._meta, self._storage)

  def _check_claim(self) -> None:
    if self._claim is None:
      raise RuntimeError(f"parts: {self.path} is not claimed here: closed, or a copy.")

  def _read(self, counts: Mapping[str, int]) -> dict[tuple[str, int], Part | None]:
    wanted = [(split, i) for split in SPLITS for i in range(counts.get(split, 0))]
    if not set(counts) <= set(SPLITS):
      raise BadInput(f"parts: counts={dict(counts)} name other splits than {', '.join(SPLITS)}.")
    with ThreadPoolExecutor(_OPENERS) as pool:
      return dict(zip(wanted, pool.map(lambda one: self._work.read(*one), wanted), strict=True))

  def _assemble(self, counts: Mapping[str, int]) -> None:
    """Makes a dataset of closed parts, in the work folder."""
    parts = {one: part for one, part in self._read(counts).items() if part is not None}
    self._check_all_there(counts, parts)
    full = {one: part for one, part in parts.items() if part.records}
    facts, sizes, names = self._facts(), Sizes(), {}
    for (split, number), part in full.items():
      where = f"part {part_name(split, number)}"
      facts.merge(None, part.tokenizers, part.widths, where=where)
      shards = sizes.setdefault(split, [])
      part.columns["shard"] = np.full(part.records, len(shards), np.int32)
      shards.append({"records": part.records, "bytes": part.shard.stat().st_size})
    columns = index.join([part.columns for part in full.values()], self._kind)
    numbers = dict.fromkeys(sizes, 0)
    for (split, _), part in full.items():
      names[part.shard] = shard_name(self._name, split, numbers[split], len(sizes[split]))
      numbers[split] += 1
    self._work.move_shards(names)
    seal(self._work.folder, facts, columns, sizes, path=self.path)

  def _check_all_there(self, counts: Mapping[str, int], parts: Mapping) -> None:
    wanted = {part_name(split, i) for split, count in counts.items() for i in range(count)}
    missing = sorted(wanted - {part_name(*one) for one in parts})
    if missing:
      some = ", ".join(missing[:5])
      raise BadInput(
        f"parts: {len(missing)} of {len(wanted)} parts of {self.path} are not written ({some}). "
        "Run again: only what is missing is made."
      )
    others = sorted(self._work.names() - wanted)
    if others:
      raise BadInput(
        f"parts: {self.path} has parts beyond counts={dict(counts)} ({', '.join(others[:5])}). "
        "Start over."
      )

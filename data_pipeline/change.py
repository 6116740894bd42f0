"""Changes a dataset that is there: appends records, takes some out, or revises them in place.

The new dataset is made beside the old one, out of its files: a shard that stays as it is gets one
more name (a hard link; a copy where the file system has none), and only the others are written.
Then two renames put it in the old one's place (`folder.replace`). A kill at any moment leaves the
old dataset or the new one: between the two renames neither has its name, and the next
`Dataset.open` or change gives it to the new one; what was not finished, and what was
replaced, goes too. Rows and shards change their numbers: who reads the dataset meanwhile is told
by the next record read of a changed shard that it is not the one of his index.
"""

import errno
import itertools
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline import hashing, index, stored
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.facts import Facts, hashed_meta
from data_pipeline.folder import Claim, absolute, discard, mend, neighbour, replace, settle
from data_pipeline.folder import shard_name as name_of
from data_pipeline.records import SPLITS, Record
from data_pipeline.shards import open_shard
from data_pipeline.writer import Shards, Sizes, seal, write_shard

_BATCH = 16  # records read at once
_OWN = ("meta.json", "features.json", "dataset_info.json", "index")
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)


def append(
  path: str | os.PathLike,
  more: Iterable[Record] | Dataset,
  *,
  meta_changes: Mapping | None = None,
  shard_bytes: int = 2**28,
) -> Dataset:
  """Adds records to a dataset, in rows and shards after those it has.

  Args:
    path: of the dataset.
    more: records, or another dataset, such as `Parts.finish` makes. That stays as it is: its shards
      get one more name.
    meta_changes: facts in the dataset's meta that are other ones from now on.
    shard_bytes: of the shards that records are written to.
  Returns:
    The dataset as it is now. One that has all records of another dataset already stays as it is, so
    that a call which was killed can be made again.
  Raises:
    BadInput: a bad record; two records have one id; kind, storage, widths or meta differ.
    OSError: the disk is full. The dataset is as it was.
  """
  with _changing(path) as (old, folder):
    facts = _facts_of(old, meta_changes)
    if isinstance(more, Dataset):
      _check_alike(facts, more, meta_changes or {})
      added = None if _has_all(old, more) else _piece_of(more)
    else:
      added = _write_records(folder / "more", facts, more, shard_bytes)
    if added or facts.meta != old.meta:
      _make(folder, facts, old, [_piece_of(old), *([added] if added else [])])
      replace(old.path)
  return Dataset.open(old.path, kind=old.kind)


def remove(
  path: str | os.PathLike, sources: Collection[str], *, meta_changes: Mapping | None = None
) -> list[tuple[str, str]]:
  """Takes all records of some sources out of a dataset: no shard or index of it holds them then.

  Other files in its folder stay as they are.

  Args:
    path: of the dataset.
    sources: `source` of the records to take out; those that it does not have are passed over.
    meta_changes: facts in the dataset's meta that are other ones from now on, such as `clips`, the
      fingerprint of the clips that latents were made of.
  Returns:
    (id, source) of every record that was taken out, in the order of the rows.
  Raises:
    BadInput: no record would be left.
    OSError: the disk is full. The dataset is as it was.
  """
  if isinstance(sources, str):
    raise TypeError("remove: sources is a string, not a collection of them.")
  with _changing(path) as (old, folder):
    found = _find(old, set(sources))
    facts = _facts_of(old, meta_changes)
    if len(found) == len(old):
      raise BadInput(
        f"remove: {old.path} would hold no records without the {len(sources)} sources given. "
        "Remove the folder itself."
      )
    if found or facts.meta != old.meta:
      _make(folder, facts, old, [_piece_of(old, gone=list(found))])
      replace(old.path)
  return list(found.values())


def revise(
  path: str | os.PathLike,
  rows: Collection[int],
  make: Callable[[list[Any]], Sequence[Record]],
  *,
  meta_changes: Mapping | None = None,
  before: Callable[[str, str], None] | None = None,
) -> Dataset:
  """Puts other records in the places of some: rows, shards, ids, sources and splits stay.

  Shards without such a record stay as they are.

  Args:
    path: of the dataset.
    rows: of the records.
    make: gives the new records of some old ones, in their order; at most _BATCH at once.
    meta_changes: facts in the dataset's meta that are other ones from now on.
    before: told the fingerprints of the old and the new dataset just before that takes its place.
  Returns:
    The dataset as it is now.
  Raises:
    BadInput: a bad record, or one unlike the others.
    OSError: the disk is full. The dataset is as it was.
  """
  with _changing(path) as (old, folder):
    facts = _facts_of(old, meta_changes)
    if len(rows) or facts.meta != old.meta:
      chosen = np.zeros(len(old), bool)
      chosen[list(rows)] = True
      columns, sizes = _revise_shards(folder, facts, old, chosen, make)
      fingerprint = _complete(folder, facts, old, columns, sizes)
      if before:
        before(old.fingerprint, fingerprint)
      replace(old.path)
  return Dataset.open(old.path, kind=old.kind)


class _Piece(NamedTuple):
  """Shards that become part of a dataset, their index, and which of its rows do not."""

  columns: Mapping[str, np.ndarray]
  sizes: Sizes
  place: Callable[[str, int], Path]
  gone: np.ndarray


def _piece_of(dataset: Dataset, gone: Collection[int] = ()) -> _Piece:
  rows = np.zeros(len(dataset), bool)
  rows[list(gone)] = True
  return _Piece(dataset.index, dataset.shards, dataset.shard_path, rows)


@contextmanager
def _changing(path: str | os.PathLike) -> Iterator[tuple[Dataset, Path]]:
  """The dataset, claimed, and an empty folder for what will take its place."""
  place = absolute(path)
  mend(place)
  if not place.exists():
    raise BadInput(f"dataset: {path} does not exist. Give a dataset to change.")
  with Claim(place):
    settle(place)
    dataset, folder = Dataset.open(place, kind=None), neighbour(place, "replacement")
    folder.mkdir()
    try:
      yield dataset, folder
    finally:
      discard(folder, path=place)


def _facts_of(dataset: Dataset, changes: Mapping | None) -> Facts:
  facts = Facts(
    dataset.kind, dataset.name, dataset.meta | dict(changes or {}), storage=dataset.storage
  )
  facts.widths, facts.tokenizers = dict(dataset.widths), dataset.tokenizers or None
  return facts


def _check_alike(facts: Facts, more: Dataset, changes: Mapping) -> None:
  """Raises BadInput: the records of the two are not of one kind and origin."""
  ours, theirs = hashed_meta(facts.meta), hashed_meta(more.meta)
  other = [
    name
    for name in ours | theirs
    if name not in changes and ours.get(name) != theirs.get(name)
  ]
  if more.kind != facts.kind or other:
    raise BadInput(
      f"append: {more.path} holds {more.kind} records, of other {', '.join(other) or 'kind'} than "
      "the dataset. Make them with the same settings, or change its meta too."
    )
  facts.merge(more.storage, more.tokenizers or None, more.widths, where=str(more.path))


def _has_all(old: Dataset, more: Dataset) -> bool:
  """Tells whether every record of `more` is one of `old`."""
  order = np.argsort(old.index["id"])
  ids = old.index["id"][order]
  rows = order[np.searchsorted(ids, more.index["id"]).clip(max=len(order) - 1)]
  names = ("id", "content", "split")
  return all(bool((old.index[name][rows] == more.index[name]).all()) for name in names)


def _find(dataset: Dataset, sources: set[str]) -> dict[int, tuple[str, str]]:
  """Rows of all records of the sources, with their id and source."""
  hashes = np.array([hashing.hash_text(source) for source in sources], np.uint64)
  rows = np.flatnonzero(np.isin(dataset.index["source"], hashes)).tolist()
  read = ((row, dataset.read(row)) for row in rows)
  return {row: (record.id, record.source) for row, record in read if record.source in sources}


def _write_records(
  folder: Path, facts: Facts, more: Iterable[Record], shard_bytes: int
) -> _Piece | None:
  """Writes records into shards of their own; None if there are none."""
  folder.mkdir()
  shards = Shards(folder, facts, shard_bytes=shard_bytes)
  try:
    for record in more:
      shards.add(record)
    columns, sizes = shards.finish()
  finally:
    shards.abandon()
  count = len(columns["row"])
  place = lambda split, shard: folder / f"{split}-{shard}"  # noqa: E731
  return _Piece(columns, sizes, place, np.zeros(count, bool)) if count else None


def _make(folder: Path, facts: Facts, old: Dataset, pieces: list[_Piece]) -> None:
  """Makes a dataset of the pieces, and of the other files of the old one."""
  sizes: Sizes = {split: [] for split in SPLITS}
  columns = index.join([_add_shards(folder, piece, sizes) for piece in pieces], facts.kind)
  sizes = {split: shards for split, shards in sizes.items() if shards}
  for split, shards in sizes.items():
    for i in range(len(shards)):
      (folder / f"{split}-{i}").rename(folder / name_of(facts.name, split, i, len(shards)))
  shutil.rmtree(folder / "more", ignore_errors=True)
  _complete(folder, facts, old, columns, sizes)


def _complete(folder: Path, facts: Facts, old: Dataset, columns: Mapping, sizes: Sizes) -> str:
  """Makes a dataset of the shards in a folder, and of the other files of the old one.

  Returns:
    Its fingerprint.
  """
  own = {*_OWN, *(old.shard_path(s, i).name for s in old.shards for i in range(len(old.shards[s])))}
  for other in old.path.iterdir():
    if other.name in own:
      continue
    if other.is_dir() and not other.is_symlink():
      shutil.copytree(other, folder / other.name, symlinks=True, copy_function=_link)
    else:
      _link(other, folder / other.name)
  return seal(folder, facts, columns, sizes, path=old.path)


def _revise_shards(
  folder: Path, facts: Facts, old: Dataset, chosen: np.ndarray, make: Callable
) -> tuple[dict[str, np.ndarray], Sizes]:
  """Links the shards, or writes them with other records. Returns the new index and sizes."""
  columns = dict(old.index)
  order = np.lexsort([columns[name] for name in ("row", "shard", "split")])
  builder = index.IndexBuilder(old.kind)
  places: list[int] = []  # rows of the index that `builder` has anew
  sizes: Sizes = {split: [] for split in SPLITS if split in old.shards}
  start = 0
  for split in sizes:
    for i, size in enumerate(old.shards[split]):
      rows = order[start : start + size["records"]]
      start += size["records"]
      source, target = old.shard_path(split, i), folder / old.shard_path(split, i).name
      if not chosen[rows].any():
        _link(source, target)
        sizes[split].append(dict(size))
        continue
      data = _read(source, columns["row"][rows].tolist())
      places += rows[chosen[rows]].tolist()
      revised = _revise(data, chosen[rows], make, facts, builder)
      sizes[split].append(write_shard(target, revised))
  if places:
    new = np.arange(len(old))
    new[places] = len(old) + np.arange(len(places))
    joined = index.join([columns, builder.columns()], old.kind)
    columns = index.take(joined, new) | {name: columns[name] for name in ("shard", "row")}
  return columns, sizes


def _revise(
  data: Iterator[bytes],
  chosen: np.ndarray,
  make: Callable,
  facts: Facts,
  builder: index.IndexBuilder,
) -> Iterator[bytes]:
  """Records of a shard as they are stored, the chosen ones revised."""
  for start in range(0, len(chosen), _BATCH):
    some = list(itertools.islice(data, _BATCH))
    is_chosen = chosen[start : start + _BATCH].tolist()
    pairs = zip(some, is_chosen, strict=True)
    old = [stored.deserialize(facts.kind, one) for one, is_one in pairs if is_one]
    made = iter(make(old) if old else ())
    was = iter(old)
    for one, is_one in zip(some, is_chosen, strict=True):
      if is_one:
        record = next(made)
        _check_place(next(was), record)
        facts.check(record)
        one = stored.serialize(record)
        builder.add(record, one, shard=0, row=0)
      yield one


def _check_place(old: Record, new: Record) -> None:
  for name in ("id", "source", "split"):
    if getattr(old, name) != getattr(new, name):
      raise ValueError(f"revise: {name}={getattr(new, name)!r} of {old.id!r} is another.")


def _add_shards(folder: Path, piece: _Piece, sizes: Sizes) -> dict[str, np.ndarray]:
  """Links or rewrites the shards of a piece as FOLDER/SPLIT-NUMBER. Returns its new index."""
  names = ("row", "shard", "split")
  order = np.lexsort([piece.columns[name] for name in names])  # by split, shard, row
  shard, row = np.zeros((2, len(order)), np.int32)
  start = 0
  for split in SPLITS:
    for i, size in enumerate(piece.sizes.get(split, [])):
      rows = order[start : start + size["records"]]
      start += size["records"]
      kept = rows[~piece.gone[rows]]
      shard[kept], row[kept] = len(sizes[split]), np.arange(len(kept))
      source, target = piece.place(split, i), folder / f"{split}-{len(sizes[split])}"
      if len(kept) == len(rows):
        _link(source, target)
        sizes[split].append(dict(size))
      elif len(kept):
        data = _read(source, piece.columns["row"][kept].tolist())
        sizes[split].append(write_shard(target, data))
  columns = dict(piece.columns) | {"shard": shard, "row": row}
  return index.take(columns, np.flatnonzero(~piece.gone))


def _read(path: Path, rows: list[int]) -> Iterator[bytes]:
  """Records of a shard as they are stored."""
  reader = open_shard(path)
  try:
    for start in range(0, len(rows), _BATCH):
      yield from reader.read(rows[start : start + _BATCH])
  except RuntimeError as error:
    raise BadInput(f"dataset: {path} is damaged ({error}). Copy it again.") from error
  finally:
    if reader.is_open():
      reader.close()


def _link(source, target) -> None:
  """Gives a file one more name, or copies it where that cannot be."""
  try:
    os.link(source, target)
  except OSError as error:
    if error.errno not in _NO_LINKS:
      raise
    shutil.copyfile(source, target, follow_symlinks=False)

"""Reads a dataset folder, which `data_pipeline.writer` makes and TFDS reads as well:

dataset_info.json, features.json, NAME-SPLIT.array_record-00000-of-0000N ...
meta.json             kind, version, storage, meta (of the maker), widths, shards, fingerprint
index/COLUMN.npy      see `data_pipeline.index`
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from data_pipeline import hashing, records, stored
from data_pipeline import index as index_module
from data_pipeline.access import check_file
from data_pipeline.errors import BadInput
from data_pipeline.facts import hashed_meta
from data_pipeline.folder import absolute, check_local, mend, shard_name
from data_pipeline.shards import ShardReaders, count_records
from data_pipeline.time_factor import time_factor_of

_COPY = "Copy it again, or make the dataset anew."
_OPENERS = 16  # shards opened at once: it is waiting, not work


class Dataset:
  """Records of one kind by row number. Safe to use from many threads, and after pickling.

  Attributes:
    path: of the folder.
    kind: "clip" or "latent".
    version: of the record layout.
    name: of the dataset.
    meta: facts that its maker gave.
    index: memory-mapped columns by name, see `data_pipeline.index`.
    storage: of a clip dataset, "raw" or "encoded": arrays, or `EncodedVideo`s; None of latents.
    shards: `records` and `bytes` of every shard, by split.
    tokenizers: names of those whose caption ids a latent dataset has, the first by default; none
      of clips.
    latent_channels: c of a latent dataset; None of clips.
    widths: `latent_channels`, and `text_state_width/TOKENIZER` of those that are known.
    fingerprint: sha256, the same for the same records and meta however they are sharded.
  """

  def __init__(self, path: Path, described: Mapping):
    """Without checks: use `open`."""
    self.path = path
    self._described = described
    self.kind: str = described["kind"]
    self.version: int = described["version"]
    self.name: str = described["name"]
    self.meta: dict = described["meta"]
    self.storage: str | None = described.get("storage")
    self.shards: dict[str, list[dict[str, int]]] = described["shards"]
    self.widths: dict[str, int | None] = described["widths"]
    self.latent_channels: int | None = self.widths.get("latent_channels")
    self.tokenizers: tuple[str, ...] = tuple(described.get("tokenizers") or ())
    self.fingerprint: str = described["fingerprint"]
    self.index = index_module.read_index(path / "index", self.kind, self.tokenizers)
    self._readers = ShardReaders()
    self._compared: set[str] = set()  # shards of which a record's content is that of the index

  def __reduce__(self):
    return Dataset, (self.path, self._described)

  @classmethod
  def open(cls, path: str | os.PathLike, *, kind: str | None) -> "Dataset":
    """Opens a dataset and compares every shard with the index.

    Where a change of the dataset (`data_pipeline.change`) was killed, it is ended first.

    Args:
      path: the folder.
      kind: "clip" or "latent", what the caller can use; None for either.
    Raises:
      BadInput: not a dataset, another kind or version, or a damaged one.
      OSError: there is no file descriptor left.
    """
    folder = check_local(path, "dataset")
    mend(absolute(path))
    dataset = cls(folder, _read_meta(folder, kind))
    dataset._check_shards()
    return dataset

  def __len__(self) -> int:
    return len(self.index["row"])

  @property
  def splits(self) -> dict[str, int]:
    """Records of every split that has some."""
    return {split: sum(s["records"] for s in sizes) for split, sizes in self.shards.items()}

  @property
  def time_factor(self) -> int:
    """Frames that a latent covers. Raises BadInput: neither meta nor a kept VAE says it."""
    return time_factor_of(self.meta, self.path)

  def state_width(self, tokenizer: str) -> int | None:
    """k, the width of the states of a tokenizer's captions; None where none are stored."""
    return self.widths.get(f"text_state_width/{tokenizer}")

  def caption_tokens(self, tokenizer: str) -> np.ndarray:
    """int32 [captions]: tokens of every caption, see `index.column_types`."""
    return self.index[index_module.caption_column(tokenizer)]

  def indices(self, split: str) -> np.ndarray:
    """int64: rows of a split, ascending; none when the dataset has no such records."""
    if split not in records.SPLITS:
      raise BadInput(
        f"dataset: split={split!r} is unknown. Use one of {', '.join(records.SPLITS)}."
      )
    return np.flatnonzero(self.index["split"] == records.SPLITS.index(split))

  def read(self, row: int) -> Any:
    """The `ClipRecord` or `LatentRecord` of a row of the index.

    Raises:
      BadInput: it is damaged, or not the record that the index means.
      OSError: there is no file descriptor left.
    """
    if not 0 <= row < len(self):
      raise IndexError(f"dataset: row={row} is not in 0..{len(self) - 1}")
    split = records.SPLITS[self.index["split"][row]]
    path = self.shard_path(split, int(self.index["shard"][row]))
    try:
      with self._readers.lend(path) as reader:
        (data,) = reader.read([int(self.index["row"][row])])
      record = stored.deserialize(self.kind, data)
    except (RuntimeError, DecodeError, LookupError, TypeError, ValueError) as error:
      raise BadInput(f"dataset: row={row} of {path} is damaged ({error}). {_COPY}") from error
    self._check_identity(row, path, record.id, data)
    return record

  def shard_path(self, split: str, shard: int) -> Path:
    return self.path / shard_name(self.name, split, shard, len(self.shards[split]))

  def verify(self) -> None:
    """Reads the whole index. Raises BadInput: the fingerprint was made of another one."""
    names = ("kind", "version", "meta", "widths", "storage", "tokenizers")
    facts = {name: self._described[name] for name in names if name in self._described}
    facts |= {"meta": hashed_meta(self.meta)}
    found = index_module.fingerprint(facts, self.index)
    if found != self.fingerprint:
      raise BadInput(
        f"dataset: {self.path} has fingerprint={found[:12]}, its meta.json says "
        f"{self.fingerprint[:12]}: the index or meta.json was changed. {_COPY}"
      )

  def _check_identity(self, row: int, path: Path, name: str, data: bytes) -> None:
    """The shard may be another's. ArrayRecord sees flipped bytes; what is where, it cannot know.

    Every record's id is compared, but the stored bytes only of the first record read of a shard:
    their hash takes half as long as reading them.
    """
    same = hashing.hash_text(name) == self.index["id"][row]
    if same and str(path) not in self._compared:
      same = index_module.hash_content(data) == self.index["content"][row]
      if same:
        self._compared.add(str(path))
    if not same:
      raise BadInput(
        f"dataset: row={row} of {path} has id={name!r} and is not the record that the index means "
        f"(shards swapped, or of another dataset). {_COPY}"
      )

  def _check_shards(self) -> None:
    wanted = {
      self.shard_path(split, i): size["records"]
      for split, sizes in self.shards.items()
      for i, size in enumerate(sizes)
    }
    self._check_counts(wanted)
    with ThreadPoolExecutor(_OPENERS) as pool:
      for complaint in pool.map(self._compare, wanted.items()):
        if complaint:
          raise BadInput(complaint)

  def _check_counts(self, wanted: Mapping[Path, int]) -> None:
    """The index against meta.json: how many records it places in each shard."""
    width = max(len(sizes) for sizes in self.shards.values())
    code = self.index["split"].astype(np.int64) * width + self.index["shard"]
    counts = np.bincount(code, minlength=width * len(records.SPLITS))
    found = {
      self.shard_path(split, i): int(counts[records.SPLITS.index(split) * width + i])
      for split, sizes in self.shards.items()
      for i in range(len(sizes))
    }
    if found != wanted or counts.sum() != sum(wanted.values()):
      raise BadInput(
        f"dataset: index and meta.json of {self.path} do not belong together "
        f"({counts.sum()} and {sum(wanted.values())} records). {_COPY}"
      )

  def _compare(self, item: tuple[Path, int]) -> str | None:
    path, count = item
    absent = f"dataset: {path} does not exist, the index says records={count}. {_COPY}"
    found = count_records(path)
    if found == count:
      return None
    try:
      check_file(path, "dataset", absent)
    except BadInput as error:
      return str(error)
    size = f"{path.stat().st_size} bytes, truncated or damaged"
    return f"dataset: {path} has records={found}, the index says {count} ({size}). {_COPY}"


def _read_meta(folder: Path, kind: str | None) -> dict:
  path = folder / "meta.json"
  check_file(
    path,
    "dataset",
    f"dataset: {path} does not exist, so {folder} is no dataset. "
    "Give a folder that sora data or sora encode made.",
  )
  try:
    described = json.loads(path.read_text(encoding="utf-8"))
    found, version = described["kind"], described["version"]
  except (ValueError, KeyError, TypeError) as error:
    raise BadInput(f"dataset: {path} is damaged ({error}). {_COPY}") from error
  if kind not in (None, found) or found not in records.VERSIONS:
    make = {"clip": "sora data", "latent": "sora encode"}.get(kind or "", "this version")
    raise BadInput(
      f"dataset: {folder} holds {found} records, not {kind or 'a known kind'}. "
      f"Give a dataset of {make}."
    )
  if version != records.VERSIONS[found]:
    raise BadInput(
      f"dataset: version={version} of {folder} is not {records.VERSIONS[found]} ({found} records). "
      "Make the dataset anew with this version."
    )
  _check_names(described, path)
  return described


def _check_names(described: dict, path: Path) -> None:
  """Raises BadInput: a name that becomes part of a path could lead out of the dataset's folder."""
  texts = described.get("meta", {}).get("texts", {})
  names = [described.get("name"), *described.get("tokenizers", ()), *texts]
  for name in names:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
      raise BadInput(f"dataset: {path} names {name!r}, which is no plain name. {_COPY}")


def choose_tokenizer(datasets: Sequence[Dataset], name: str) -> str:
  """The tokenizer whose ids and states a model reads.

  Args:
    datasets: of a mixture.
    name: of a tokenizer, or "" for the first one of the first dataset.
  Raises:
    BadInput: one holds no latents, or has no such tokenizer.
  """
  for dataset in datasets:
    if dataset.latent_channels is None:
      raise BadInput(
        f"dataset: {dataset.path} holds {dataset.kind} records, not latents. Encode it first."
      )
    name = name or dataset.tokenizers[0]
    if name not in dataset.tokenizers:
      raise BadInput(
        f"dataset: {dataset.path} has caption ids of {', '.join(dataset.tokenizers)}, not of "
        f"{name!r}. Set data.text to one of them, or encode it again with --text={name}."
      )
  return name

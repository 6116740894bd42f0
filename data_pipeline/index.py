"""Index of a dataset: what must be known of every record before any is read, one .npy a column.

The fingerprint of a dataset is a hash of its index and its facts: `content` is a hash of each
record, so that it covers what the records say, but not how they are cut into shards.
"""

import errno
import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipeline import hashing
from data_pipeline.access import forbidden
from data_pipeline.errors import BadInput
from data_pipeline.records import SPLITS, ClipRecord, LatentRecord, Record

_COMMON = {
  "shard": np.int32,  # number of its file among those of its split
  "row": np.int32,  # its place in that file
  "split": np.uint8,  # place in SPLITS
  "fps": np.float32,
  "source": np.uint64,  # hash_text of the record's source
  "id": np.uint64,  # hash_text of the record's id
  "content": np.uint64,  # of the record as it is stored
}
COLUMNS: dict[str, dict[str, type]] = {
  "clip": _COMMON | dict.fromkeys(("frames", "height", "width"), np.int32),
  "latent": _COMMON | dict.fromkeys(("f", "h", "w"), np.int32),
}
CAPTION_TOKENS = "caption_tokens"
_LAYOUT = ("shard", "row")  # how the records are cut: not part of the fingerprint
_CODES = {np.int32: "i", np.uint8: "B", np.float32: "f", np.uint64: "Q", np.int64: "q"}
_CHUNK = 2**20  # items hashed at once


def column_types(kind: str, tokenizers: Iterable[str] = ()) -> dict[str, type]:
  """Every column of a kind's index: those of one item a record, and those of captions.

  `caption_offsets` [N+1]: captions offsets[i] .. offsets[i+1] belong to record i.
  `caption_tokens/NAME` [captions]: their tokens by a tokenizer; of latents only, since a clip's
  captions have no tokens yet.
  """
  types = COLUMNS[kind] | {"caption_offsets": np.int64}
  return types | {caption_column(tokenizer): np.int32 for tokenizer in tokenizers}


def caption_column(tokenizer: str) -> str:
  """Name of the column of a tokenizer's caption lengths."""
  return f"{CAPTION_TOKENS}/{tokenizer}"


def tokenizers_of(columns: Iterable[str]) -> tuple[str, ...]:
  """Names of the tokenizers that columns of an index are of, in order."""
  parts = (name.split("/", 1) for name in columns if "/" in name)
  return tuple(tokenizer for column, tokenizer in parts if column == CAPTION_TOKENS)


class IndexBuilder:
  """Collects the columns, record by record; the first latent says which tokenizers there are."""

  def __init__(self, kind: str):
    self._types = column_types(kind)
    self._columns = {name: array(_CODES[kind]) for name, kind in self._types.items()}
    self._columns["caption_offsets"].append(0)

  def _add_tokenizers(self, names: Iterable[str]) -> None:
    for name in map(caption_column, names):
      self._types = self._types | {name: np.int32}
      self._columns[name] = array(_CODES[np.int32])

  def __len__(self) -> int:
    return len(self._columns["row"])

  def add(self, record: Record, data: bytes, *, shard: int, row: int) -> None:
    """Appends a record.

    Args:
      record: checked.
      data: as it is stored.
      shard, row: where.
    """
    one = {
      "shard": shard,
      "row": row,
      "split": SPLITS.index(record.split),
      "fps": record.fps,
      "source": hashing.hash_text(record.source),
      "id": hashing.hash_text(record.id),
      "content": hash_content(data),
      **_sides(record),
    }
    for name, value in one.items():
      self._columns[name].append(value)
    offsets = self._columns["caption_offsets"]
    offsets.append(offsets[-1] + len(record.captions))
    if isinstance(record, LatentRecord):
      if len(self) == 1:
        self._add_tokenizers(record.text_ids)
      for tokenizer, every in record.text_ids.items():
        self._columns[caption_column(tokenizer)].extend(map(len, every))

  def columns(self) -> dict[str, np.ndarray]:
    """The columns so far, as arrays."""
    return {name: np.array(self._columns[name], kind) for name, kind in self._types.items()}


def check_ids(columns: Mapping[str, np.ndarray]) -> None:
  """Raises BadInput: two records of one id."""
  ids = columns["id"]
  order = np.argsort(ids, kind="stable")
  twins = np.flatnonzero(ids[order][1:] == ids[order][:-1])
  if twins.size:
    first, second = order[twins[0]], order[twins[0] + 1]
    raise BadInput(
      f"index: records {first} and {second}, counted from 0, have the same id. "
      "Give every record of a dataset an id of its own."
    )


def join(pieces: Sequence[Mapping[str, np.ndarray]], kind: str) -> dict[str, np.ndarray]:
  """The columns of several indices, end to end."""
  pieces = [piece for piece in pieces if len(piece["row"])]  # others do not say their tokenizers
  types = column_types(kind, tokenizers_of(pieces[0]) if pieces else ())
  columns = {
    name: np.concatenate([np.zeros(0, dtype), *(piece[name] for piece in pieces)]).astype(dtype)
    for name, dtype in types.items()
    if name != "caption_offsets"
  }
  counts = [np.diff(piece["caption_offsets"]) for piece in pieces]
  offsets = np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]))
  return columns | {"caption_offsets": offsets.astype(np.int64)}


def take(columns: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
  """The columns of some records.

  Args:
    rows: int64, which, in their new order.
  """
  offsets = columns["caption_offsets"]
  counts = np.diff(offsets)[rows]
  of_captions = {caption_column(tokenizer) for tokenizer in tokenizers_of(columns)}
  chosen = {
    name: column[rows]
    for name, column in columns.items()
    if name != "caption_offsets" and name not in of_captions
  }
  ends = np.cumsum(counts)
  chosen["caption_offsets"] = np.concatenate([np.zeros(1, np.int64), ends])
  within = np.arange(counts.sum()) - np.repeat(ends - counts, counts)
  places = np.repeat(offsets[rows], counts) + within
  return chosen | {name: columns[name][places] for name in columns if name in of_captions}


def hash_content(data: bytes) -> int:
  """64-bit hash of a record as it is stored; about 1 GB/s."""
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _sides(record: Record) -> dict[str, int]:
  shape, names = (
    (record.video.shape, ("frames", "height", "width"))
    if isinstance(record, ClipRecord)
    else (record.latent.shape, ("f", "h", "w"))
  )
  return dict(zip(names, shape, strict=False))


def write_index(folder: Path, columns: Mapping[str, np.ndarray]) -> None:
  folder.mkdir()
  for name, column in columns.items():
    path = folder / f"{name}.npy"
    path.parent.mkdir(exist_ok=True)
    np.save(path, column)


def read_index(folder: Path, kind: str, tokenizers: Iterable[str]) -> dict[str, np.ndarray]:
  """Memory-maps the columns.

  Args:
    folder: of the index.
    kind: of the records.
    tokenizers: of the dataset; none of clips.
  Raises:
    BadInput: a column is missing or damaged, or the columns do not belong together.
  """
  types = column_types(kind, tokenizers)
  index = {name: _map(folder / f"{name}.npy", dtype) for name, dtype in types.items()}
  count = len(index["row"])
  lengths = dict.fromkeys(COLUMNS[kind], count) | {"caption_offsets": count + 1}
  captions = int(index["caption_offsets"][-1]) if len(index["caption_offsets"]) else 0
  lengths |= {caption_column(tokenizer): captions for tokenizer in tokenizers_of(types)}
  for name, length in lengths.items():
    if len(index[name]) != length:
      raise BadInput(
        f"index: {folder / name}.npy has {len(index[name])} items, the others call for {length}. "
        "Copy the dataset again."
      )
  return index


def _map(path: Path, dtype: type) -> np.ndarray:
  try:
    column = np.load(path, mmap_mode="r", allow_pickle=False)
  except FileNotFoundError:
    raise BadInput(f"index: {path} does not exist. Copy the dataset again.") from None
  except PermissionError as error:
    raise forbidden("index", path, error) from error
  except (ValueError, EOFError, OSError) as error:
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
      raise  # no file descriptor is left, which says nothing of the file
    raise BadInput(f"index: {path} is damaged ({error}). Copy the dataset again.") from error
  if column.dtype != dtype or column.ndim != 1:
    raise BadInput(
      f"index: {path} is {column.dtype} {column.shape}, not a column of {np.dtype(dtype)}. "
      "Copy the dataset again."
    )
  return column


def fingerprint(facts: Mapping, columns: Mapping[str, np.ndarray]) -> str:
  """sha256 over the facts (JSON-able) and the columns, except those of the layout in shards."""
  digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
  for name in sorted(set(columns) - set(_LAYOUT)):
    column = columns[name]
    digest.update(f"{name} {column.dtype.str} {len(column)};".encode())
    for start in range(0, len(column), _CHUNK):
      digest.update(column[start : start + _CHUNK].tobytes())
  return digest.hexdigest()

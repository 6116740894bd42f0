"""The record types: what is known of a clip, and of its latent. The contract of the two halves.

Each class is its own table: name, Python type, and `Column(dtype, shape, unit, meaning)`. In a
shard a record is a `tf.train.Example` with the layout of TFDS; `data_pipeline.stored` says how.
"""

import dataclasses
import json
import math
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np

from data_pipeline.column import Column
from data_pipeline.errors import BadInput
from data_pipeline.video import EncodedVideo, Video

CLIP_VERSION = 2
LATENT_VERSION = 3
SPLITS = ("train", "held_out", "held_out_combination")
Texts = Mapping[str, tuple[np.ndarray, ...]]  # by tokenizer, an array for each caption
STORAGES = ("raw", "encoded")  # of the videos of a clip dataset: arrays, or `EncodedVideo`s


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ClipRecord:
  """Frames with their rate and captions. Images are clips of one frame.

  `video` is an array or an `EncodedVideo`, which tell `shape` and `dtype` alike;
  `data_pipeline.video.as_frames` makes an array of either.
  """

  version: Annotated[int, Column("int32", (), "", "of this layout")] = CLIP_VERSION
  id: Annotated[str, Column("str", (), "", "unique in its dataset")]
  source: Annotated[str, Column("str", (), "", "video it was cut from: unit of splits, take-downs")]
  licence: Annotated[str, Column("str", (), "", "SPDX id, or text")]
  split: Annotated[str, Column("str", (), "", "one of SPLITS")]
  start_frame: Annotated[int, Column("int64", (), "frames", "first frame, counted in the source")]
  fps: Annotated[float, Column("float32", (), "frames/second", "rate of `video`")]
  video: Annotated[Video, Column("uint8", ("F", "H", "W", 3), "0..255", "RGB frames")]
  captions: Annotated[tuple[str, ...], Column("str", ("captions",), "", "each true of the clip")]
  attributes: Annotated[str, Column("str", (), "JSON", '"" if unknown')]
  truth: Annotated[bytes, Column("bytes", (), "npz", "per-frame truth; empty if unknown")]
  scores: Annotated[str, Column("str", (), "JSON", 'measured numbers by name, "" if none')] = ""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LatentRecord:
  """A rendition of a clip (a window at a size) as the VAE encoded it, and its captions in tokens.

  `text_ids` and `text_states` map the name of a tokenizer (a text encoder) to a tuple with an array
  for each caption. Every tokenizer of the dataset is in `text_ids`; in `text_states` are those
  whose states are stored, if the clip has captions.
  """

  version: Annotated[int, Column("int32", (), "", "of this layout")] = LATENT_VERSION
  id: Annotated[str, Column("str", (), "", "unique in its dataset")]
  source: Annotated[str, Column("str", (), "", "video it was cut from: unit of splits, take-downs")]
  licence: Annotated[str, Column("str", (), "", "SPDX id, or text")]
  split: Annotated[str, Column("str", (), "", "one of SPLITS")]
  start_frame: Annotated[int, Column("int64", (), "frames", "first frame, counted in the source")]
  frames: Annotated[int, Column("int32", (), "frames", "that were encoded")]
  height: Annotated[int, Column("int32", (), "pixels", "of the frames, after cropping")]
  width: Annotated[int, Column("int32", (), "pixels", "of the frames, after cropping")]
  crop: Annotated[tuple, Column("int32", (4,), "pixels", "cut off at top, left, bottom, right")]
  fps: Annotated[float, Column("float32", (), "frames/second", "rate of the frames")]
  latent: Annotated[
    np.ndarray,
    Column("bfloat16", ("f", "h", "w", "c"), "1", "posterior mean, normalised: mean 0, std <= 1"),
  ]
  captions: Annotated[tuple[str, ...], Column("str", ("captions",), "", "each true of the clip")]
  text_ids: Annotated[
    Texts, Column("int32", ("tokens",), "", "token ids of every caption", ragged=True)
  ]
  text_states: Annotated[
    Texts, Column("bfloat16", ("tokens", "k"), "1", "states of the tokens", ragged=True)
  ] = dataclasses.field(default_factory=dict)
  attributes: Annotated[str, Column("str", (), "JSON", '"" if unknown')]
  scores: Annotated[str, Column("str", (), "JSON", 'measured numbers by name, "" if none')] = ""


Record = ClipRecord | LatentRecord
CLASSES: dict[str, type] = {"clip": ClipRecord, "latent": LatentRecord}
VERSIONS = {"clip": CLIP_VERSION, "latent": LATENT_VERSION}


def columns(kind: str) -> dict[str, Column]:
  """The table of a kind of record, "clip" or "latent": columns by name, in order."""
  hints = typing.get_type_hints(CLASSES[kind], include_extras=True)
  return {name: hint.__metadata__[0] for name, hint in hints.items()}


COLUMNS = {kind: columns(kind) for kind in CLASSES}


def kind_of(record: Record) -> str:
  return next(kind for kind, cls in CLASSES.items() if isinstance(record, cls))


def storage_of(record: Record) -> str | None:
  """One of STORAGES, how a clip's video is kept; None of a latent."""
  if not isinstance(record, ClipRecord):
    return None
  return "encoded" if isinstance(record.video, EncodedVideo) else "raw"


def check_record(record: Record) -> None:
  """Compares a record with its table. Raises BadInput: a dtype, shape or value that breaks it."""
  sides: dict[str, int] = {}
  for name, column in COLUMNS[kind_of(record)].items():
    value = getattr(record, name)
    if column.ragged:
      _check_ragged(record, name, column, value)
    elif column.is_text:
      _check_text(record, name, column, value)
    elif isinstance(value, EncodedVideo):
      _check_encoded(record, value)
    elif column.shape:
      _check_array(record, name, column, value, sides)
  _check_values(record)


def _refuse(record: Record, what: str, remedy: str) -> typing.NoReturn:
  raise BadInput(f"records: {what} ({kind_of(record)} record {record.id!r}). {remedy}")


def _check_text(record, name: str, column: Column, value) -> None:
  wanted = bytes if column.dtype == "bytes" else str
  parts = value if column.shape else (value,)
  if isinstance(parts, (str, bytes)) or not all(isinstance(part, wanted) for part in parts):
    many = "a tuple of " if column.shape else ""
    _refuse(record, f"{name} is not {many}{wanted.__name__}", "Convert it before it is written.")


def _check_array(record, name: str, column: Column, value, sides: dict[str, int]) -> None:
  array = np.asarray(value)
  if isinstance(value, (tuple, list)) and array.dtype.kind == "i" == column.numpy_dtype.kind:
    array = array.astype(column.numpy_dtype)
  fits = array.dtype == column.numpy_dtype and array.ndim == len(column.shape)
  if fits:
    pairs = zip(column.shape, array.shape, strict=True)
    fits = all(sides.setdefault(s, n) == n if isinstance(s, str) else s == n for s, n in pairs)
  if not fits or 0 in array.shape:
    wanted = ",".join(map(str, column.shape))
    _refuse(
      record,
      f"{name} is {array.dtype} {array.shape}, not {column.dtype} [{wanted}]",
      "Convert it before it is written.",
    )


def _check_encoded(record, video: EncodedVideo) -> None:
  sides = video.shape
  if len(sides) != 4 or sides[3] != 3 or min(sides) < 1 or not isinstance(video.data, bytes):
    _refuse(
      record,
      f"video is encoded as {type(video.data).__name__} of {sides}, not bytes of [F,H,W,3]",
      "Make it with encode_video.",
    )


def _check_ragged(record, name: str, column: Column, value: typing.Any) -> None:
  if not isinstance(value, Mapping) or not set(value) <= set(record.text_ids):
    _refuse(record, f"{name} is no mapping by the tokenizers of text_ids", "Give one.")
  if not record.text_ids:
    _refuse(record, "text_ids has no tokenizer", "Give the ids of one, () without captions.")
  for tokenizer, parts in value.items():
    if not re.fullmatch("[a-z][a-z0-9_]*", tokenizer):
      _refuse(record, f"{name} has a tokenizer {tokenizer!r}", "Name it with a-z, 0-9, _.")
    _check_captions(record, f"{name}/{tokenizer}", column, parts, tokenizer)


def _check_captions(record, name: str, column: Column, parts: Sequence, tokenizer: str) -> None:
  if len(parts) != len(record.captions):
    _refuse(
      record, f"{name} of {len(parts)} captions, not {len(record.captions)}", "Give one a caption."
    )
  sides: dict[str, int] = {}
  for ids, part in zip(record.text_ids[tokenizer], parts, strict=True):
    sides["tokens"] = len(ids)
    if len(ids) or len(part):
      _check_array(record, name, column, part, sides)


def _check_values(record: Record) -> None:
  if record.version != VERSIONS[kind_of(record)]:
    _refuse(record, f"version={record.version} is not {VERSIONS[kind_of(record)]}", "Convert it.")
  if not record.id or not record.source:
    _refuse(record, f"id={record.id!r}, source={record.source!r} must not be empty", "Name them.")
  if record.split not in SPLITS:
    _refuse(record, f"split={record.split!r} is unknown", f"Use one of {', '.join(SPLITS)}.")
  if not (math.isfinite(record.fps) and record.fps > 0):
    _refuse(record, f"fps={record.fps} is no rate", "Give frames a second, above 0.")
  if record.scores and not _are_scores(record.scores):
    _refuse(
      record, f"scores={record.scores[:80]!r} is no JSON object of numbers", "Give finite ones."
    )


def _are_scores(text: str) -> bool:
  try:
    scores = json.loads(text)
  except ValueError:
    return False
  return isinstance(scores, dict) and all(
    type(number) in (int, float) and math.isfinite(number) for number in scores.values()
  )

"""The record types: what is known of a clip, and of its latent. The contract of the two halves.

Each class is its own table: name, Python type, and `Column(dtype, shape, unit, meaning)`. In a
shard a record is a `tf.train.Example` with the layout of TFDS; `stored_columns` says how.
"""

import dataclasses
import json
import math
import typing
from typing import Annotated

import numpy as np

from data_pipeline import example
from data_pipeline.column import Column
from data_pipeline.errors import BadInput
from data_pipeline.video import EncodedVideo, Video

CLIP_VERSION = 2
LATENT_VERSION = 2
SPLITS = ("train", "held_out", "held_out_combination")
STORAGES = ("raw", "encoded")  # of the videos of a clip dataset: arrays, or `EncodedVideo`s
LENGTHS = "text_lengths"  # stored beside ragged columns: tokens of each caption
VIDEO_SHAPE = "video_shape"  # stored beside an encoded video


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

  `text_states` is None when the dataset stores no states, or the clip has no captions.
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
    tuple, Column("int32", ("tokens",), "", "token ids of every caption", ragged=True)
  ]
  text_states: Annotated[
    tuple | None, Column("bfloat16", ("tokens", "k"), "1", "states of the tokens", ragged=True)
  ] = None
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


def stored_columns(kind: str, storage: str = "raw") -> dict[str, Column]:
  """The table as it lies in a shard: bfloat16 as its bits; ragged columns end to end and flat, with
  the captions' lengths beside them (TFDS cannot read an empty array of two free sides); an encoded
  video as the bytes of its file, with its shape beside it.
  """
  table = {
    name: column if column.is_text else dataclasses.replace(column, dtype=str(column.stored_dtype))
    for name, column in COLUMNS[kind].items()
  }
  for name, column in table.items():
    if column.ragged:
      table[name] = dataclasses.replace(column, shape=("values",))
  if any(column.ragged for column in table.values()):
    table[LENGTHS] = Column("int32", ("captions",), "tokens", "of every caption")
  if storage == "encoded":
    table["video"] = Column("bytes", (), "MP4", "RGB frames, as H.264")
    table[VIDEO_SHAPE] = Column("int64", (4,), "frames, pixels", "F, H, W, 3 of the video")
  return table


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
      if value is not None or name == "text_ids":
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
  if len(value) != len(record.captions):
    _refuse(
      record, f"{name} of {len(value)} captions, not {len(record.captions)}", "Give one a caption."
    )
  sides: dict[str, int] = {}
  for ids, part in zip(record.text_ids, value, strict=True):
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


def serialize(record: Record) -> bytes:
  """A record as a serialized Example that TFDS reads with `stored_columns`."""
  values: dict[str, example.Value] = {}
  for name, column in COLUMNS[kind_of(record)].items():
    value = getattr(record, name)
    if column.ragged:
      parts = (np.asarray(part, column.numpy_dtype) for part in value or ())
      values[name] = [b"".join(part.tobytes() for part in parts)]
    elif isinstance(value, EncodedVideo):
      values |= {name: [value.data], VIDEO_SHAPE: list(value.shape)}
    elif column.is_text:
      values[name] = [_to_bytes(part) for part in (value if column.shape else (value,))]
    elif column.shape:
      values |= _store_array(name, column, np.asarray(value, column.numpy_dtype))
    else:
      values[name] = [float(value) if column.dtype == "float32" else int(value)]
  if isinstance(record, LatentRecord):
    values[LENGTHS] = [np.array([len(ids) for ids in record.text_ids], np.int32).tobytes()]
  return example.serialize(values)


def _to_bytes(text: str | bytes) -> bytes:
  return text.encode() if isinstance(text, str) else text


def _store_array(name: str, column: Column, array: np.ndarray) -> dict[str, example.Value]:
  if column.has_shape:
    return {f"{name}/shape": list(array.shape), f"{name}/value": [array.tobytes()]}
  return {name: [array.tobytes()]}


def deserialize(kind: str, data: bytes) -> Record:
  """Inverse of `serialize`. Arrays are read-only views; an encoded video is not decoded."""
  values = example.parse(data)
  lengths = np.frombuffer(values[LENGTHS][0], np.int32) if LENGTHS in values else None
  fields = {name: _restore(name, column, values, lengths) for name, column in COLUMNS[kind].items()}
  return CLASSES[kind](**fields)


def _restore(name: str, column: Column, values, lengths):
  if column.is_text:
    parts = tuple(part.decode() if column.dtype == "str" else part for part in values[name])
    return parts if column.shape else parts[0]
  if not column.shape:
    return values[name][0]
  if name == "video" and VIDEO_SHAPE in values:
    return EncodedVideo(values[name][0], tuple(values[VIDEO_SHAPE]))
  data = values[f"{name}/value" if column.has_shape else name][0]
  array = np.frombuffer(data, column.stored_dtype).view(column.numpy_dtype)
  if column.has_shape:
    return array.reshape(values[f"{name}/shape"])
  return _cut(array, column, lengths) if column.ragged else tuple(array.tolist())


def _cut(array: np.ndarray, column: Column, lengths: np.ndarray) -> tuple | None:
  """One array for every caption; None for states that are not there. ValueError: other lengths."""
  ends = np.cumsum(lengths)
  if len(column.shape) == 1 and array.size != lengths.sum():
    raise ValueError(f"{LENGTHS} name {lengths.sum()} tokens, {array.size} are stored")
  if len(column.shape) > 1:
    if not array.size:
      return None
    array = array.reshape(ends[-1], -1)
  return tuple(array[end - n : end] for end, n in zip(ends.tolist(), lengths.tolist(), strict=True))

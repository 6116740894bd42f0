"""How a record lies in a shard: as a `tf.train.Example` with the layout of TFDS."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from data_pipeline import example
from data_pipeline.column import Column
from data_pipeline.records import CLASSES, COLUMNS, LatentRecord, Record, kind_of
from data_pipeline.video import EncodedVideo

LENGTHS = "text_lengths"  # stored beside ragged columns, by tokenizer: tokens of each caption
VIDEO_SHAPE = "video_shape"  # stored beside an encoded video


def by_tokenizer(name: str, tokenizer: str) -> str:
  """Name of what is stored for each tokenizer: `text_ids/minilm`."""
  return f"{name}/{tokenizer}"


def stored_columns(
  kind: str, storage: str = "raw", tokenizers: Iterable[str] = ()
) -> dict[str, Column]:
  """The table as it lies in a shard: bfloat16 as its bits; ragged columns by tokenizer, end to end
  and flat, with the captions' lengths beside them (TFDS cannot read an empty array of two free
  sides); an encoded video as the bytes of its file, with its shape beside it.
  """
  table = {
    name: column if column.is_text else dataclasses.replace(column, dtype=str(column.stored_dtype))
    for name, column in COLUMNS[kind].items()
  }
  ragged = {name: table.pop(name) for name, column in COLUMNS[kind].items() if column.ragged}
  for tokenizer in tokenizers:
    for name, column in ragged.items():
      table[by_tokenizer(name, tokenizer)] = dataclasses.replace(column, shape=("values",))
    lengths = Column("int32", ("captions",), "tokens", "of every caption")
    table[by_tokenizer(LENGTHS, tokenizer)] = lengths
  if storage == "encoded":
    table["video"] = Column("bytes", (), "MP4", "RGB frames, as H.264")
    table[VIDEO_SHAPE] = Column("int64", (4,), "frames, pixels", "F, H, W, 3 of the video")
  return table


def serialize(record: Record) -> bytes:
  """A record as a serialized Example that TFDS reads with `stored_columns`."""
  values: dict[str, example.Value] = {}
  for name, column in COLUMNS[kind_of(record)].items():
    value = getattr(record, name)
    if column.ragged:
      continue
    if isinstance(value, EncodedVideo):
      values |= {name: [value.data], VIDEO_SHAPE: list(value.shape)}
    elif column.is_text:
      values[name] = [_to_bytes(part) for part in (value if column.shape else (value,))]
    elif column.shape:
      values |= _store_array(name, column, np.asarray(value, column.numpy_dtype))
    else:
      values[name] = [float(value) if column.dtype == "float32" else int(value)]
  if isinstance(record, LatentRecord):
    values |= _store_captions(record)
  return example.serialize(values)


def _store_captions(record: LatentRecord) -> dict[str, example.Value]:
  """Ids, states and lengths by tokenizer: arrays end to end, empty where there are none."""
  values: dict[str, example.Value] = {}
  for tokenizer, ids in record.text_ids.items():
    lengths = np.array([len(one) for one in ids], np.int32)
    values[by_tokenizer(LENGTHS, tokenizer)] = [lengths.tobytes()]
    for name, every in (("text_ids", ids), ("text_states", record.text_states.get(tokenizer, ()))):
      dtype = COLUMNS["latent"][name].numpy_dtype
      parts = (np.asarray(one, dtype).tobytes() for one in every)
      values[by_tokenizer(name, tokenizer)] = [b"".join(parts)]
  return values


def _to_bytes(text: str | bytes) -> bytes:
  return text.encode() if isinstance(text, str) else text


def _store_array(name: str, column: Column, array: np.ndarray) -> dict[str, example.Value]:
  if column.has_shape:
    return {f"{name}/shape": list(array.shape), f"{name}/value": [array.tobytes()]}
  return {name: [array.tobytes()]}


def deserialize(kind: str, data: bytes) -> Record:
  """Inverse of `serialize`. Arrays are read-only views; an encoded video is not decoded."""
  values = example.parse(data)
  prefix = by_tokenizer(LENGTHS, "")
  lengths = {
    name.removeprefix(prefix): np.frombuffer(value[0], np.int32)
    for name, value in values.items()
    if name.startswith(prefix)
  }
  fields = {
    name: _restore_ragged(name, column, values, lengths)
    if column.ragged
    else _restore(name, column, values)
    for name, column in COLUMNS[kind].items()
  }
  return CLASSES[kind](**fields)


def _restore_ragged(name: str, column: Column, values, lengths: Mapping[str, np.ndarray]) -> dict:
  """By tokenizer one array for every caption, those that are stored."""
  found = {}
  for tokenizer, counts in lengths.items():
    data = values[by_tokenizer(name, tokenizer)][0]
    array = np.frombuffer(data, column.stored_dtype).view(column.numpy_dtype)
    if array.size or len(column.shape) == 1:
      found[tokenizer] = _cut(array, column, counts)
  return found


def _restore(name: str, column: Column, values):
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
  return tuple(array.tolist())


def _cut(array: np.ndarray, column: Column, lengths: np.ndarray) -> tuple:
  """One array for every caption. ValueError: other lengths."""
  ends = np.cumsum(lengths)
  if len(column.shape) == 1 and array.size != lengths.sum():
    raise ValueError(f"{LENGTHS} name {lengths.sum()} tokens, {array.size} are stored")
  if len(column.shape) > 1:
    array = array.reshape(ends[-1], -1)
  return tuple(array[end - n : end] for end, n in zip(ends.tolist(), lengths.tolist(), strict=True))

"""Videos in TFDS datasets: one a row, as frames or as the bytes of a file.

The shards (array_record or tfrecord) are read without TensorFlow, which TFDS's own video feature
would need. Frames are handed on as a file with a lossless video in it, so that nothing after this
has to know where they came from; its rate is the row's `fps`, or the one that was given.
"""

import io
import json
import os
import re
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np

from data_pipeline import example
from data_pipeline.curate import storage
from data_pipeline.curate.columns import find_roles, plain
from data_pipeline.curate.container import Limits
from data_pipeline.curate.notes import Notes
from data_pipeline.curate.side_cars import describe, read_words
from data_pipeline.curate.stills import open_still, still_format
from data_pipeline.curate.types import Refused, Reject, Source, escape, unescape
from data_pipeline.errors import BadInput

_FORMATS = ("array_record", "tfrecord")
_MOST_RECORD_BYTES = 4 << 30


def find_rows(
  given: str, wanted: tuple[str, ...] | None, fps: float, notes: Notes
) -> Iterator[Source | Reject]:
  """The rows of "NAME[:SPLIT]" or of a dataset's folder, in order of split and row.

  Raises:
    BadInput: it is no dataset, its shards are of another format, or it has no video.
  """
  folder, asked = _folder(given)
  info = _metadata(folder, "dataset_info.json")
  features = _metadata(folder, "features.json")["featuresDict"]["features"]
  words = _word_features(folder, features, wanted, notes)
  splits = {split["name"]: split for split in info["splits"]}
  if asked and asked not in splits:
    raise BadInput(f"curate: input=tfds:{given} has no split {asked}. It has {sorted(splits)}.")
  for split in [asked] if asked else sorted(splits):
    row = 0
    lengths = [int(length) for length in splits[split]["shardLengths"]]
    for shard, length in zip(_shards(folder, info, splits[split]), lengths, strict=True):
      for place, data in _records(shard, length, bool(words)):
        yield _source(info["name"], split, row, shard, place, data, words, fps, wanted)
        row += 1


def _word_features(
  folder: str, features: Mapping[str, Any], wanted: tuple[str, ...] | None, notes: Notes
) -> tuple[str, ...]:
  """The features that hold captions or a licence. The others are told."""
  video, _ = _video_feature(features, folder)
  names = tuple(name for name in features if name != video)
  for name in wanted or ():
    if plain(name) not in set(map(plain, names)):
      raise BadInput(
        f"curate.sources.caption_columns: {folder} has no feature {name!r}. It has "
        f"{', '.join(names)}."
      )
  roles = find_roles(names, wanted)
  places = {*roles.captions, *roles.licence}
  unused = [name for i, name in enumerate(names) if i not in places and name != "fps"]
  if unused:
    notes.say(f"{folder}: features that are not used: {', '.join(unused)}")
  return tuple(name for i, name in enumerate(names) if i in places)


def _source(
  dataset: str,
  split: str,
  row: int,
  shard: str,
  place: int,
  data: bytes,
  words: tuple[str, ...],
  fps: float,
  wanted: tuple[str, ...] | None,
) -> Source | Reject:
  name = escape(f"tfds:{dataset}/{split}/{row}")
  entry = storage.look(shard)
  stamp = f"{entry.stamp if entry else ''}-{place}-{fps:g}"
  source = Source(name, escape(shard), "tfds", f"{split}/{row}", place, stamp=stamp, fps=fps)
  try:
    values = example.parse(data) if data else {}
    texts = [[value.decode() for value in values.get(key) or ()] for key in words]
    said = [
      "".join(text[:1]) if plain(key) in ("licence", "license") else text
      for key, text in zip(words, texts, strict=True)
    ]
    return describe(source, read_words(words, said, wanted, is_row=False))
  except (ValueError, AttributeError) as error:
    return Reject(name, None, "bad_side_car", detail=f"captions: {error}"[:200])


def _folder(given: str) -> tuple[str, str]:
  """(folder, split or "") of a folder, or of NAME[/CONFIG][:SPLIT], the newest version."""
  if storage.is_url(given) or os.path.isfile(os.path.join(given, "dataset_info.json")):
    return given, ""
  name, _, split = given.partition(":")
  root = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  folder = os.path.join(os.path.expanduser(root), name)
  found = []
  for path, _, files in os.walk(folder):
    version = os.path.basename(path)
    if "dataset_info.json" in files and re.fullmatch(r"\d+\.\d+\.\d+", version):
      found.append((*map(int, version.split(".")), path))
  if not found:
    raise BadInput(
      f"curate: input=tfds:{given} finds no prepared dataset in {folder}. Prepare it, or set "
      "TFDS_DATA_DIR, or give the dataset's folder."
    )
  return max(found)[-1], split


def _metadata(folder: str, name: str) -> dict[str, Any]:
  try:
    return json.loads(storage.read_small(f"{folder}/{name}", 64 << 20))
  except (Refused, ValueError) as error:
    raise BadInput(f"curate: input={folder}: {name} cannot be read ({error}).") from error


def _video_feature(features: Mapping[str, Any], folder: str) -> tuple[str, list[int]]:
  """The feature that holds the video, and its sides if it is a tensor (-1: free)."""
  able = {}
  for name, feature in features.items():
    tensor = feature.get("tensor", {})
    sides = [int(side) for side in tensor.get("shape", {}).get("dimensions", ())]
    inner = feature.get("sequence", {}).get("feature", {})
    if feature["pythonClassName"].endswith(".Video") or "image" in inner:
      able[name] = []
    elif tensor.get("dtype") == "uint8" and len(sides) == 4:
      able[name] = sides
    elif name == "video" and not sides and (tensor.get("dtype") == "string" or "text" in feature):
      able[name] = []
  if not able:
    raise BadInput(
      f"curate: input={folder} has no video among its features {sorted(features)}. Give a "
      "dataset with a Video feature, uint8 frames, or the bytes of a file named `video`."
    )
  name = "video" if "video" in able else min(able)
  return name, able[name]


def _shards(folder: str, info: Mapping[str, Any], split: Mapping[str, Any]) -> list[str]:
  form = info.get("fileFormat", "tfrecord")
  if form not in _FORMATS:
    raise BadInput(f"curate: input={folder} is stored as {form}. Prepare it as {_FORMATS[0]}.")
  template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
  count = len(split["shardLengths"])
  values = {"DATASET": info["name"], "SPLIT": split["name"], "FILEFORMAT": form}
  names = []
  for shard in range(count):
    name = template.replace("{SHARD_X_OF_Y}", f"{shard:05d}-of-{count:05d}")
    for key, value in values.items():
      name = name.replace("{" + key + "}", value)
    names.append(f"{folder}/{os.path.basename(name)}")
  return names


def _records(shard: str, length: int, with_data: bool) -> Iterator[tuple[int, bytes]]:
  """(place, record) of a shard of `length` records, which are b"" unless they are wanted."""
  count = 0
  if ".tfrecord" in os.path.basename(shard):
    with storage.open_file(shard) as file:
      while count < length and len(header := file.read(12)) == 12:
        place, (size,) = file.tell() - 12, struct.unpack("<Q4x", header)
        data = file.read(size) if with_data and size < _MOST_RECORD_BYTES else b""
        file.seek(place + size + 16)
        yield place, data
        count += 1
  else:
    reader = _array_record(shard)
    while count < min(length, reader.num_records()):
      yield count, reader.read([count])[0] if with_data else b""
      count += 1
  if count < length:
    raise BadInput(f"curate: input={shard} holds {count} of its {length} records. Copy it again.")


def _array_record(shard: str) -> Any:
  from array_record.python.array_record_module import ArrayRecordReader

  if storage.is_url(shard):
    raise BadInput(f"curate: input={shard}: array_record is read from a mounted folder only.")
  return ArrayRecordReader(shard)


# ---- opening


@contextmanager
def open_row(source: Source) -> Iterator[BinaryIO]:
  """The video of a row, as a seekable file."""
  shard = os.fsdecode(unescape(source.path))
  features = _metadata(os.path.dirname(shard), "features.json")["featuresDict"]["features"]
  name, sides = _video_feature(features, shard)
  values = example.parse(_record(shard, source.offset))
  rate = Fraction((values.get("fps") or [source.fps])[0]).limit_denominator(1001)
  content = values.get(f"{name}/value", values.get(name)) or []
  shape = [int(side) for side in values.get(f"{name}/shape", sides)]
  if shape:
    frames = iter(np.frombuffer(content[0], np.uint8).reshape(shape))
  elif len(content) == 1:
    yield io.BytesIO(content[0])
    return
  else:
    frames = (_picture(data) for data in content)
  with tempfile.TemporaryFile() as file:
    _encode(frames, rate, file)
    file.seek(0)
    yield file


def read_content(source: Source) -> Iterator[bytes]:
  """All that decides the frames of a row, as it is stored: no picture is decoded."""
  shard = os.fsdecode(unescape(source.path))
  features = _metadata(os.path.dirname(shard), "features.json")["featuresDict"]["features"]
  name, _ = _video_feature(features, shard)
  values = example.parse(_record(shard, source.offset)) | {"given": [source.fps]}
  for key in ("fps", "given", name, f"{name}/shape", f"{name}/value"):
    for value in values.get(key, ()):
      data = value if isinstance(value, bytes) else repr(value).encode()
      yield f"{key} {len(data)};".encode() + data


def _record(shard: str, place: int) -> bytes:
  if ".tfrecord" not in os.path.basename(shard):
    return _array_record(shard).read([place])[0]
  with storage.open_file(shard) as file:
    file.seek(place)
    (length,) = struct.unpack("<Q4x", file.read(12))
    if length > _MOST_RECORD_BYTES:
      raise Refused("too_large", f"a record of {length} bytes")
    return file.read(length)


def _picture(data: bytes) -> np.ndarray:
  file = io.BytesIO(data)
  with open_still(file, still_format(file), Limits()) as still:
    return still.paint()


def _encode(frames: Iterator[np.ndarray], rate: Fraction, file: BinaryIO) -> None:
  """Writes uint8 [H,W,3] or [H,W,1] frames without loss."""
  stream = None
  with av.open(file, "w", format="nut") as container:
    for number, frame in enumerate(frames):
      frame = np.broadcast_to(frame, (*frame.shape[:2], 3))
      picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
      if stream is None:
        stream = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "bgr0"
        stream.thread_count = 1
      picture.pts, picture.time_base = number, 1 / rate
      container.mux(stream.encode(picture.reformat(format="bgr0")))
    if stream is None:
      raise Refused("empty", "no frames")
    container.mux(stream.encode())

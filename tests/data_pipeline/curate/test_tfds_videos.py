"""TFDS datasets as inputs: frames, tensors and files, in both formats of shards."""

import io
import json
import struct

import numpy as np
import pytest

from data_pipeline import example
from data_pipeline.curate.media import frames, probe
from data_pipeline.curate.notes import Notes
from data_pipeline.curate.sources import open_source
from data_pipeline.errors import BadInput


def tfds_folder(folder, features, rows, form="array_record"):
  """A prepared dataset, as TFDS lays it out."""
  folder.mkdir(parents=True)
  records = [example.serialize(row) for row in rows]
  shard = folder / f"toy-train.{form}-00000-of-00001"
  if form == "tfrecord":
    framed = [struct.pack("<Q4x", len(record)) + record + bytes(4) for record in records]
    shard.write_bytes(b"".join(framed))
  else:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(shard), "group_size:1")
    for record in records:
      writer.write(record)
    writer.close()
  split = {"name": "train", "shardLengths": [str(len(rows))], "numBytes": "1"}
  info = {"name": "toy", "fileFormat": form, "version": "1.0.0", "splits": [split]}
  split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
  (folder / "dataset_info.json").write_text(json.dumps(info))
  (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
  return folder


TEXT = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}
VIDEO = {"pythonClassName": "tensorflow_datasets.core.features.video_feature.Video", "video": {}}
SIDES = {"dimensions": ["-1", "-1", "-1", "3"]}
TENSOR = {"pythonClassName": "…Tensor", "tensor": {"dtype": "uint8", "shape": SIDES}}


def noise(seed):
  return np.random.default_rng(seed).integers(0, 256, (4, 6, 9, 3), dtype=np.uint8)


def png(frame) -> bytes:
  from PIL import Image

  file = io.BytesIO()
  Image.fromarray(frame).save(file, "png")
  return file.getvalue()


@pytest.mark.parametrize("form", ["array_record", "tfrecord"])
@pytest.mark.parametrize("kind", ["frames", "tensor"])
def test_tfds_datasets(found, tmp_path, monkeypatch, form, kind):
  rows = [
    {"video": [png(frame) for frame in noise(i)], "caption": [f"clip {i}".encode()]}
    if kind == "frames"
    else {
      "video/value": [noise(i).tobytes()],
      "video/shape": [4, 6, 9, 3],
      "caption": [f"clip {i}".encode()],
      "fps": [12.5],
    }
    for i in range(3)
  ]
  features = {"video": VIDEO if kind == "frames" else TENSOR, "caption": TEXT}
  folder = tfds_folder(tmp_path / "toy/1.0.0", features, rows, form)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  sources, _ = found("tfds:toy:train", fps=8)
  assert list(sources) == [f"tfds:toy/train/{i}" for i in range(3)] == list(found(folder)[0])
  assert [source.captions for source in sources.values()] == [(f"clip {i}",) for i in range(3)]
  for number, source in enumerate(sources.values()):
    with open_source(source) as file:
      info = probe(file)
      assert info.fps == (8 if kind == "frames" else 12.5)
      assert np.array_equal(np.stack(list(frames(file, info))), noise(number))


def test_tfds_rows_that_are_files(found, content, tmp_path, make):
  data = make.write(tmp_path / "a.mkv", make.greys(5)).read_bytes()
  feature = {"pythonClassName": "…Tensor", "tensor": {"dtype": "string", "shape": {}}}
  folder = tfds_folder(tmp_path / "toy", {"video": feature}, [{"video": [data]}])
  (source,) = found(folder)[0].values()
  assert content(source) == data


def test_tfds_features_of_captions_by_name_and_others_are_told(found, tmp_path):
  row = {"video": [b"1"], "text": [b"a  fox"], "label": [b"x"], "license": [b"MIT"]}
  features = {"video": VIDEO} | dict.fromkeys(("text", "label", "license"), TEXT)
  folder, notes = tfds_folder(tmp_path / "toy", features, [row]), Notes()
  (source,) = found(folder, notes=notes)[0].values()
  assert (source.captions, source.licence) == (("a fox",), "MIT")
  assert notes.lines() == [f"{folder}: features that are not used: label"]
  (source,) = found(folder, caption_columns=("Label",))[0].values()
  assert source.captions == ("x",)
  with pytest.raises(BadInput, match=r"has no feature 'words'. It has text, label, license"):
    found(folder, caption_columns=("words",))


def test_tfds_input_that_is_none(found, tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(BadInput, match="no prepared dataset"):
    found("tfds:nothing")
  folder = tfds_folder(tmp_path / "toy/1.0.0", {"caption": TEXT}, [{"caption": [b"x"]}])
  with pytest.raises(BadInput, match="no video among its features"):
    found(folder)
  tfds_folder(tmp_path / "toy/1.0.1", {"video": VIDEO}, [{"video": [b"x"]}])
  with pytest.raises(BadInput, match="no split test"):
    found("tfds:toy:test")

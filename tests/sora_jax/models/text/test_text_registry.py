import dataclasses
import json
import os

import numpy as np
import pytest

from data_pipeline.errors import BadInput
from sora_jax.models.text import (
  describe,
  load_frozen_text_encoder,
  load_text_encoder,
  save_text_encoder,
)


@pytest.fixture(scope="module")
def minilm():
  return load_text_encoder("minilm")


def test_an_unknown_name_lists_those_known():
  with pytest.raises(BadInput, match="name='t6' is not known. Choose one of bytes, minilm."):
    load_text_encoder("t6")


def test_the_spec_is_json():
  spec = describe(load_text_encoder("bytes"))
  assert json.loads(json.dumps(spec)) == spec
  assert (spec["name"], spec["width"], spec["vocabulary"]) == ("bytes", 0, 258)


def test_a_kept_byte_encoder_comes_back(tmp_path):
  save_text_encoder(load_text_encoder("bytes"), tmp_path / "frozen" / "text")
  assert load_frozen_text_encoder(tmp_path / "frozen" / "text") == load_text_encoder("bytes")


def test_a_kept_encoder_samples_alone(minilm, tmp_path):
  source = tmp_path / "source"
  source.mkdir()
  for name, path in minilm.files.items():  # a download cache keeps symbolic links to blobs
    (tmp_path / f"blob {name}").write_bytes(path.read_bytes())
    (source / name).symlink_to(tmp_path / f"blob {name}")
  encoder = load_text_encoder("minilm", source)
  kept = tmp_path / "frozen" / "text"
  save_text_encoder(encoder, kept)
  save_text_encoder(encoder, kept)  # a resumed run saves again
  assert sorted(path.name for path in kept.iterdir()) == [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
  ]
  for path in kept.iterdir():  # a copy: writing into one file changes no other
    assert path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1
  for name in minilm.files:
    (tmp_path / f"blob {name}").unlink()
  again = load_frozen_text_encoder(kept)
  assert again.fingerprint == minilm.fingerprint
  assert all(path.parent == kept for path in again.files.values())
  caption = ["a red ball"]
  np.testing.assert_array_equal(again.encode(caption)[0], minilm.encode(caption)[0])


def test_a_file_that_changed_is_refused(minilm, tmp_path):
  save_text_encoder(minilm, tmp_path)
  with open(tmp_path / "model.safetensors", "r+b") as file:
    file.seek(-1, os.SEEK_END)
    last = file.read(1)[0]
    file.seek(-1, os.SEEK_END)
    file.write(bytes([last ^ 1]))
  with pytest.raises(BadInput, match="has fingerprint=.* config.json says .* have changed"):
    load_frozen_text_encoder(tmp_path)


def test_another_encoder_is_not_overwritten(minilm, tmp_path):
  save_text_encoder(load_text_encoder("bytes"), tmp_path)
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(BadInput, match="keeps another encoder .* Give a new folder"):
    save_text_encoder(dataclasses.replace(minilm, fingerprint="0" * 64), tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
  assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize("content", [None, "{", "[]", '{"name": "bytes"}'])
def test_a_folder_without_a_spec_is_refused(tmp_path, content):
  if content is not None:
    (tmp_path / "config.json").write_text(content)
  with pytest.raises(BadInput, match="config.json is not the spec of a text encoder"):
    load_frozen_text_encoder(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / "text").write_text("a file in the way")
  with pytest.raises(BadInput, match="text cannot be written"):
    save_text_encoder(load_text_encoder("bytes"), tmp_path / "text")

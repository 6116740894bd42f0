"""What is written is as readable as its neighbours; what may not be read is not called absent."""

import os
from pathlib import Path

import pytest
from colleague import as_colleague, masked, odd_modes, open_folder

from data_pipeline import access
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.parts import Parts
from data_pipeline.writer import DatasetWriter

DENIED = r"may not be read by this user \(Permission denied\)\. Ask its owner"


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_datasets_are_as_readable_as_their_neighbours(mask, make_clip, tmp_path):
  with masked(mask):
    with DatasetWriter(tmp_path / "a", "clip", name="a", shard_bytes=2**20, meta={}) as out:
      out.add(make_clip(0))
    with Parts(tmp_path / "b", "clip", name="b", meta={}, plan={"parts": 2}) as parts:
      parts.write("train", 0, [make_clip(0)])
      assert odd_modes(tmp_path, mask) == {}  # the work folder, which outlives a kill
      parts.write("train", 1, [make_clip(1)])
      parts.finish({"train": 2})
    os.chmod(tmp_path / "a" / "meta.json", 0o600)  # as older versions had some files
    access.copy_folder(tmp_path / "a", tmp_path / "c")
    os.chmod(tmp_path / "a" / "meta.json", 0o666 & ~mask)
  assert odd_modes(tmp_path, mask) == {}
  for name in "abc":
    assert len(Dataset.open(tmp_path / name, kind="clip")) == 1 + (name == "b")


def test_what_may_not_be_read_of_a_dataset_is_named(make_clip):
  with open_folder() as folder:
    path = folder / "clips"
    with DatasetWriter(path, "clip", name="a", shard_bytes=2**20, meta={}) as out:
      out.add(make_clip(0))
    (shard,) = path.glob("a-train*")
    for file in (path / "meta.json", path / "index" / "fps.npy", shard, path):
      mode = file.stat().st_mode
      os.chmod(file, 0)
      shown = "meta.json" if file == path else file.name
      with as_colleague(), pytest.raises(BadInput, match=f"{shown} {DENIED}"):
        Dataset.open(path, kind="clip")
      os.chmod(file, mode)
    with as_colleague():
      assert len(Dataset.open(path, kind="clip")) == 1


def test_absent_and_forbidden_are_told_apart():
  with open_folder() as folder:
    (folder / "shut").mkdir(mode=0o700)
    (folder / "file").touch()
    assert access.is_folder(folder, "x") and not access.is_folder(folder / "none", "x")
    for path in (folder / "file", folder / "file" / "a"):
      assert not access.is_folder(path, "x")
    access.check_file(folder / "file", "x", "absent")
    for path in (folder, folder / "none", folder / "file" / "a"):
      with pytest.raises(BadInput, match="^absent$"):
        access.check_file(path, "x", "absent")
    os.chmod(folder / "shut", 0)
    with as_colleague():
      for use in (lambda: access.is_folder(folder / "shut", "x"), lambda: shut(folder)):
        with pytest.raises(BadInput, match=f"x: {folder}/shut.* {DENIED}"):
          use()


def shut(folder: Path) -> None:
  access.check_file(folder / "shut" / "file", "x", "absent")

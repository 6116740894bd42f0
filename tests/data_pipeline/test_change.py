"""Datasets that grow, and that lose what is taken down: whole at every moment, and found."""

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipeline import change as change_module
from data_pipeline.change import append, remove, revise
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.folder import Claim
from data_pipeline.parts import Parts

ROOT = Path(__file__).parents[2]


def ids(path):
  dataset = Dataset.open(path, kind=None)
  dataset.verify()
  return [dataset.read(row).id for row in range(len(dataset))]


def inodes(path):
  return {file.stat().st_ino for file in path.glob("*.array_record-*")}


def shards(path):
  return {split: len(sizes) for split, sizes in Dataset.open(path, kind=None).shards.items()}


def test_removes_whole_sources_and_nothing_else(folder, latents, tmp_path, write):
  before, old = inodes(folder), Dataset.open(folder, kind="latent")
  (folder / "vae").mkdir()
  (folder / "vae" / "config.json").write_text("{}")
  gone = {"source/3", "source/11", "source/unknown"}
  removed = remove(folder, gone)
  assert removed == [(r.id, r.source) for r in latents if r.source in gone] and len(removed) == 6
  kept = [record for record in latents if record.source not in gone]
  assert ids(folder) == [record.id for record in kept]
  dataset = Dataset.open(folder, kind="latent")
  for row, record in enumerate(kept):
    np.testing.assert_array_equal(dataset.read(row).latent, record.latent)
  assert dataset.fingerprint == write(tmp_path / "anew", kept, meta=old.meta).fingerprint
  assert len(inodes(folder) & before) >= len(before) - 6  # only those that held one were written
  assert (folder / "vae" / "config.json").read_text() == "{}"
  assert sorted(path.name for path in tmp_path.iterdir()) == ["anew", "data"]


def test_the_bytes_of_what_was_removed_are_gone(folder, latents):
  (gone,) = [record for record in latents if record.id == "clip/12"]
  everything = lambda: b"".join(f.read_bytes() for f in folder.rglob("*") if f.is_file())  # noqa: E731
  assert gone.latent.tobytes() in everything()
  remove(folder, [gone.source])
  assert gone.latent.tobytes() not in everything() and gone.source.encode() not in everything()


def test_shards_that_become_empty_are_none(tmp_path, make_latent, write):
  path = tmp_path / "data"
  splits = ("train", "train", "train", "held_out")
  records = [make_latent(i, split=split, source=f"s{i}") for i, split in enumerate(splits)]
  write(path, records, shard_bytes=1)
  assert shards(path) == {"train": 3, "held_out": 1}
  remove(path, ["s1", "s3"])
  assert shards(path) == {"train": 2} and ids(path) == ["clip/0", "clip/2"]
  with pytest.raises(BadInput, match="would hold no records without the 2 sources given"):
    remove(path, ["s0", "s2"])
  assert ids(path) == ["clip/0", "clip/2"]


def test_removing_nothing_changes_nothing_but_what_is_said(folder):
  before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
  assert remove(folder, ["source/unknown"]) == []
  assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
  first = Dataset.open(folder, kind="latent")
  assert remove(folder, [], meta_changes={"clips": "new"}) == []
  dataset = Dataset.open(folder, kind="latent")
  assert dataset.meta == {"vae": "abc", "clips": "new"}
  assert dataset.fingerprint != first.fingerprint and len(ids(folder)) == 60
  with pytest.raises(TypeError, match="sources is a string"):
    remove(folder, "source/1")


def test_appends_records(folder, latents, tmp_path, make_latent, write):
  before, more = inodes(folder), [make_latent(i) for i in range(60, 75)]
  dataset = append(folder, iter(more), shard_bytes=4000)
  assert ids(folder) == [record.id for record in [*latents, *more]]
  assert before < inodes(folder)  # not one was written again
  expected = write(tmp_path / "anew", [*latents, *more], meta={"vae": "abc"})
  assert dataset.fingerprint == expected.fingerprint
  for split in dataset.splits:
    source = tfds.builder_from_directory(folder).as_data_source(split=split)
    wanted = [r for r in [*latents, *more] if r.split == split]
    for found, record in zip(source, wanted, strict=True):
      assert found["id"].decode() == record.id
      np.testing.assert_array_equal(found["latent"].view(ml_dtypes.bfloat16), record.latent)
  assert append(folder, []).fingerprint == dataset.fingerprint


def test_appends_a_dataset_of_parts_once(folder, make_latent, tmp_path):
  more = [make_latent(i, split="held_out") for i in range(60, 64)]
  with Parts(tmp_path / "more", "latent", name="other", meta={"vae": "abc"}, plan={}) as parts:
    parts.write("held_out", 0, more[:2])
    parts.write("held_out", 1, more[2:])
    added = parts.finish({"held_out": 2})
  before = shards(folder)
  first = append(folder, added)
  assert shards(folder) == before | {"held_out": before["held_out"] + 2}
  assert ids(folder)[60:] == [record.id for record in more]
  assert inodes(tmp_path / "more") < inodes(folder)
  assert append(folder, added).fingerprint == first.fingerprint  # as after a kill: they are there
  assert len(ids(folder)) == 64 and len(ids(tmp_path / "more")) == 4


def test_clips_and_their_latents(tmp_path, make_clip, make_latent, write):
  """What a take-down does: the clips go, then the latents, which name the clips' fingerprint."""
  write(tmp_path / "clips", [make_clip(i) for i in range(5)], kind="clip", shard_bytes=1)
  clips = append(tmp_path / "clips", [make_clip(i) for i in range(5, 7)])
  assert clips.storage == "raw" and ids(tmp_path / "clips") == [f"clip/{i}" for i in range(7)]
  latents = [make_latent(i, source="s" if i < 3 else "t") for i in range(6)]
  write(tmp_path / "latents", latents, meta={"clips": clips.fingerprint})
  removed = remove(tmp_path / "latents", {"s"}, meta_changes={"clips": "f" * 64})
  assert removed == [(f"clip/{i}", "s") for i in range(3)]
  assert Dataset.open(tmp_path / "latents", kind="latent").meta == {"clips": "f" * 64}


def test_revises_records_in_their_places(folder, latents, tmp_path, write):
  before, old = inodes(folder), Dataset.open(folder, kind="latent")
  (folder / "vae").mkdir()
  (folder / "vae" / "config.json").write_text("{}")
  said, chosen = [], [41, 3, 5]

  def mend(record):
    ids = {name: (np.arange(3, dtype=np.int32),) for name in record.text_ids}
    return dataclasses.replace(record, captions=("said anew",), text_ids=ids, text_states={})

  def make(records):
    said.append([record.id for record in records])
    return [mend(record) for record in records]

  told = []
  done = revise(
    folder, chosen, make, meta_changes={"clips": "new"}, before=lambda *two: told.append(two)
  )
  assert sorted(sum(said, [])) == ["clip/3", "clip/41", "clip/5"]
  wanted = [mend(r) if i in chosen else r for i, r in enumerate(latents)]
  anew = write(tmp_path / "anew", wanted, meta={"vae": "abc", "clips": "new"})
  assert done.fingerprint == anew.fingerprint and told == [(old.fingerprint, anew.fingerprint)]
  records = [done.read(row) for row in range(len(done))]
  for one, other in zip(records, wanted, strict=True):
    assert (one.id, one.captions) == (other.id, other.captions)
    np.testing.assert_array_equal(one.latent, other.latent)
  assert len(inodes(folder) & before) >= len(before) - 3  # the others were not written
  assert (folder / "vae" / "config.json").read_text() == "{}"
  assert sorted(path.name for path in tmp_path.iterdir()) == ["anew", "data"]


def test_revising_nothing_changes_nothing_but_what_is_said(folder):
  before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
  revise(folder, [], lambda records: records)
  assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
  assert revise(folder, [], lambda records: records, meta_changes={"clips": "new"}).meta == {
    "vae": "abc",
    "clips": "new",
  }
  before = bytes_of(folder)
  for wrong in (dict(id="clip/other"), dict(source="other"), dict(split="held_out")):
    make = lambda records, wrong=wrong: [dataclasses.replace(records[0], **wrong)]  # noqa: E731
    with pytest.raises(ValueError, match=f"revise: {next(iter(wrong))}=.* of 'clip/0' is another"):
      revise(folder, [0], make)
  assert bytes_of(folder) == before


@pytest.mark.parametrize(
  "fields, settings, text",
  [
    (dict(), dict(meta={"vae": "other"}), "latent records, of other vae than the dataset"),
    (dict(c=5), dict(), "latent_channels=5 of .*more is not the 4 of those before it"),
    (
      dict(captions=(), text_ids={"words": ()}),
      dict(),
      "dataset: .*more has ids of words, those before it of words, bytes",
    ),
    (dict(id="clip/7"), dict(), "have the same id"),
  ],
)
def test_refuses_what_does_not_belong(folder, tmp_path, make_latent, write, fields, settings, text):
  before = bytes_of(folder)
  write(tmp_path / "more", [make_latent(70, **fields)], **(dict(meta={"vae": "abc"}) | settings))
  with pytest.raises(BadInput, match=text):
    append(folder, Dataset.open(tmp_path / "more", kind=None))
  if not settings:
    with pytest.raises(BadInput, match=text.replace(".*more", "record 'clip/70'")):
      append(folder, [make_latent(70, **fields)])
  assert bytes_of(folder) == before
  assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "more"]


def bytes_of(path):
  return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_refuses_kinds_and_places(folder, tmp_path, make_clip, write):
  write(tmp_path / "clips", [make_clip(0)], kind="clip")
  with pytest.raises(BadInput, match="holds clip records, of other vae than"):
    append(folder, Dataset.open(tmp_path / "clips", kind="clip"))
  with pytest.raises(BadInput, match="ClipRecord is no latent record"):
    append(folder, [make_clip(0)])
  for path in (tmp_path / "none", tmp_path / "none" / "none"):
    with pytest.raises(BadInput, match="none does not exist"):
      remove(path, ["s"])
  with Claim(folder), pytest.raises(BadInput, match="is being written by another process"):
    remove(folder, ["source/1"])
  assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "data"]


def test_a_file_system_without_links(folder, latents, monkeypatch):
  def no_links(*_):
    raise OSError(errno.EPERM, "Operation not permitted")

  monkeypatch.setattr(os, "link", no_links)
  before = inodes(folder)
  remove(folder, ["source/1"])
  assert not inodes(folder) & before
  assert ids(folder) == [record.id for record in latents if record.source != "source/1"]


def test_a_full_disk_leaves_the_old_one(folder, monkeypatch):
  before, write_shard = bytes_of(folder), change_module.write_shard

  def full(path, data):
    write_shard(path, data)
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(change_module, "write_shard", full)
  with pytest.raises(OSError, match="No space left"):
    remove(folder, ["source/1"])
  assert bytes_of(folder) == before
  assert [path.name for path in folder.parent.iterdir()] == ["data"]


def test_a_reader_of_the_old_one_is_told(folder, latents):
  reader = Dataset.open(folder, kind="latent")
  remove(folder, ["source/0"])
  with pytest.raises(BadInput, match="row=0 of .* is not the record that the index means"):
    reader.read(0)


def test_through_a_link_the_folder_itself_is_replaced(folder, tmp_path):
  (tmp_path / "elsewhere").mkdir()
  link = tmp_path / "elsewhere" / "link"
  link.symlink_to(folder)
  assert len(remove(link, ["source/1"])) == 3
  assert link.is_symlink() and len(ids(folder)) == len(ids(link)) == 57
  assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["link"]


def test_opening_waits_for_a_change_between_its_renames(folder, tmp_path, monkeypatch):
  """Another process renames: who opens the dataset then gets the new one."""
  code = OPENS.format(path=str(folder))
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  opened = []
  rename = Path.rename

  def slow(self, target):
    rename(self, target)
    if self == folder:
      assert not folder.exists()
      command = [sys.executable, "-c", code]
      opened.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
      assert opened[0].stdout.readline() == "opens\n"
      with pytest.raises(subprocess.TimeoutExpired):
        opened[0].wait(0.5)

  monkeypatch.setattr(Path, "rename", slow)
  remove(folder, ["source/1"])
  with opened[0] as process:
    assert process.stdout.read() == "57\n"


OPENS = """
from data_pipeline.dataset import Dataset
print("opens", flush=True)
print(len(Dataset.open({path!r}, kind="latent")))
"""

EVERY = 8  # of the steps, some are tested; all of them take a minute

KILLED = """
import sys, pathlib
sys.path[:0] = [{tests!r}, {support!r}]
import tensorflow_datasets
from conftest import latent_of, write_folder
from killed import kill_at_every_step
from data_pipeline.change import append, remove
from data_pipeline.dataset import Dataset

records = [latent_of(i, split="train" if i < 4 else "held_out", source=f"s{{i}}") for i in range(6)]
def prepare(folder):
  write_folder(folder / "data", records, shard_bytes=1000)
  (folder / "data" / "vae").mkdir()
  (folder / "data" / "vae" / "config.json").write_text("x")

def take_down(folder):
  remove(folder / "data", ["s1", "s5"])

def grow(folder):
  append(folder / "data", [latent_of(6, split="train", source="s6")])

def look(folder, *after):
  dataset = Dataset.open(folder / "data", kind="latent")
  dataset.verify()
  found = [dataset.read(i).id for i in range(len(dataset))]
  assert found in ([r.id for r in records], [f"clip/{{i}}" for i in after]), found
  assert (folder / "data" / "vae" / "config.json").read_text() == "x"
  left = {{path.name for path in folder.iterdir()}} - {{".data.lock", ".data.replacement"}}
  assert left == {{"data"}}, left  # opening was enough to remove what was replaced
  return len(found)

def after_take_down(folder):
  look(folder, 0, 2, 3, 4)
  take_down(folder)
  assert look(folder, 0, 2, 3, 4) == 4
  assert not (folder / ".data.replacement").exists()

def after_growth(folder):
  if look(folder, *range(7)) == 6:
    grow(folder)
  assert look(folder, *range(7)) == 7

folder = pathlib.Path({folder!r})
print(kill_at_every_step(folder / "a", prepare, take_down, after_take_down, every={every}))
print(kill_at_every_step(folder / "b", prepare, grow, after_growth, every={every} + 1))
"""


@pytest.mark.slow
def test_killed_at_every_step(tmp_path):
  places = dict(tests=str(Path(__file__).parent), support=str(ROOT / "tests" / "support"))
  code = KILLED.format(**places, folder=str(tmp_path), every=EVERY)
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", code]
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert min(map(int, done.stdout.split())) > 40

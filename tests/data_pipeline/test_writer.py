"""Dataset folders are written whole or not at all, by one writer at a time."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline import writer as writer_module
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.folder import Claim
from data_pipeline.writer import DatasetWriter

ROOT = Path(__file__).parents[2]


def test_refuses_bad_arguments(tmp_path):
  for kind, name in [("video", "x"), ("clip", "X-1"), ("clip", "")]:
    with pytest.raises(BadInput, match="is unusable. Use kind clip or latent"):
      DatasetWriter(tmp_path / "x", kind, name=name, shard_bytes=1, meta={})
  with pytest.raises(BadInput, match="shard_bytes=0 is below 1"):
    DatasetWriter(tmp_path / "x", "clip", name="x", shard_bytes=0, meta={})
  with pytest.raises(BadInput, match="Mount the bucket"):
    DatasetWriter("s3://bucket/x", "clip", name="x", shard_bytes=1, meta={})


@pytest.mark.parametrize(
  "records, text",
  [
    (lambda latent, clip: [], "would hold no records"),
    (lambda latent, clip: [clip(0)], "ClipRecord is no latent record"),
    (
      lambda latent, clip: [latent(1), latent(1)],
      "records 0 and 1, counted from 0, have the same id",
    ),
    (
      lambda latent, clip: [latent(1), latent(2, c=5)],
      "latent_channels=5 of record 'clip/2' is not the 4",
    ),
    (
      lambda latent, clip: [latent(1, k=6), latent(2)],
      "text_state_width/words=None of record 'clip/2' is not the 6",
    ),
    (
      lambda latent, clip: [latent(1), latent(4, captions=(), text_ids={"words": ()})],
      "record 'clip/4' has ids of words, those before it of words, bytes",
    ),
    (lambda latent, clip: [latent(1, fps=-1.0)], "fps=-1.0 is no rate"),
  ],
)
def test_a_refused_dataset_leaves_nothing(tmp_path, records, text, make_latent, make_clip, write):
  with pytest.raises(BadInput, match=text):
    write(tmp_path / "data", records(make_latent, make_clip))
  assert list(tmp_path.iterdir()) == []


def test_does_not_write_over_anything(folder, latents, tmp_path, write):
  with pytest.raises(BadInput, match="is not empty. Give another path, or remove"):
    write(folder, latents)
  assert len(Dataset.open(folder, kind="latent")) == 60
  (tmp_path / "file").write_text("x")
  with pytest.raises(BadInput, match="file is not empty|cannot be written"):
    write(tmp_path / "file", latents)
  with pytest.raises(BadInput, match="cannot be written .Not a directory"):
    write(tmp_path / "file" / "below", latents)


def test_two_writers_of_one_path(tmp_path, latents, write):
  settings = dict(name="tiny", shard_bytes=4000, meta={})
  with DatasetWriter(tmp_path / "data", "latent", **settings) as first:
    first.add(latents[0])
    with pytest.raises(BadInput, match="is being written by another process"):
      write(tmp_path / "data", latents)
    first.add(latents[1])
  assert len(Dataset.open(tmp_path / "data", kind="latent")) == 2


def test_a_writer_that_waited_sees_the_finished_dataset(tmp_path, latents, monkeypatch, write):
  """Another writer finishes between the look at the path and the lock."""
  late = DatasetWriter(tmp_path / "data", "latent", name="tiny", shard_bytes=4000, meta={})

  def claim_late(path):
    monkeypatch.undo()
    write(tmp_path / "data", latents)
    return Claim(path)

  monkeypatch.setattr(writer_module, "Claim", claim_late)
  with pytest.raises(BadInput, match="data is not empty"), late:
    pass
  assert [path.name for path in tmp_path.iterdir()] == ["data"]
  assert len(Dataset.open(tmp_path / "data", kind="latent")) == len(latents)


def test_a_lock_that_its_holder_removed_is_none(tmp_path, monkeypatch, latents, write):
  flock, path = fcntl.flock, tmp_path / ".data.lock"
  calls = []

  def removed_before_the_first(file, how):
    if not calls:
      path.unlink()
    calls.append(path.exists())
    flock(file, how)

  monkeypatch.setattr(fcntl, "flock", removed_before_the_first)
  with DatasetWriter(tmp_path / "data", "latent", name="tiny", shard_bytes=4000, meta={}) as out:
    out.add(latents[0])
    with pytest.raises(BadInput, match="is being written by another process"):
      write(tmp_path / "data", latents)
  assert calls == [False, True, True]


def test_other_files_go_along(tmp_path, latents):
  with DatasetWriter(tmp_path / "data", "latent", name="tiny", shard_bytes=4000, meta={}) as writer:
    (writer.folder / "vae").mkdir()
    (writer.folder / "vae" / "config.json").write_text("{}")
    writer.add(latents[0])
  assert (tmp_path / "data" / "vae" / "config.json").read_text() == "{}"
  names = {path.name for path in (tmp_path / "data").iterdir()}
  shard = "tiny-train.array_record-00000-of-00001"
  assert names == {"vae", "index", "meta.json", "features.json", "dataset_info.json", shard}


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from conftest import latent_of
from data_pipeline.writer import DatasetWriter
with DatasetWriter({path!r}, "latent", name="tiny", shard_bytes=4000, meta={{}}) as writer:
  for i in range(10**6):
    writer.add(latent_of(i))
    if i == 30:
      print("ready", flush=True)
"""


def test_killed_writer_leaves_no_dataset_and_the_next_starts_clean(tmp_path, latents, write):
  path = tmp_path / "data"
  code = KILLED.format(tests=str(Path(__file__).parent), path=str(path))
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
  with process:
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
  assert {p.name for p in tmp_path.iterdir()} == {".data.partial", ".data.lock"}
  with pytest.raises(BadInput, match="is no dataset"):
    Dataset.open(path, kind="latent")
  with pytest.raises(BadInput, match="is no dataset"):
    Dataset.open(tmp_path / ".data.partial", kind="latent")
  fingerprint = write(path, latents).fingerprint
  assert Dataset.open(path, kind="latent").fingerprint == fingerprint
  assert [p.name for p in tmp_path.iterdir()] == ["data"]
  assert write(tmp_path / "clean", latents).fingerprint == fingerprint

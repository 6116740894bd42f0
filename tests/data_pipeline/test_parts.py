"""Parts: any order, any process, killed anywhere, and always the dataset of the plain writer."""

import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import records as records_module
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.parts import Parts
from data_pipeline.video_writer import encode_video
from data_pipeline.writer import DatasetWriter

ROOT = Path(__file__).parents[2]
COUNTS = {"held_out": 2, "train": 3, "held_out_combination": 1}
KEYS = dict(name="tiny", meta={"vae": "abc"}, plan={"parts": 3})


def part_of(records, split, part):
  """Records of a part: every third of the split, one part is empty."""
  mine = [record for record in records if record.split == split]
  if split == "held_out":
    return mine if part else []
  return mine[part :: COUNTS[split]]


def in_order(records):
  return [
    record
    for split in records_module.SPLITS
    for part in range(COUNTS[split])
    for record in part_of(records, split, part)
  ]


def bytes_of(folder):
  names = sorted(path for path in folder.rglob("*") if path.is_file())
  return {str(path.relative_to(folder)): path.read_bytes() for path in names}


@pytest.fixture
def parts(tmp_path):
  with Parts(tmp_path / "data", "latent", **KEYS) as parts:
    yield parts


def fill(parts, records, chosen=None):
  for split, part in parts.missing(COUNTS) if chosen is None else chosen:
    parts.write(split, part, iter(part_of(records, split, part)))


def test_the_same_as_written_in_one_go(tmp_path, latents, parts, write):
  wanted = [("train", 0), ("train", 1), ("train", 2), ("held_out", 0), ("held_out", 1)]
  assert parts.missing(COUNTS) == [*wanted, ("held_out_combination", 0)]
  fill(parts, latents, reversed(parts.missing(COUNTS)))
  assert parts.missing(COUNTS) == [] and not parts.path.exists()
  dataset = parts.finish(COUNTS)
  assert [path.name for path in tmp_path.iterdir()] == ["data"]
  assert [len(sizes) for sizes in dataset.shards.values()] == [3, 1, 1]  # the empty part is none
  expected = in_order(latents)
  assert [dataset.read(row).id for row in range(60)] == [record.id for record in expected]
  assert dataset.splits == {"train": 36, "held_out": 12, "held_out_combination": 12}
  dataset.verify()
  assert dataset.fingerprint == write(tmp_path / "plain", expected, meta=KEYS["meta"]).fingerprint


def test_byte_by_byte_as_the_writer_makes_it(tmp_path, make_latent):
  """Where the writer cuts its shards alike."""
  records = [make_latent(i, split="train") for i in range(4)]
  settings = dict(name="tiny", meta={"vae": "abc"})
  with DatasetWriter(tmp_path / "plain", "latent", shard_bytes=1, **settings) as writer:
    for record in records:
      writer.add(record)
  with Parts(tmp_path / "data", "latent", plan={}, **settings) as parts:
    for i in (2, 0, 3, 1):
      parts.write("train", i, [records[i]])
    parts.finish({"train": 4})
  assert bytes_of(tmp_path / "data") == bytes_of(tmp_path / "plain")


def test_goes_on_where_it_was(tmp_path, latents):
  with Parts(tmp_path / "data", "latent", **KEYS) as parts:
    fill(parts, latents, [("train", 1), ("held_out", 0)])
    (parts.folder / "vae").mkdir()
  with Parts(tmp_path / "data", "latent", **KEYS) as parts:
    assert parts.missing(COUNTS) == [
      *(("train", 0), ("train", 2), ("held_out", 1), ("held_out_combination", 0))
    ]
    with pytest.raises(BadInput, match=r"4 of 6 parts of .* are not written \(held_out-00001, "):
      parts.finish(COUNTS)
    fill(parts, latents)
    with pytest.raises(BadInput, match=r"has parts beyond counts=.* \(train-00002\). Start over"):
      parts.finish(COUNTS | {"train": 2})
    parts.finish(COUNTS)
  assert (tmp_path / "data" / "vae").is_dir()
  with pytest.raises(BadInput, match="data is not empty"):
    Parts(tmp_path / "data", "latent", **KEYS)


def test_a_damaged_part_is_missing(parts, latents):
  fill(parts, latents)
  (shard,) = parts.folder.glob("parts-*/train-00001/train-0")
  (columns,) = parts.folder.glob("parts-*/held_out-00001/index.npz")
  shard.write_bytes(shard.read_bytes()[:-9000])
  columns.write_bytes(columns.read_bytes()[:-100])
  assert parts.missing(COUNTS) == [("train", 1), ("held_out", 1)]
  fill(parts, latents)
  (shard,) = parts.folder.glob("parts-*/train-00002/train-0")
  shard.unlink()
  assert parts.missing(COUNTS) == [("train", 2)]
  fill(parts, latents)
  assert len(parts.finish(COUNTS)) == 60


@pytest.mark.parametrize(
  "change, what",
  [
    (dict(plan={"parts": 4}), "plan, plan.parts"),
    (dict(meta={"vae": "other"}), "meta, meta.vae"),
    (dict(name="other"), "name"),
  ],
)
def test_another_plan_is_refused_or_starts_over(tmp_path, latents, change, what):
  with Parts(tmp_path / "data", "latent", **KEYS) as parts:
    fill(parts, latents, [("train", 0)])
  with pytest.raises(BadInput, match=f"is of another {what}. .*same settings.*or start over"):
    Parts(tmp_path / "data", "latent", **(KEYS | change))
  with Parts(tmp_path / "data", "latent", **KEYS) as parts:
    assert len(parts.missing(COUNTS)) == 5  # nothing was lost by the refusal
  with Parts(tmp_path / "data", "latent", **(KEYS | change), start_over=True) as parts:
    assert len(parts.missing(COUNTS)) == 6
    parts.discard()
  assert list(tmp_path.iterdir()) == []


def test_refuses_bad_arguments_and_records(tmp_path, latents, parts, make_latent, make_clip):
  with pytest.raises(BadInput, match="storage='zip' is not one of raw, encoded"):
    Parts(tmp_path / "x", "clip", **KEYS, storage="zip")
  with pytest.raises(BadInput, match="kind='video' or name='tiny' is unusable"):
    Parts(tmp_path / "x", "video", **KEYS)
  with pytest.raises(BadInput, match="counts={'test': 1} name other splits than train"):
    parts.missing({"test": 1})
  for records, text in [
    ([make_latent(1, split="held_out")], "split='held_out' of record 'clip/1' is not the 'train'"),
    ([make_latent(1, split="train")] * 2, "records 0 and 1, counted from 0, have the same id"),
    ([make_clip(0)], "ClipRecord is no latent record"),
    (
      [make_latent(1, split="train"), make_latent(2, split="train", c=5)],
      "latent_channels=5 of re",
    ),
  ]:
    with pytest.raises(BadInput, match=text):
      parts.write("train", 0, records)
  with pytest.raises(ZeroDivisionError):
    parts.write("train", 0, (1 // 0 for _ in "x"))
  assert len(parts.missing(COUNTS)) == 6
  assert not list(parts.folder.glob("parts-*/t*"))  # and nothing is left of them


@pytest.mark.parametrize(
  "twin, text",
  [
    (dict(id="clip/0"), "have the same id"),
    (dict(c=5), "latent_channels=5 of part train-00001 is not the 4"),
  ],
)
def test_parts_that_do_not_go_together(parts, make_latent, twin, text):
  parts.write("train", 0, [make_latent(0)])
  parts.write("train", 1, [make_latent(1, **twin)])
  with pytest.raises(BadInput, match=text):
    parts.finish({"train": 2})
  assert parts.missing({"train": 2}) == []  # kept
  parts.write("train", 1, [make_latent(1)])
  assert len(parts.finish({"train": 2})) == 2


def test_no_records_at_all(parts):
  parts.write("train", 0, [])
  with pytest.raises(BadInput, match="would hold no records"):
    parts.finish({"train": 1})


def test_encoded_clips(tmp_path, make_clip):
  def encoded(i):
    clip = make_clip(i)
    _, height, width, _ = clip.video.shape
    size = dict(width=width, height=height, fps=8.0)
    return dataclasses.replace(clip, video=encode_video(clip.video, codec="lossless", **size))

  settings = dict(name="tiny", meta={}, plan={}, storage="encoded")
  with Parts(tmp_path / "data", "clip", **settings) as parts:
    with pytest.raises(BadInput, match="record 'clip/0' has raw video, those before it encoded"):
      parts.write("train", 0, [make_clip(0)])
    parts.write("train", 0, [encoded(0), encoded(1)])
    dataset = parts.finish({"train": 1})
  assert dataset.storage == "encoded"
  np.testing.assert_array_equal(dataset.read(1).video.decode(), make_clip(1).video)


def write_part(parts, records, split, part):
  parts.write(split, part, part_of(records, split, part))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_other_processes_write_at_the_same_time(tmp_path, latents, method):
  if method == "fork" and sys.version_info >= (3, 12):
    pytest.skip("warns of threads")
  script = WORKERS.format(
    tests=str(Path(__file__).parent), path=str(tmp_path / "data"), method=method
  )
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  main = tmp_path / "main.py"
  main.write_text(script)
  subprocess.run([sys.executable, main], env=environment, check=True)
  dataset = Dataset.open(tmp_path / "data", kind="latent")
  assert [dataset.read(row).id for row in range(60)] == [r.id for r in in_order(latents)]


WORKERS = """
import multiprocessing, sys
sys.path.insert(0, {tests!r})
from conftest import latent_of
from test_parts import COUNTS, KEYS, write_part
from data_pipeline.parts import Parts

if __name__ == "__main__":
  latents = [latent_of(i) for i in range(60)]
  with Parts({path!r}, "latent", **KEYS) as parts:
    wanted = parts.missing(COUNTS) * 6  # each by several at once
    with multiprocessing.get_context({method!r}).Pool(4) as pool:
      pool.starmap(write_part, [(parts, latents, *one) for one in wanted], chunksize=1)
    assert parts.missing(COUNTS) == []
    parts.finish(COUNTS)
"""


def test_one_driver_at_a_time(tmp_path, latents, parts, write):
  with pytest.raises(BadInput, match="is being written by another process"):
    Parts(tmp_path / "data", "latent", **KEYS)
  with pytest.raises(BadInput, match="is being written by another process"):
    write(tmp_path / "data", latents)
  copy = pickle.loads(pickle.dumps(parts))
  fill(copy, latents)
  with pytest.raises(RuntimeError, match="is not claimed here"):
    copy.finish(COUNTS)
  parts.close()
  with Parts(tmp_path / "data", "latent", **KEYS) as again:
    assert again.missing(COUNTS) == []
  with pytest.raises(RuntimeError, match="is not claimed here"):
    parts.discard()


@pytest.mark.parametrize("end", ["finish", "discard"])
def test_who_comes_late_writes_nothing(tmp_path, latents, parts, end):
  """A worker that outlives its driver, while the dataset is finished or thrown away."""
  late = pickle.loads(pickle.dumps(parts))
  fill(parts, latents)

  def records():
    yield latents[0]
    if end == "finish":
      parts.finish(COUNTS)
    else:
      parts.discard()
    yield latents[1]

  with pytest.raises(OSError, match="No such file"):
    late.write("train", 0, records())
  with pytest.raises(OSError, match="No such file"):
    late.write("train", 0, [latents[0]])
  assert [path.name for path in tmp_path.iterdir()] == ["data"] * (end == "finish")
  if end == "finish":
    assert len(list((tmp_path / "data").iterdir())) == 9  # 5 shards, index, 3 descriptions
    assert len(Dataset.open(tmp_path / "data", kind="latent")) == 60


def test_a_worker_of_another_plan_writes_nothing(tmp_path, latents, parts):
  late = pickle.loads(pickle.dumps(parts))
  parts.close()
  with Parts(tmp_path / "data", "latent", **(KEYS | dict(plan={})), start_over=True) as other:
    with pytest.raises(OSError, match="No such file"):
      late.write("train", 0, [latents[0]])
    assert len(other.missing(COUNTS)) == 6


FULL = """
import errno, resource, signal, sys
sys.path.insert(0, {tests!r})
from conftest import latent_of
from test_parts import COUNTS, KEYS, fill
from data_pipeline.parts import Parts
from data_pipeline.writer import DatasetWriter

def refused(call):
  try:
    call()
  except OSError as error:
    assert error.errno == errno.EFBIG, error
  else:
    raise SystemExit("the disk was not full")

def write_plainly():
  with DatasetWriter({path!r} + "2", "latent", name="x", shard_bytes=10**9, meta={{}}) as writer:
    for record in latents:
      writer.add(record)

def set_limit(size):
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
latents = [latent_of(i) for i in range(60)]
import tensorflow_datasets  # may write its own files
with Parts({path!r}, "latent", **KEYS) as parts:
  fill(parts, latents, [("train", 0)])
  set_limit(5000)
  refused(lambda: fill(parts, latents, [("train", 1)]))
  refused(write_plainly)
  set_limit(resource.RLIM_INFINITY)
  assert ("train", 1) in parts.missing(COUNTS) and ("train", 0) not in parts.missing(COUNTS)
  fill(parts, latents)
  set_limit(500)
  refused(lambda: parts.finish(COUNTS))
  set_limit(resource.RLIM_INFINITY)
  assert parts.missing(COUNTS) == [], parts.missing(COUNTS)
  assert len(parts.finish(COUNTS)) == 60
print("done")
"""


def test_a_full_disk_loses_nothing(tmp_path):
  """A file may not grow beyond a limit here, which fails in the same calls."""
  code = FULL.format(tests=str(Path(__file__).parent), path=str(tmp_path / "data"))
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", code]
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.stdout == "done\n", done.stderr
  assert [path.name for path in tmp_path.iterdir()] == ["data"]


EVERY = 4  # of the steps, some are tested; all of them take half a minute

KILLED = """
import sys, pathlib
sys.path[:0] = [{tests!r}, {support!r}]
import tensorflow_datasets
from conftest import latent_of
from killed import kill_at_every_step
from test_parts import KEYS
from data_pipeline.dataset import Dataset
from data_pipeline.parts import Parts

COUNTS = {{"train": 2, "held_out": 1}}
def job(folder):
  with Parts(folder / "data", "latent", **KEYS) as parts:
    for split, part in parts.missing(COUNTS):
      parts.write(split, part, [latent_of(i, split=split) for i in records[split][part]])
    (parts.folder / "vae").mkdir(exist_ok=True)
    return parts.finish(COUNTS)

records = {{"train": [[0, 1], [2, 3]], "held_out": [[4]]}}
written = []
def prepare(folder):
  pass

def recover(folder):
  path = folder / "data"
  whole = {{p.name for p in folder.glob(".data.parts/*-*/*-0000?")}}
  if not path.exists():
    with Parts(path, "latent", **KEYS) as parts:
      again = {{f"{{split}}-{{part:05d}}" for split, part in parts.missing(COUNTS)}}
      assert len(again) + len(whole) == 3 or not again and not whole, (again, whole)
  dataset = Dataset.open(path, kind="latent") if path.exists() else job(folder)
  assert [dataset.read(i).id for i in range(5)] == [f"clip/{{i}}" for i in range(5)]
  dataset.verify()
  left = sorted(path.name for path in folder.iterdir())
  assert left in (["data"], [".data.lock", "data"]), left
  assert len(list(path.iterdir())) == 8, list(path.iterdir())

steps = kill_at_every_step(pathlib.Path({folder!r}), prepare, job, recover, every={every})
print(steps)
"""


@pytest.mark.slow
def test_killed_at_every_step(tmp_path):
  support = str(ROOT / "tests" / "support")
  code = KILLED.format(
    tests=str(Path(__file__).parent), support=support, folder=str(tmp_path / "x"), every=EVERY
  )
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", code]
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert int(done.stdout) > 40

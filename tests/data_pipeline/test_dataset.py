"""Dataset folders: written whole or not at all, read by us, TFDS and Grain, checked at open."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grain
import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipeline import hashing
from data_pipeline import records as records_module
from data_pipeline import writer as writer_module
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.records import ClipRecord, LatentRecord
from data_pipeline.shards import ShardReaders
from data_pipeline.writer import DatasetWriter

ROOT = Path(__file__).parents[2]
SPLITS = ("train", "train", "train", "held_out", "held_out_combination")


def make_latent(i, split=None, c=4, k=None, **fields):
  rng = np.random.default_rng(i)
  lengths = rng.integers(1, 9, i % 4)
  base = dict(
    id=f"clip/{i}",
    source=f"source/{i // 3}",
    licence="CC0-1.0",
    split=split or SPLITS[i % len(SPLITS)],
    start_frame=i,
    frames=5,
    height=16,
    width=8,
    crop=(0, 0, 0, 0),
    fps=8.0 + i % 2,
    latent=rng.standard_normal((1 + i % 3, 2, 1 + i % 2, c)).astype(ml_dtypes.bfloat16),
    captions=tuple(f"caption {n}" for n in lengths),
    text_ids=tuple(np.arange(n, dtype=np.int32) for n in lengths),
    text_states=tuple(np.ones((n, k), ml_dtypes.bfloat16) for n in lengths) if k else None,
    attributes="",
  )
  return LatentRecord(**(base | fields))


def make_clip(i):
  rng = np.random.default_rng(i)
  video = rng.integers(0, 256, (1 + i % 3, 8, 8, 3), dtype=np.uint8)
  return ClipRecord(
    id=f"clip/{i}",
    source="s",
    licence="",
    split="train",
    start_frame=0,
    fps=8.0,
    video=video,
    captions=("x",) * (i % 3),
    attributes="",
    truth=b"",
  )


def write(path, records, kind="latent", shard_bytes=4000, meta=None):
  with DatasetWriter(path, kind, name="tiny", shard_bytes=shard_bytes, meta=meta or {}) as writer:
    for record in records:
      writer.add(record)
  return writer


@pytest.fixture(scope="module")
def latents():
  return [make_latent(i) for i in range(60)]


@pytest.fixture
def folder(tmp_path, latents):
  write(tmp_path / "data", latents, meta={"vae": "abc"})
  return tmp_path / "data"


def test_reads_what_was_written(folder, latents):
  dataset = Dataset.open(folder, kind="latent")
  assert len(dataset) == 60 and dataset.meta == {"vae": "abc"} and dataset.latent_channels == 4
  assert dataset.splits == {"train": 36, "held_out": 12, "held_out_combination": 12}
  assert len(dataset.shards["train"]) > 1
  for row, record in enumerate(latents):
    found = dataset.read(row)
    assert found.id == record.id and found.captions == record.captions
    np.testing.assert_array_equal(found.latent, record.latent)
  with pytest.raises(IndexError, match="row=60 is not in 0..59"):
    dataset.read(60)


def test_index_says_what_the_records_say(folder, latents):
  dataset = Dataset.open(folder, kind="latent")
  index = dataset.index
  assert isinstance(index["f"], np.memmap)
  np.testing.assert_array_equal(
    np.stack([index[side] for side in "fhw"], axis=1), [r.latent.shape[:3] for r in latents]
  )
  np.testing.assert_array_equal(
    np.diff(index["caption_offsets"]), [len(r.captions) for r in latents]
  )
  tokens = [len(ids) for r in latents for ids in r.text_ids]
  np.testing.assert_array_equal(index["caption_tokens"], tokens)
  np.testing.assert_array_equal(index["fps"], [r.fps for r in latents])
  assert index["id"][7] == hashing.hash_text("clip/7")
  for split in dataset.splits:
    rows = dataset.indices(split)
    assert rows.dtype == np.int64
    assert rows.tolist() == [i for i, r in enumerate(latents) if r.split == split]
  with pytest.raises(BadInput, match="split='test' is unknown"):
    dataset.indices("test")


def test_tfds_and_grain_read_it(folder, latents):
  builder = tfds.builder_from_directory(folder)
  described = "posterior mean, normalised: mean 0, std <= 1 [1]"
  assert builder.info.features["latent"].doc.desc == described
  for split in ("train", "held_out"):
    source = builder.as_data_source(split=split)
    wanted = [r for r in latents if r.split == split]
    assert len(source) == len(wanted)
    for found, record in zip(source, wanted, strict=True):
      assert found["id"].decode() == record.id
      np.testing.assert_array_equal(found["latent"].view(ml_dtypes.bfloat16), record.latent)
  stream = grain.MapDataset.source(builder.as_data_source(split="train")).shuffle(seed=0)
  assert {item["id"].decode() for item in stream} == {r.id for r in latents if r.split == "train"}


def test_clips_have_an_index_of_pixels(tmp_path):
  write(tmp_path / "clips", [make_clip(i) for i in range(7)], kind="clip")
  dataset = Dataset.open(tmp_path / "clips", kind="clip")
  assert dataset.index["frames"].tolist() == [1, 2, 3, 1, 2, 3, 1]
  assert dataset.index["height"].tolist() == [8] * 7
  assert np.diff(dataset.index["caption_offsets"]).tolist() == [0, 1, 2, 0, 1, 2, 0]
  assert "caption_tokens" not in dataset.index and dataset.latent_channels is None
  np.testing.assert_array_equal(dataset.read(4).video, make_clip(4).video)


def test_latents_without_any_caption(tmp_path):
  write(tmp_path / "data", [make_latent(4 * i) for i in range(3)])
  dataset = Dataset.open(tmp_path / "data", kind="latent")
  assert dataset.index["caption_tokens"].shape == (0,)
  assert dataset.read(1).text_states is None and dataset.read(1).text_ids == ()


def test_reads_from_threads_and_after_pickling(folder, latents):
  dataset = Dataset.open(folder, kind="latent")
  dataset.read(0)
  copy = pickle.loads(pickle.dumps(dataset))
  assert copy.fingerprint == dataset.fingerprint and len(pickle.dumps(dataset)) < 2000
  rows = np.random.default_rng(0).integers(0, 60, 600)
  with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda row: copy.read(int(row)).id, rows))
  assert found == [latents[row].id for row in rows]


def test_fingerprint_covers_content_and_meta_but_not_sharding(tmp_path, latents):
  def fingerprint(name, records, **settings):
    return write(tmp_path / name, records, **settings).fingerprint

  first = fingerprint("a", latents)
  assert fingerprint("b", latents) == first
  assert fingerprint("c", latents, shard_bytes=10**9) == first
  assert fingerprint("d", latents, meta={"vae": "other"}) != first
  assert fingerprint("e", latents[::-1]) != first
  changed = make_latent(5, latent=-latents[5].latent)
  assert fingerprint("f", [*latents[:5], changed, *latents[6:]]) != first


def test_verify_sees_a_changed_index(folder):
  Dataset.open(folder, kind="latent").verify()
  column = np.load(folder / "index" / "fps.npy")
  np.save(folder / "index" / "fps.npy", column + 1)
  with pytest.raises(BadInput, match="the index or meta.json was changed"):
    Dataset.open(folder, kind="latent").verify()


def shard_of(folder, i=1):
  return sorted(folder.glob("tiny-train.array_record-*"))[i]


def test_missing_shard(folder):
  shard_of(folder).unlink()
  with pytest.raises(
    BadInput, match=r"tiny-train.*-00001-of-.* does not exist, the index says rec"
  ):
    Dataset.open(folder, kind="latent")


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_truncated_shard(folder, keep):
  path = shard_of(folder)
  path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
  with pytest.raises(
    BadInput, match=r"-00001-of-.* has records=0, the index says \d+ \(\d+ bytes, tr"
  ):
    Dataset.open(folder, kind="latent")


def test_shard_of_another_dataset(folder, tmp_path):
  write(tmp_path / "other", [make_latent(i, split="train") for i in range(2)])
  (other,) = (tmp_path / "other").glob("tiny-train.array_record-*")
  shard_of(folder).write_bytes(other.read_bytes())
  with pytest.raises(BadInput, match=r"has records=2, the index says"):
    Dataset.open(folder, kind="latent")


def test_flipped_byte(folder, latents):
  path, data = shard_of(folder, 0), bytearray(shard_of(folder, 0).read_bytes())
  at = bytes(data).index(latents[0].latent.tobytes())
  data[at] ^= 1
  path.write_bytes(data)
  dataset = Dataset.open(folder, kind="latent")
  with pytest.raises(BadInput, match=r"row=0 of .*-00000-of-.* is damaged .*hash mismatch"):
    dataset.read(0)


def swap(first, second):
  first.rename(first.with_name("aside"))
  second.rename(first)
  first.with_name("aside").rename(second)


def test_swapped_shards(folder, tmp_path, latents):
  first, second = shard_of(folder, 0), shard_of(folder, 1)
  counts = [size["records"] for size in Dataset.open(folder, kind="latent").shards["train"]]
  assert counts[0] == counts[1]  # so that opening sees nothing
  swap(first, second)
  dataset = Dataset.open(folder, kind="latent")
  text = r"row=0 of .*-00000-of-.* has id='clip/\d+' and is not the record that the index means"
  for _ in range(2):
    with pytest.raises(BadInput, match=text):
      dataset.read(0)
  swap(first, second)
  dataset = Dataset.open(folder, kind="latent")
  for row in range(len(latents)):
    dataset.read(row)


def test_a_row_in_another_place(folder):
  """Every record's id is compared, not only that of the first one read of a shard."""
  index = {name: np.load(folder / "index" / f"{name}.npy") for name in ("split", "shard", "row")}
  same = np.flatnonzero((index["split"] == 0) & (index["shard"] == 0))
  index["row"][same[-2:]] = index["row"][same[-2:][::-1]]
  np.save(folder / "index" / "row.npy", index["row"])
  dataset = Dataset.open(folder, kind="latent")
  dataset.read(int(same[0]))
  with pytest.raises(BadInput, match=f"row={same[-1]} of .* is not the record that the index"):
    dataset.read(int(same[-1]))


def test_a_shard_of_the_same_clips_encoded_otherwise(folder, tmp_path, latents):
  write(tmp_path / "other", [dataclasses.replace(r, latent=-r.latent) for r in latents])
  shard_of(folder).write_bytes(shard_of(tmp_path / "other").read_bytes())
  dataset = Dataset.open(folder, kind="latent")
  (row, *_) = np.flatnonzero((dataset.index["split"] == 0) & (dataset.index["shard"] == 1))
  with pytest.raises(BadInput, match=r"-00001-of-.* is not the record that the index means"):
    dataset.read(int(row))


@pytest.mark.parametrize("lengths", [b"\x09\0\0\0", b"\x01"])
def test_damaged_lengths(folder, monkeypatch, lengths):
  """Lengths of captions that do not fit their tokens, as a record of another layout may have."""
  parse = records_module.example.parse
  changed = lambda data: parse(data) | {records_module.LENGTHS: [lengths]}  # noqa: E731
  monkeypatch.setattr(records_module.example, "parse", changed)
  with pytest.raises(BadInput, match="row=0 of .* is damaged"):
    Dataset.open(folder, kind="latent").read(0)


def test_missing_or_wrong_column(folder):
  column = folder / "index" / "h.npy"
  np.save(column, np.load(column)[:-1])
  with pytest.raises(BadInput, match=r"h.npy has 59 items, the others call for 60"):
    Dataset.open(folder, kind="latent")
  column.write_bytes(b"\x93NUMPY nonsense")
  with pytest.raises(BadInput, match=r"h.npy is damaged"):
    Dataset.open(folder, kind="latent")
  column.unlink()
  with pytest.raises(BadInput, match=r"h.npy does not exist. Copy the dataset again"):
    Dataset.open(folder, kind="latent")


def test_refuses_what_is_no_dataset_of_the_kind(folder, tmp_path):
  with pytest.raises(BadInput, match="holds latent records, not clip. Give a dataset of sora data"):
    Dataset.open(folder, kind="clip")
  with pytest.raises(BadInput, match=r"meta.json does not exist, so .* is no dataset"):
    Dataset.open(tmp_path, kind="clip")
  with pytest.raises(BadInput, match=r"gs://bucket/x is not a folder of this machine.*Mount"):
    Dataset.open("gs://bucket/x", kind="clip")
  meta = json.loads((folder / "meta.json").read_text())
  (folder / "meta.json").write_text(json.dumps(meta | {"version": 99}))
  with pytest.raises(BadInput, match="version=99 of .* is not 1"):
    Dataset.open(folder, kind="latent")
  (folder / "meta.json").write_text("{")
  with pytest.raises(BadInput, match="meta.json is damaged"):
    Dataset.open(folder, kind="latent")


def test_refuses_bad_arguments(tmp_path):
  for kind, name, size in [("video", "x", 1), ("clip", "X-1", 1), ("clip", "x", 0)]:
    with pytest.raises(BadInput, match="is unusable. Use kind clip or latent"):
      DatasetWriter(tmp_path / "x", kind, name=name, shard_bytes=size, meta={})
  with pytest.raises(BadInput, match="Mount the bucket"):
    DatasetWriter("s3://bucket/x", "clip", name="x", shard_bytes=1, meta={})


@pytest.mark.parametrize(
  "records, text",
  [
    ([], "would hold no records"),
    ([make_clip(0)], "ClipRecord is no latent record"),
    ([make_latent(1), make_latent(1)], "records 0 and 1, counted from 0, have the same id"),
    ([make_latent(1), make_latent(2, c=5)], "latent_channels=5 of record 'clip/2' is not the 4"),
    (
      [make_latent(1, k=6), make_latent(2)],
      "text_state_width=None of record 'clip/2' is not the 6",
    ),
    ([make_latent(1, fps=-1.0)], "fps=-1.0 is no rate"),
  ],
)
def test_a_refused_dataset_leaves_nothing(tmp_path, records, text):
  with pytest.raises(BadInput, match=text):
    write(tmp_path / "data", records)
  assert list(tmp_path.iterdir()) == []


def test_does_not_write_over_anything(folder, latents, tmp_path):
  with pytest.raises(BadInput, match="is not empty. Give another path, or remove"):
    write(folder, latents)
  assert len(Dataset.open(folder, kind="latent")) == 60
  (tmp_path / "file").write_text("x")
  with pytest.raises(BadInput, match="file is not empty|cannot be written"):
    write(tmp_path / "file", latents)
  with pytest.raises(BadInput, match="cannot be written .Not a directory"):
    write(tmp_path / "file" / "below", latents)


def test_two_writers_of_one_path(tmp_path, latents):
  settings = dict(name="tiny", shard_bytes=4000, meta={})
  with DatasetWriter(tmp_path / "data", "latent", **settings) as first:
    first.add(latents[0])
    with pytest.raises(BadInput, match="is being written by another process"):
      write(tmp_path / "data", latents)
    first.add(latents[1])
  assert len(Dataset.open(tmp_path / "data", kind="latent")) == 2


def test_a_writer_that_waited_sees_the_finished_dataset(tmp_path, latents, monkeypatch):
  """Another writer finishes between the look at the path and the lock."""
  late = DatasetWriter(tmp_path / "data", "latent", name="tiny", shard_bytes=4000, meta={})
  claim = late._claim
  monkeypatch.setattr(late, "_claim", lambda: (write(tmp_path / "data", latents), claim()))
  with pytest.raises(BadInput, match="data is not empty"), late:
    pass
  assert [path.name for path in tmp_path.iterdir()] == ["data"]
  assert len(Dataset.open(tmp_path / "data", kind="latent")) == len(latents)


def test_a_lock_that_its_holder_removed_is_none(tmp_path, monkeypatch, latents):
  flock, path = writer_module.fcntl.flock, tmp_path / ".data.lock"
  calls = []

  def removed_before_the_first(file, how):
    if not calls:
      path.unlink()
    calls.append(path.exists())
    flock(file, how)

  monkeypatch.setattr(writer_module.fcntl, "flock", removed_before_the_first)
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
from test_dataset import DatasetWriter, make_latent
with DatasetWriter({path!r}, "latent", name="tiny", shard_bytes=4000, meta={{}}) as writer:
  for i in range(10**6):
    writer.add(make_latent(i))
    if i == 30:
      print("ready", flush=True)
"""


def test_killed_writer_leaves_no_dataset_and_the_next_starts_clean(tmp_path, latents):
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


FEW_DESCRIPTORS = """
import os, resource, sys
sys.path.insert(0, {tests!r})
from concurrent.futures import ThreadPoolExecutor
from test_dataset import Dataset, np
def limit(descriptors):
  resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, 200))

def open_with(descriptors):
  limit(descriptors)
  try:
    return Dataset.open({path!r}, kind="latent")
  except OSError as error:  # and not BadInput, which would blame the data
    assert "Too many open files" in str(error), error

used = lambda: len(os.listdir("/proc/self/fd"))
before = used()
opened = [open_with(before + more) is not None for more in range(-3, 40, 3)]
assert not opened[0] and opened[-1], opened
dataset, other = open_with(200), open_with(200)
assert used() <= before + 2 * len(dataset.index), "opening a dataset holds shards"
rows = np.random.default_rng(0).permutation(np.tile(np.arange(len(dataset)), 4))
with ThreadPoolExecutor(8) as pool:
  names = list(pool.map(lambda row: dataset.read(int(row)).id, rows))
assert names == [f"clip/{{row}}" for row in rows] and used() > before + 64
limit(3)
try:
  other.read(0)
except OSError as error:
  assert "Too many open files" in str(error), error
else:
  raise SystemExit("read a shard without a descriptor")
print("done")
"""


def test_more_shards_than_file_descriptors(tmp_path):
  path = tmp_path / "data"
  write(path, [make_latent(i, split="train") for i in range(300)], shard_bytes=1)
  code = FEW_DESCRIPTORS.format(tests=str(Path(__file__).parent), path=str(path))
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  process = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, env=environment
  )
  assert process.stdout == "done\n", process.stderr


def test_lends_a_reader_to_one_thread_at_a_time(folder):
  """More shards and threads than readers kept: none is closed while somebody has it."""
  paths = sorted(folder.glob("*.array_record-*"))
  readers, lent = ShardReaders(kept=2), set()

  def read(i):
    with readers.lend(paths[i % len(paths)]) as reader:
      assert id(reader) not in lent
      lent.add(id(reader))
      time.sleep(0.001)
      (data,) = reader.read([0])
      lent.remove(id(reader))
    return data

  with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(read, range(20 * len(paths))))
  assert len(set(found)) == len(paths) > 4
  assert found == found[: len(paths)] * 20
  assert len(readers._idle) == 2
  with pytest.raises(RuntimeError, match="in the block"), readers.lend(paths[0]) as reader:
    raise RuntimeError("in the block")
  assert not reader.is_open() and len(readers._idle) <= 2


def test_reads_a_thousand_latents_a_second(tmp_path):
  write(tmp_path / "data", [make_latent(i) for i in range(400)], shard_bytes=10**9)
  dataset = Dataset.open(tmp_path / "data", kind="latent")
  rates = []
  for _ in range(3):
    begin = time.process_time()
    for row in range(400):
      dataset.read(row)
    rates.append(400 / (time.process_time() - begin))
  assert max(rates) > 1000


def test_looks_up_a_text_as_the_other_counters():
  """`hash_text` in Python's integers is `hash64` of the length and then of every eight bytes."""
  for text in ("", "a", "clip/17", "physworld/seed0/000123", "a\0\0\0\0\0\0\0", "ÿ" * 40):
    data = text.encode()
    state = hashing.hash64(len(data))
    for word in np.frombuffer(data + b"\0" * (-len(data) % 8), "<u8"):
      state = hashing.hash64(state, word)
    assert hashing.hash_text(text) == int(state)
  assert hashing.hash_text("clip/7") == GOLDEN_HASH


GOLDEN_HASH = 8120459205164871020


def test_looking_at_the_identity_costs_a_tenth_of_a_read(tmp_path, capsys):
  shape, name = (5, 16, 20, 16), "physworld/seed0/000123"  # 51 kB
  latent = np.random.default_rng(0).standard_normal(shape).astype(ml_dtypes.bfloat16)
  write(tmp_path / "data", [make_latent(1, split="train", id=name, latent=latent)])
  dataset = Dataset.open(tmp_path / "data", kind="latent")
  dataset.read(0)
  path = dataset.shard_path("train", 0)

  def seconds(call):  # the best of many: other programs share the machine
    times = []
    for _ in range(200):
      begin = time.perf_counter()
      for _ in range(10):
        call()
      times.append(time.perf_counter() - begin)
    return min(times) / 10

  read = seconds(lambda: dataset.read(0))
  check = seconds(lambda: dataset._check_identity(0, path, name, b""))
  with capsys.disabled():
    print(f"\nread {1e6 * read:.0f} us, of which identity {1e6 * check:.1f} us")
  assert check < 0.1 * read

"""Dataset folders: read by us, TFDS and Grain, checked at open and at each read."""

import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import grain
import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipeline import hashing, stored
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput


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
  assert dataset.tokenizers == ("words", "bytes")
  for name in dataset.tokenizers:
    tokens = [len(ids) for r in latents for ids in r.text_ids[name]]
    np.testing.assert_array_equal(dataset.caption_tokens(name), tokens)
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
      for name, ids in record.text_ids.items():
        np.testing.assert_array_equal(found["text_ids"][name], np.concatenate([[], *ids]))
  stream = grain.MapDataset.source(builder.as_data_source(split="train")).shuffle(seed=0)
  assert {item["id"].decode() for item in stream} == {r.id for r in latents if r.split == "train"}


def test_clips_have_an_index_of_pixels(tmp_path, make_clip, write):
  write(tmp_path / "clips", [make_clip(i) for i in range(7)], kind="clip")
  dataset = Dataset.open(tmp_path / "clips", kind="clip")
  assert dataset.index["frames"].tolist() == [1, 2, 3, 1, 2, 3, 1]
  assert dataset.index["height"].tolist() == [8] * 7
  assert np.diff(dataset.index["caption_offsets"]).tolist() == [0, 1, 2, 0, 1, 2, 0]
  assert not [name for name in dataset.index if "tokens" in name]
  assert dataset.tokenizers == () and dataset.latent_channels is None
  np.testing.assert_array_equal(dataset.read(4).video, make_clip(4).video)


def test_latents_without_any_caption(tmp_path, make_latent, write):
  write(tmp_path / "data", [make_latent(4 * i) for i in range(3)])
  dataset = Dataset.open(tmp_path / "data", kind="latent")
  assert dataset.caption_tokens("words").shape == (0,)
  assert dataset.read(1).text_states == {}
  assert dataset.read(1).text_ids == {"words": (), "bytes": ()}


def test_reads_from_threads_and_after_pickling(folder, latents):
  dataset = Dataset.open(folder, kind="latent")
  dataset.read(0)
  copy = pickle.loads(pickle.dumps(dataset))
  assert copy.fingerprint == dataset.fingerprint and len(pickle.dumps(dataset)) < 2000
  rows = np.random.default_rng(0).integers(0, 60, 600)
  with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda row: copy.read(int(row)).id, rows))
  assert found == [latents[row].id for row in rows]


def test_reads_a_thousand_latents_a_second(tmp_path, make_latent, write):
  write(tmp_path / "data", [make_latent(i) for i in range(400)], shard_bytes=10**9)
  dataset = Dataset.open(tmp_path / "data", kind="latent")
  rates = []
  for _ in range(3):
    begin = time.process_time()
    for row in range(400):
      dataset.read(row)
    rates.append(400 / (time.process_time() - begin))
  assert max(rates) > 1000


def test_fingerprint_covers_content_and_meta_but_not_sharding(
  tmp_path, latents, make_latent, write
):
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


def test_missing_shard(folder, shard_of):
  shard_of(folder).unlink()
  with pytest.raises(
    BadInput, match=r"tiny-train.*-00001-of-.* does not exist, the index says rec"
  ):
    Dataset.open(folder, kind="latent")


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_truncated_shard(folder, keep, shard_of):
  path = shard_of(folder)
  path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
  with pytest.raises(
    BadInput, match=r"-00001-of-.* has records=0, the index says \d+ \(\d+ bytes, tr"
  ):
    Dataset.open(folder, kind="latent")


def test_shard_of_another_dataset(folder, tmp_path, make_latent, write, shard_of):
  write(tmp_path / "other", [make_latent(i, split="train") for i in range(2)])
  (other,) = (tmp_path / "other").glob("tiny-train.array_record-*")
  shard_of(folder).write_bytes(other.read_bytes())
  with pytest.raises(BadInput, match=r"has records=2, the index says"):
    Dataset.open(folder, kind="latent")


def test_flipped_byte(folder, latents, shard_of):
  path, data = shard_of(folder, 0), bytearray(shard_of(folder, 0).read_bytes())
  at = bytes(data).index(latents[0].latent.tobytes())
  data[at] ^= 1
  path.write_bytes(data)
  dataset = Dataset.open(folder, kind="latent")
  with pytest.raises(BadInput, match=r"row=0 of .*-00000-of-.* is damaged .*hash mismatch"):
    dataset.read(0)


@pytest.mark.parametrize("lengths", [b"\x09\0\0\0", b"\x01"])
def test_damaged_lengths(folder, monkeypatch, lengths):
  """Lengths of captions that do not fit their tokens, as a record of another layout may have."""
  parse = stored.example.parse
  changed = lambda data: parse(data) | {f"{stored.LENGTHS}/words": [lengths]}  # noqa: E731
  monkeypatch.setattr(stored.example, "parse", changed)
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
  with pytest.raises(BadInput, match="version=99 of .* is not 3"):
    Dataset.open(folder, kind="latent")
  (folder / "meta.json").write_text("{")
  with pytest.raises(BadInput, match="meta.json is damaged"):
    Dataset.open(folder, kind="latent")


@pytest.mark.parametrize(
  "change",
  [
    {"name": "../../other/latents"},
    {"tokenizers": ["../../../etc"]},
    {"meta": {"texts": {"/etc": {}}}},
  ],
)
def test_no_name_leads_out_of_the_folder(folder, change):
  meta = json.loads((folder / "meta.json").read_text())
  (folder / "meta.json").write_text(json.dumps(meta | change))
  with pytest.raises(BadInput, match=r"meta.json names '.*etc.*|meta.json names '\.\./\.\."):
    Dataset.open(folder, kind="latent")

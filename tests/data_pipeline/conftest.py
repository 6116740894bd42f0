"""What tests of dataset folders share: small records, and folders of them."""

import ml_dtypes
import numpy as np
import pytest

from data_pipeline.records import ClipRecord, LatentRecord
from data_pipeline.writer import DatasetWriter

SPLITS = ("train", "train", "train", "held_out", "held_out_combination")


def latent_of(i, split=None, c=4, k=None, **fields):
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
    text_ids={
      "words": tuple(np.arange(n, dtype=np.int32) for n in lengths),
      "bytes": tuple(np.arange(5 * n, dtype=np.int32) for n in lengths),
    },
    text_states={"words": tuple(np.ones((n, k), ml_dtypes.bfloat16) for n in lengths)}
    if k and len(lengths)
    else {},
    attributes="",
  )
  return LatentRecord(**(base | fields))


def clip_of(i):
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


def write_folder(path, records, kind="latent", shard_bytes=4000, meta=None):
  with DatasetWriter(path, kind, name="tiny", shard_bytes=shard_bytes, meta=meta or {}) as writer:
    for record in records:
      writer.add(record)
  return writer


def train_shard(folder, i=1):
  return sorted(folder.glob("tiny-train.array_record-*"))[i]


@pytest.fixture(scope="session")
def make_latent():
  """Makes the latent record of a number: `make_latent(i, split=None, c=4, k=None, **fields)`."""
  return latent_of


@pytest.fixture(scope="session")
def make_clip():
  """Makes the clip record of a number: `make_clip(i)`."""
  return clip_of


@pytest.fixture(scope="session")
def write():
  """Writes a dataset folder: `write(path, records, …)` -> its writer."""
  return write_folder


@pytest.fixture(scope="session")
def shard_of():
  """Gives the path of a train shard, the second if not told: `shard_of(folder, i=1)`."""
  return train_shard


@pytest.fixture(scope="module")
def latents():
  return [latent_of(i) for i in range(60)]


@pytest.fixture
def folder(tmp_path, latents):
  write_folder(tmp_path / "data", latents, meta={"vae": "abc"})
  return tmp_path / "data"

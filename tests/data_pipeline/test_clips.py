"""Windows for the VAE: every clip once an epoch, cut where the hash says, and resumed by number."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from scipy import stats

from data_pipeline.clips import clip_batches
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.records import ClipRecord
from data_pipeline.video_writer import encode_video
from data_pipeline.writer import DatasetWriter

SIZES = [(9, 16, 16), (12, 16, 20), (9, 20, 16), (5, 16, 16), (9, 12, 16), (30, 24, 24)]
CLIPS = 20  # 18 of them in train, of which 13 hold the window
WINDOW = dict(frames=9, height=16, width=16)


def coordinates(frames, height, width):
  """A clip whose pixels say where they are: (frame, row, column)."""
  axes = [np.arange(n, dtype=np.uint8) for n in (frames, height, width)]
  return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  path = tmp_path_factory.mktemp("clips") / "data"
  with DatasetWriter(path, "clip", name="tiny", shard_bytes=50_000, meta={}) as writer:
    for i in range(CLIPS):
      writer.add(
        ClipRecord(
          id=str(i),
          source=str(i),
          licence="",
          split="train" if i % 8 != 7 else "held_out",
          start_frame=0,
          fps=8.0,
          video=coordinates(*SIZES[i % len(SIZES)]),
          captions=(),
          attributes="",
          truth=b"",
        )
      )
  return Dataset.open(path, kind="clip")


def stream(dataset, *, rows=4, seed=0, split="train", **settings):
  return clip_batches(dataset, split=split, rows=rows, seed=seed, **(WINDOW | settings))


def test_encoded_clips_give_the_same_windows(dataset, tmp_path):
  with DatasetWriter(tmp_path / "data", "clip", name="tiny", shard_bytes=50_000, meta={}) as writer:
    for row in range(CLIPS):
      record = dataset.read(row)
      _, height, width, _ = record.video.shape
      size = dict(width=width, height=height, fps=8.0)
      video = encode_video(record.video, codec="lossless", **size)
      writer.add(dataclasses.replace(record, video=video))
  encoded = Dataset.open(tmp_path / "data", kind="clip")
  assert encoded.storage == "encoded" and dataset.storage == "raw"
  raw, found = take(stream(dataset), 5), take(stream(encoded), 5)
  for name in raw:
    np.testing.assert_array_equal(raw[name], found[name])


def take(batches, count):
  found = [next(batches) for _ in range(count)]
  batches.close()
  return {key: np.concatenate([batch[key] for batch in found]) for key in found[0]}


def fitting(dataset):
  index, rows = dataset.index, dataset.indices("train")
  sides = [index[name][rows] >= side for name, side in WINDOW.items()]
  return rows[np.logical_and.reduce(sides)]


def test_batch_has_its_shape_and_dtype(dataset):
  batches = stream(dataset)
  batch = next(batches)
  batches.close()
  assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
    "video": ("uint8", (4, 9, 16, 16, 3)),
    "draw": ("uint32", (4, 2)),
    "record": ("int64", (4,)),
  }


def test_every_clip_once_an_epoch(dataset):
  rows = fitting(dataset)
  batches = stream(dataset, rows=4)
  assert batches.clips == len(rows) == 13
  seen = take(batches, 13)["record"].reshape(4, 13)  # 4 epochs in 13 batches of 4
  assert all(sorted(epoch) == rows.tolist() for epoch in seen)
  assert len({tuple(epoch) for epoch in seen}) == 4


def test_windows_are_whole_and_lie_in_their_clip(dataset):
  found = take(stream(dataset), 13)
  for video, row in zip(found["video"].astype(int), found["record"], strict=True):
    corner = video[0, 0, 0]
    np.testing.assert_array_equal(video - corner, coordinates(9, 16, 16))
    sides = [int(dataset.index[name][row]) for name in WINDOW]
    assert (video[-1, -1, -1] < sides).all()


def test_windows_fall_everywhere_alike(dataset):
  found = take(stream(dataset, rows=52), 40)
  big = dataset.index["frames"][found["record"]] == 30
  corners = found["video"][big][:, 0, 0, 0].astype(int)
  assert len(corners) > 300
  for axis, choices in enumerate((22, 9, 9)):
    counts = np.bincount(corners[:, axis], minlength=choices)
    assert len(counts) == choices
    assert stats.chisquare(counts).pvalue > 1e-3
  assert abs(np.corrcoef(corners.T)[np.triu_indices(3, 1)]).max() < 0.2


def test_resumes_from_a_cursor(dataset):
  whole = stream(dataset, rows=4)
  begun = [next(whole) for _ in range(5)]
  cursor = json.loads(json.dumps(whole.cursor))
  assert cursor == {"stage": 0, "epoch": 1, "window": 0, "bin": 7, "step": 5}
  rest = take(whole, 6)
  again = take(stream(dataset, rows=4, cursor=cursor, threads=1, prefetch=1), 6)
  for key in rest:
    np.testing.assert_array_equal(rest[key], again[key])
  places = np.concatenate([batch["draw"] for batch in begun] + [rest["draw"]])
  np.testing.assert_array_equal(places[:, 1], np.arange(44))
  assert not places[:, 0].any()


def test_goes_on_after_four_billion_windows(dataset):
  step = 2**33 // 4 + 1
  place = 4 * step
  cursor = dict(stage=0, epoch=place // 13, window=0, bin=place % 13, step=step)
  found = take(stream(dataset, cursor=cursor), 1)
  assert found["draw"].tolist() == [[2, 4 + i] for i in range(4)]


def test_ranks_share_a_batch(dataset):
  whole = take(stream(dataset, rows=4), 6)
  shares = [take(stream(dataset, rows=4, rank=rank, ranks=2), 6) for rank in range(2)]
  for key, value in whole.items():
    joined = np.stack([share[key].reshape(6, 2, *value.shape[1:]) for share in shares], axis=1)
    np.testing.assert_array_equal(joined.reshape(value.shape), value)


def test_seed_and_stage_make_another_stream(dataset):
  settings = [{}, {"seed": 1}, {"stage": 1}, {"rows": 2}, {"split": "held_out"}, {"frames": 5}]
  streams = [stream(dataset, **one) for one in settings]
  assert len({one.fingerprint for one in streams}) == len(settings)
  assert stream(dataset).fingerprint == streams[0].fingerprint
  first, seeded, staged = (take(one, 4)["record"].tolist() for one in streams[:3])
  assert first != seeded != staged != first
  for one in streams[3:]:
    one.close()


def test_reports_what_is_left_out(dataset, caplog):
  with caplog.at_level(logging.WARNING):
    stream(dataset).close()
  message = "clips: 5 of 18 clips of split train are shorter or smaller than 9 frames of 16x16"
  assert [record.message[: len(message)] for record in caplog.records] == [message]
  caplog.clear()
  with caplog.at_level(logging.WARNING):
    stream(dataset, frames=5, height=12).close()
  assert not caplog.records


def test_refuses_what_does_not_fit(dataset):
  with pytest.raises(BadInput, match=r"none of the 18 clips of split='train' .*31 frames of 16x16"):
    stream(dataset, frames=31)
  with pytest.raises(BadInput, match="none of the 0 clips of split='held_out_combination'"):
    stream(dataset, split="held_out_combination")
  with pytest.raises(BadInput, match="rows=0 is below 1"):
    stream(dataset, rows=0)
  with pytest.raises(BadInput, match="ranks=3 does not divide rows=4"):
    stream(dataset, ranks=3)


@pytest.mark.parametrize(
  "change", [{"epoch": 0}, {"bin": 6}, {"step": -1}, {"stage": 1}, {"window": 1}, {"extra": 0}]
)
def test_refuses_a_foreign_cursor(dataset, change):
  cursor = {"stage": 0, "epoch": 1, "window": 0, "bin": 7, "step": 5} | change
  with pytest.raises(BadInput, match="is not a place in a stream of 13 clips at rows=4 in stage 0"):
    stream(dataset, cursor=cursor)

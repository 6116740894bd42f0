"""`sora data` on a film of two shots: fetched by pip from a folder, cut, captioned. No network."""

import json

import numpy as np
import pytest

from data_pipeline.dataset import Dataset
from data_pipeline.video import as_frames
from data_pipeline.video_writer import encode_video
from experiments import film as experiment
from sora_jax.commands.data import build_film

FRAMES, FPS = 36, 12  # of each shot


@pytest.fixture(scope="module")
def reel() -> bytes:
  rng = np.random.default_rng(0)
  shots = [rng.integers(0, 255, (8, 12, 3)), rng.integers(0, 90, (8, 12, 3))]
  frames = (
    np.roll(np.kron(shot, np.ones((12, 12, 1))), 2 * i, 1).astype(np.uint8)
    for shot in shots
    for i in range(FRAMES)
  )
  return encode_video(frames, width=144, height=96, fps=FPS, codec="h264", quality=10).data


def test_a_film_becomes_captioned_clips(make_package, use_index, reel, tmp_path):
  package = make_package(reel)
  use_index(package.path.parent)
  sha256 = package.film["sha256"]
  facts = dict(film="Reel", attribution="(c) us", licence="CC-BY-3.0", sha256=sha256)
  spans = [
    dict(start_seconds=0, end_seconds=3, captions=["First.", "The first of two."]),
    dict(start_seconds=3, end_seconds=6, captions=["Second."]),
  ]
  captions = tmp_path / "captions.jsonl"
  captions.write_text("\n".join(map(json.dumps, (facts, *spans))))
  config = dict(film=package.film | {"captions": str(captions)})
  config["curate"] = experiment.get_config().curate.to_dict()
  config["curate"]["scores"]["text"]["measure"] = False
  first = build_film(config, tmp_path / "clips")
  dataset = Dataset.open(tmp_path / "clips", kind="clip")
  records = sorted(map(dataset.read, range(len(dataset))), key=lambda record: record.start_frame)
  assert [record.captions for record in records] == [("First.", "The first of two."), ("Second.",)]
  assert {(r.source, r.licence, r.split, r.fps) for r in records} == {
    ("reel.mp4", "CC-BY-3.0: Reel, (c) us", "train", 12.0)
  }
  assert all(as_frames(record.video).shape[1:] == (85, 128, 3) for record in records)
  use_index(tmp_path)  # no package: what is there is enough
  assert build_film(config, tmp_path / "clips")["fingerprint"] == first["fingerprint"]

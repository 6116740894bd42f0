"""Encoding as a job: renditions of a config, exactly once whatever kills it, on any devices."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from data_pipeline.dataset import Dataset
from data_pipeline.derived import read_derived
from data_pipeline.records import ClipRecord
from data_pipeline.rendering import render
from data_pipeline.renditions import Rule, name_rendition, plan_renditions
from data_pipeline.video_writer import encode_video
from data_pipeline.writer import DatasetWriter
from sora_jax.commands import encode_progress
from sora_jax.commands.encode import encode_dataset
from sora_jax.commands.encode_parts import Captions, order_as_batches_fill
from sora_jax.generate.encode import encode_clips
from sora_jax.generate.programs import plan_batch
from sora_jax.models.frozen_vae import load_frozen_vae
from sora_jax.models.text.registry import load_text_encoder
from sora_jax.parallel.heartbeat import free_port
from sora_jax.parallel.hosts import VARIABLES

CLIPS = 60
CONFIG = """
from ml_collections import ConfigDict

def get_config(arg="encode"):
  c = ConfigDict()
  c.encode = dict(renditions=dict(
    small=dict(pixels=1024, fps=12.0, max_seconds=1.0, min_seconds=0.2), stills=dict(images=2)))
  return c.lock()
"""


def write_clips(path, shapes, *, storage="raw"):
  """Clips of (frames, height, width), a third of them held out."""
  rng = np.random.default_rng(0)
  facts: dict[str, Any] = dict(licence="CC0-1.0", fps=24.0, truth=b"", attributes="{}")
  with DatasetWriter(path, "clip", name="clips", shard_bytes=2**24, meta={}) as writer:
    for i, shape in enumerate(shapes):
      video: Any = rng.integers(0, 256, (*shape, 3), np.uint8)
      if storage == "encoded":
        settings: dict[str, Any] = dict(width=shape[2], height=shape[1], fps=Fraction(24))
        video = encode_video(video, **settings, codec="lossless")
      split = ("train", "train", "held_out")[i % 3]
      facts |= dict(split=split, start_frame=100 * i, captions=(f"a {i}", "b")[: 1 + i % 2])
      writer.add(ClipRecord(id=f"clip/{i}", source=f"s{i}", video=video, **facts))
  return Dataset.open(path, kind="clip")


@pytest.fixture(scope="module")
def made(tmp_path_factory, draw_vae):
  """A folder with clips of three shapes and a VAE."""
  folder = tmp_path_factory.mktemp("job")
  shapes = [((9, 32, 32), (5, 32, 48), (1, 48, 32))[i % 5 % 3] for i in range(CLIPS)]
  write_clips(folder / "clips", shapes)
  draw_vae(folder / "vae", 0)
  return folder


def open_made(folder):
  """Its VAE and clips."""
  return load_frozen_vae(folder / "vae/frozen/vae"), Dataset.open(folder / "clips", kind="clip")


def words(folder, out, clips=None):
  data = clips or folder / "clips"
  return f"--workdir={folder / 'vae'}", "--text=bytes", f"--data={data}", f"--out={out}"


@pytest.fixture(scope="module")
def whole(made):
  """The latents of `made`, encoded without trouble on one device."""
  vae, clips = open_made(made)
  settings = dict(rows=64, patch_side=2, captions=0, shard_bytes=SHARD)
  return encode_dataset(clips, vae, [load_text_encoder("bytes")], made / "whole", **settings)


SHARD = 600  # bytes: parts of two or three clips


def read_all(dataset):
  return [dataset.read(row) for row in range(len(dataset))]


def assert_same(found, expected):
  assert found.fingerprint == expected.fingerprint and found.splits == expected.splits
  for one, other in zip(read_all(found), read_all(expected), strict=True):
    assert one.id == other.id
    np.testing.assert_array_equal(one.latent.view(np.uint16), other.latent.view(np.uint16))


@pytest.mark.slow
def test_a_killed_job_redoes_only_what_is_missing_on_other_machines(
  made, whole, start, tmp_path, monkeypatch
):
  """SIGKILL in the middle; two processes of two devices go on: every record once, the same bits."""
  argv = ("encode", *words(made, tmp_path / "out"), f"--shard-bytes={SHARD}")
  process, parts = start(*argv), tmp_path / ".out.parts"
  end = time.monotonic() + 120
  while not parts.exists() or len(finished(parts)) < 3:
    assert process._process.poll() is None and time.monotonic() < end, process.log()
    time.sleep(0.001)
  assert process.signal(signal.SIGKILL) == -signal.SIGKILL
  before = finished(parts)
  assert not (tmp_path / "out").exists() and 3 <= len(before)
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
  result = run_together(argv)
  assert (result["clips"], result["renditions"]) == (CLIPS, CLIPS)
  assert 0 < result["encoded"] < CLIPS
  stats = [path.stat() for path in (tmp_path / "out").iterdir()]
  after = {(stat.st_ino, stat.st_mtime_ns) for stat in stats}
  assert set(before.values()) <= after  # the files are those of before
  assert_same(Dataset.open(tmp_path / "out", kind="latent"), whole)
  assert not parts.exists() and read_derived(made / "clips")


def finished(parts) -> dict[str, tuple[int, int]]:
  """Inode and time of the shards of parts that are written whole."""
  shards = [path for path in parts.glob("parts-*/*/*") if path.parent.name[:4] != "tmp-"]
  stats = {str(path): path.stat() for path in shards if path.name != "index.npz"}
  return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


def run_together(argv) -> dict:
  """What the first of two processes of one job says; the other one says nothing."""
  words = [sys.executable, "-m", "sora_jax", *map(str, argv)]
  address = f"127.0.0.1:{free_port()}"
  pipes: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  both = []
  for number in ("0", "1"):
    variables = dict(zip(VARIABLES, (address, "2", number), strict=True))
    both.append(subprocess.Popen(words, env=os.environ | variables, **pipes))
  outputs = [process.communicate(timeout=240) for process in both]
  assert [process.returncode for process in both] == [0, 0], outputs
  assert all("continues, " in err for _, err in outputs)
  assert not outputs[1][0]
  return json.loads(outputs[0][0].splitlines()[-1])


def test_parts_and_order_are_the_datasets(whole, made):
  """Parts do not show in what is read; batches of one shape stand together."""
  assert sum(map(len, whole.shards.values())) > 10
  assert whole.splits == {"train": 40, "held_out": 20}
  vae, clips = open_made(made)
  pairs = [(record, record.video) for record in map(clips.read, range(len(clips)))]
  expected = list(encode_clips(vae, pairs, rows=64, patch_side=2))
  for split in whole.splits:
    found = [whole.read(row) for row in whole.indices(split).tolist()]
    wanted = [item for item in expected if item.key.split == split]
    assert [record.id for record in found] == [item.key.id for item in wanted]
    for record, item in zip(found, wanted, strict=True):
      assert record.start_frame == item.key.start_frame and record.captions == item.key.captions
      assert (record.frames, record.height, record.width) == item.shape
      latent = item.latent.astype(record.latent.dtype)
      np.testing.assert_array_equal(record.latent.view(np.uint16), latent.view(np.uint16))


def test_order_is_that_in_which_batches_fill():
  """Against the loop that it stands for."""
  rng = np.random.default_rng(0)
  shapes = np.array([(9, 256, 256), (1, 64, 64), (41, 512, 512), (5, 128, 640)])
  shapes = shapes[rng.integers(0, 4, 300)]
  waiting, expected = {}, []
  for i, shape in enumerate(map(tuple, shapes.tolist())):
    waiting.setdefault(shape, []).append(i)
    if len(waiting[shape]) == plan_batch(shape, 4, 64)[0]:
      expected += waiting.pop(shape)
  expected += [i for group in waiting.values() for i in group]
  assert order_as_batches_fill(shapes, 4, 64).tolist() == expected


@pytest.mark.parametrize("storage", ["raw", "encoded"])
def test_renditions_of_a_config(sora, made, tmp_path, storage):
  shapes = [(30, 48, 64), (9, 32, 32), (30, 20, 100), (1, 64, 64)]
  clips = write_clips(tmp_path / "clips", shapes, storage=storage)
  (tmp_path / "config.py").write_text(CONFIG)
  argv = words(made, tmp_path / "out", tmp_path / "clips")
  config = f"--config={tmp_path / 'config.py'}"
  done = sora("encode", *argv, config, "--config.encode.renditions.small.min_seconds=0.4")
  found = read_all(Dataset.open(tmp_path / "out", kind="latent"))
  assert done.result["renditions"] == done.result["encoded"] == len(found)
  assert done.result["clips"] == 4 and done.result["clips_per_second"] > 0
  small = Rule(pixels=1024, fps=12.0, max_seconds=1.0, min_seconds=0.4)
  rules = dict(small=small, stills=Rule(images=2))
  table = plan_renditions(clips.index, rules, time_factor=4, side=16)
  vae = load_frozen_vae(made / "vae" / "frozen" / "vae")
  by_id = {record.id: record for record in found}
  assert len(by_id) == len(table) == len(found)
  for one in table:
    clip = clips.read(int(one["row"]))
    record = by_id[name_rendition(clip.id, one)]
    (pixels,) = render(clip.video, one, [int(one["frames"])])
    expected = np.asarray(vae.encode(pixels[None]))[0]
    np.testing.assert_allclose(record.latent.astype(np.float32), expected, rtol=0.01, atol=1e-3)
    assert (record.frames, record.height, record.width) == pixels.shape[:3]
    assert record.start_frame == clip.start_frame + one["start"] and record.fps == one["fps"]
    assert record.captions == clip.captions and record.source == clip.source
  assert by_id["clip/0@32x32x9@12+0~43x32"].crop == (0, 5, 0, 6)
  assert read_derived(tmp_path / "clips") == [tmp_path / "out"]
  meta = Dataset.open(tmp_path / "out", kind="latent").meta
  assert meta["renditions"]["stills"] == dataclasses.asdict(Rule(images=2))
  assert (meta["clips"], meta["vae"]) == (clips.fingerprint, vae.fingerprint)
  again = sora("encode", *argv, config)
  assert again.code == 2 and "holds latents of other renditions" in again.err


def test_more_sizes_than_programs_are_cut_into_tiles(sora, made, tmp_path):
  shapes = [(1, 16, 16 * (i + 1)) for i in range(65)]  # a program for each is too many
  clips = write_clips(tmp_path / "clips", shapes)
  assert sora("encode", *words(made, tmp_path / "out", tmp_path / "clips")).result["clips"] == 65
  vae = load_frozen_vae(made / "vae" / "frozen" / "vae")
  videos = {record.id: record.video for record in read_all(clips)}
  for record in read_all(Dataset.open(tmp_path / "out", kind="latent"))[::16]:
    expected = np.asarray(vae.encode(videos[record.id][None]))[0]
    np.testing.assert_allclose(record.latent.astype(np.float32), expected, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize(
  "argv, text",
  [
    (["--mesh=9"], "--mesh=9 is not in 0.."),
    (["--shard-bytes=0"], "--shard-bytes: 0 must be a whole number in [1,"),
    (["--config=experiments/demo.py"], "the config has no encode.renditions. Add encode = dict("),
    (["--config=nowhere.py"], "no file 'nowhere.py'"),
  ],
)
def test_refuses(sora, made, tmp_path, argv, text):
  done = sora("encode", *words(made, tmp_path / "out"), *argv)
  assert done.code == 2 and text in done.err and len(done.err.splitlines()) == 1
  assert not list(tmp_path.iterdir())


def test_a_stage_does_not_start_from_weights_of_another_vae(
  sora, made, whole, tmp_path, draw_vae
):
  """Latents of equal shape, another VAE: one line before anything is made."""
  other = draw_vae(tmp_path / "other", 1)
  run = tmp_path / "run"
  argv = ("--config=experiments/demo.py:dit", f"--workdir={run}")
  argv += (f"--config.data.path={whole.path}", f"--config.init_from={other}")
  done = sora("train", *argv)
  text = f"sora train: init_from={other} was trained with another VAE"
  assert done.code == 2 and text in done.err and len(done.err.splitlines()) == 1
  assert not (run / "frozen").exists() and not (run / "checkpoints").exists()


class Words:
  """A text encoder that counts what it is asked."""

  width = 2

  def __init__(self):
    self.asked = []

  def tokenize(self, captions):
    return [np.ones(len(caption), np.int32) for caption in captions]

  def encode(self, captions):
    self.asked += captions
    return [np.ones((len(caption), 2), np.float32) for caption in captions]


def test_captions_are_encoded_once_and_only_for_states():
  encoder: Any = Words()
  words = Captions(encoder, states=True)
  assert words({"a", "bb"})["bb"][1].shape == (2, 2) and words({"a"})["a"][0].tolist() == [1]
  assert encoder.asked == ["a", "bb"]
  assert Captions(encoder, states=False)({"cc"}) == {"cc": (pytest.approx([1, 1]), None)}
  assert encoder.asked == ["a", "bb"]


def test_tells_renditions_a_second_and_ever_more_rarely(capsys):
  now = [0.0]
  with encode_progress.RenditionMeter("encode", 200, clock=lambda: now[0]) as meter:
    for _ in range(190):
      now[0] += 1.0
      meter()
    assert meter.rate == 1.0 and meter.seconds == 190.0
  told = capsys.readouterr().err.splitlines()
  assert told[:2] == ["encode: 0/200", "encode: 10/200, 1 renditions/s, 0:03:10 left"]
  counts = [int(line.split()[1].split("/")[0]) for line in told]
  assert counts == [0, 10, 20, 30, 40, 50, 60, 120, 180, 190]  # it ends too early, and says so

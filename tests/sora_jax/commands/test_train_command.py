"""What `sora train` does around the steps: its lock, a trained VAE's folder, what a run keeps."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.records import ClipRecord
from data_pipeline.writer import DatasetWriter
from sora_jax.build.vae import clips_of
from sora_jax.commands import train as train_command
from sora_jax.commands.encode import encode_dataset
from sora_jax.commands.train import export_vae, keep_frozen, measure_statistics, training_windows
from sora_jax.generate import encode
from sora_jax.models.frozen_vae import FrozenVAE, latent_statistics, load_frozen_vae
from sora_jax.models.text.registry import load_frozen_text_encoder, load_text_encoder
from sora_jax.models.vae import make_codec
from sora_jax.train.run_folder import lock

CODEC = dict(
  name="vae", widths=[8], blocks=[1], strides=[[4, 8]], taps=2, latent_channels=3, dtype="float32"
)
WINDOW = dict(frames=5, height=16, width=24)
CONFIG = ConfigDict({
  "seed": 0,
  "model": CODEC,
  "data": dict(WINDOW, rows=7, threads=1, prefetch=1),
})


def params_of(seed: int):
  """Parameters of CODEC, every one drawn."""
  rng = np.random.default_rng(seed)
  shapes = nnx.state(nnx.eval_shape(lambda: make_codec(CODEC, seed=0)))
  return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32) * 0.3, shapes)


def write_clips(path: Path, shapes) -> Dataset:
  rng = np.random.default_rng(0)
  facts: dict[str, Any] = dict(licence="CC0-1.0", split="train", start_frame=0, fps=8.0, truth=b"")
  with DatasetWriter(path, "clip", name="clips", shard_bytes=2**24, meta={}) as writer:
    for i, shape in enumerate(shapes):
      video = rng.integers(0, 256, (*shape, 3), np.uint8)
      writer.add(
        ClipRecord(id=str(i), source=str(i), video=video, captions=("a",), attributes="", **facts)
      )
  return Dataset.open(path, kind="clip")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  """Clips of 70 sizes, more than are compiled, and one that is too small for the window."""
  shapes = [(5 + i % 7, 16 + i, 24 + i) for i in range(70)]
  return write_clips(tmp_path_factory.mktemp("clips") / "clips", [*shapes, (1, 16, 24)])


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
  """Two latent datasets of the same clips, by two VAEs. Only to be read: see `copied`."""
  folder = tmp_path_factory.mktemp("latents")
  clips, found = write_clips(folder / "clips", [(5, 16, 24)] * 3), []
  for seed in (0, 1):
    vae = FrozenVAE(CODEC, params_of(seed), {"mean": np.zeros(3), "std": np.ones(3)})
    settings = dict(rows=2, patch_side=1, captions=0)
    encoder = load_text_encoder("bytes")
    found.append(encode_dataset(clips, vae, [encoder], folder / str(seed), **settings))
  return found


@pytest.fixture
def copied(latents, tmp_path):
  """A copy of the first of `latents`, to be damaged."""
  shutil.copytree(latents[0].path, tmp_path / "copied")
  return Dataset.open(tmp_path / "copied", kind="latent")


def test_statistics_are_of_windows_whatever_the_clips_sizes(clips, tmp_path, monkeypatch):
  """One shape is encoded, the trained one: a rerun after training cannot fail for the others."""
  monkeypatch.setattr(train_command, "STATISTICS_CLIPS", 100)  # more than there are clips
  batches = []

  def watched(vae, videos, **settings):
    videos = ((key, batches.append(video.shape) or video) for key, video in videos)
    return encode.encode_clips(vae, videos, **settings)

  monkeypatch.setattr(train_command, "encode_clips", watched)
  export_vae(CONFIG, params_of(0), 4, clips, tmp_path)
  assert batches == [(5, 16, 24, 3)] * 100
  found = load_frozen_vae(tmp_path / "frozen" / "vae")
  windows = np.stack(list(training_windows(CONFIG, clips)))
  expected = latent_statistics([found.posterior(windows)])
  np.testing.assert_allclose(found.mean, expected["mean"], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found.std, expected["std"], rtol=1e-4)
  first = next(clips_of(CONFIG, clips, None))["video"]
  np.testing.assert_array_equal(windows[:7], first)  # the same ones in every session


def test_measuring_shows_how_far_it_is(clips, monkeypatch):
  shown = []

  def track(items, what, total):
    shown.append((what, total, 0))
    for count, item in enumerate(items, 1):
      shown[-1] = what, total, count
      yield item

  monkeypatch.setattr(train_command, "track", track)
  videos = [np.full((5, 16, 24, 3), i, np.uint8) for i in range(3)]
  measure_statistics(CODEC, params_of(0), videos, 3)
  assert shown == [("statistics", 3, 3)]


def test_a_vae_of_other_weights_or_settings_replaces_the_one_of_that_step(
  clips, tmp_path, monkeypatch, capsys
):
  """A run that was trained anew in its folder ends at the same step."""
  monkeypatch.setattr(train_command, "STATISTICS_CLIPS", 14)
  other = ConfigDict(CONFIG.to_dict())
  other.model.dtype = "bfloat16"
  marks = []
  for config, seed in [(CONFIG, 0), (CONFIG, 0), (CONFIG, 1), (other, 1)]:
    export_vae(config, params_of(seed), 4, clips, tmp_path)
    vae = load_frozen_vae(tmp_path / "frozen" / "vae")
    jax.tree.map(np.testing.assert_array_equal, vae.params, params_of(seed))
    assert vae.config["dtype"] == config.model.dtype
    marks.append(vae.fingerprint)
  assert marks[0] == marks[1] and len(set(marks)) == 3
  assert capsys.readouterr().err.count("already") == 1


def test_a_run_keeps_copies_of_what_made_its_latents(copied, tmp_path):
  run = tmp_path / "run"
  keep_frozen(copied, "bytes", run)
  kept = load_frozen_vae(run / "frozen" / "vae")
  assert kept.fingerprint == copied.meta["vae"]
  for path in (copied.path / "vae").iterdir():
    path.write_bytes(b"")  # in place: a link would pass it on
  assert load_frozen_vae(run / "frozen" / "vae").fingerprint == kept.fingerprint
  assert load_frozen_text_encoder(run / "frozen" / "text") == load_text_encoder("bytes")


def flip_last_byte(folder: Path, name: str) -> None:
  data = (folder / name).read_bytes()
  (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def exchange_text(folder: Path) -> None:
  path = folder / "text" / "bytes" / "config.json"
  path.write_text(path.read_text().replace('"fingerprint": "', '"fingerprint": "0'))


DAMAGES = {
  "no vae": (lambda path: shutil.rmtree(path / "vae"), r"vae/config.json does not exist"),
  "no text": (lambda path: shutil.rmtree(path / "text"), r"text/bytes/config.json is not the spec"),
  "a flipped byte": (
    lambda path: flip_last_byte(path / "vae", "params.safetensors"),
    r"vae has fingerprint .* a file was changed or damaged",
  ),
  "text damaged": (exchange_text, r"text/bytes has fingerprint=.* files have changed"),
}


@pytest.mark.parametrize("damage, text", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_dataset_is_refused_before_training(copied, tmp_path, damage, text):
  damage(copied.path)
  with pytest.raises(BadInput, match=text):
    keep_frozen(copied, "bytes", tmp_path / "run")
  frozen = tmp_path / "run" / "frozen"
  assert not (frozen / "vae").exists() or not (frozen / "text").exists()


def test_a_dataset_with_the_vae_of_another_is_refused(latents, copied, tmp_path):
  shutil.rmtree(copied.path / "vae")
  shutil.copytree(latents[1].path / "vae", copied.path / "vae")
  made_with, found = latents[0].meta["vae"], latents[1].meta["vae"]
  text = rf"vae has fingerprint={found[:12]}, the latents of .* {made_with[:12]}: it was exchanged"
  with pytest.raises(BadInput, match=text):
    keep_frozen(copied, "bytes", tmp_path / "run")
  copied.meta.clear()  # a dataset of another program
  with pytest.raises(BadInput, match="were made with None"):
    keep_frozen(copied, "bytes", tmp_path / "run")


def test_a_text_encoder_that_is_not_the_latents_is_refused(copied, tmp_path):
  copied.meta["texts"]["bytes"]["fingerprint"] = "0" * 64
  with pytest.raises(BadInput, match="text/bytes has fingerprint=.* were made with 000000000000"):
    keep_frozen(copied, "bytes", tmp_path / "run")


def test_a_refused_attempt_does_not_decide_what_the_next_one_keeps(
  sora, latents, tmp_path, monkeypatch
):
  run = tmp_path / "run"
  words = ("--config=experiments/demo.py:dit", f"--workdir={run}")
  done = sora("train", *words, f"--config.data.path={latents[0].path}")
  assert done.code == 2 and "every.evaluate_steps=400 needs clips of the split" in done.err
  keep_frozen(latents[1], "bytes", run)
  assert load_frozen_vae(run / "frozen" / "vae").fingerprint == latents[1].meta["vae"]
  monkeypatch.setattr(train_command, "has_begun", lambda workdir: True)
  keep_frozen(latents[1], "bytes", run)
  with pytest.raises(BadInput, match="the run began on another dataset. Use a new --workdir, or"):
    keep_frozen(latents[0], "bytes", run)
  flip_last_byte(run / "frozen" / "vae", "params.safetensors")
  with pytest.raises(BadInput, match="run/frozen/vae has fingerprint .* changed or damaged"):
    keep_frozen(latents[1], "bytes", run)


@pytest.mark.parametrize("config", ["debug", "vae"])
def test_a_workdir_in_use_is_left_alone(sora, tmp_path, config):
  words = (f"--config=experiments/demo.py:{config}", "--config.data.path=")
  with lock(tmp_path):
    done = sora("train", *words, f"--workdir={tmp_path}")
  assert done.code == 2 and len(done.err.splitlines()) == 1
  assert f"sora train: --workdir={tmp_path} is being trained by another process" in done.err
  assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_all_work_on_the_workdir_is_under_its_lock(sora, tmp_path, monkeypatch):
  """What goes before the steps and what comes after them."""
  names = ("check_workdir", "open_data", "train", "export_vae")
  seen = []

  def watch(name):
    def call(*args, **settings):
      with pytest.raises(BadInput, match="another process"), lock(tmp_path):
        pass
      seen.append(name)
      return honest[name](*args, **settings)

    return call

  honest = {name: getattr(train_command, name) for name in names}
  for name in names:
    monkeypatch.setattr(train_command, name, watch(name))
  monkeypatch.setattr(train_command, "STATISTICS_CLIPS", 4)
  words = ("--config=experiments/demo.py:vae", f"--workdir={tmp_path}", "--config.data.path=")
  words += ("--config.world.clips=8", "--config.model.widths=(4,)", "--config.data.rows=1")
  words += ("--config.every.evaluate_steps=0", "--config.total_steps=2")
  assert not train_command.has_begun(tmp_path)
  assert sora("train", *words, "--config.optim.warmup_steps=1").result["step"] == 2
  assert seen == list(names) and train_command.has_begun(tmp_path)


def test_physworld_debug_trains(sora, tmp_path):
  words = ("--config=experiments/physworld.py:debug", f"--workdir={tmp_path}")
  words += ("--config.total_steps=2", "--config.optim.warmup_steps=1")
  words += ("--config.every.evaluate_steps=0",)
  assert sora("train", *words).result["step"] == 2
  assert load_frozen_vae(tmp_path / "frozen" / "vae").config["name"] == "space_to_depth"

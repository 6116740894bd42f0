"""A VAE of another time factor than 4: from clips to the places of latents, and what is refused."""

import json
import shutil
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.loader import latent_batches
from data_pipeline.records import ClipRecord
from data_pipeline.time_factor import time_factor_of
from data_pipeline.writer import DatasetWriter
from experiments import demo
from sora_jax.attention.registry import segment_attention
from sora_jax.build.positions import slowest_patches, warn_aliasing
from sora_jax.commands import train
from sora_jax.commands.encode import encode_dataset
from sora_jax.commands.inspect_data import describe_dataset
from sora_jax.commands.run import check_seconds, read_config
from sora_jax.commands.train import keep_frozen
from sora_jax.diffusion.time import make_density
from sora_jax.generate.encode import latent_shape
from sora_jax.generate.sample import Sampler, Settings, Shape
from sora_jax.models.frozen_vae import FrozenVAE
from sora_jax.models.text.registry import load_text_encoder
from sora_jax.models.vae import make_codec
from sora_jax.train.migrations import check_time_factor
from sora_jax.train.weights import Origin, compare_seconds

FACTOR, FRAMES, FPS, PATCH = 2, 9, 8.0, (1, 2, 2)
CODEC = dict(name="space_to_depth", time_factor=FACTOR, space_factor=8)
CENTRES = np.array([0, 1.5, 3.5, 5.5, 7.5]) / FPS  # of frames 0, 1-2, 3-4, 5-6 and 7-8
LAYOUT = dict(split="train", seed=0, slots=64, caption_slots=24, segments=2, rows=1, patch=PATCH)
LAYOUT |= dict(caption_dropout=0.0, given_first_frame=0.0, cost=(1.0, 0.0))


def make_clip(i: int) -> ClipRecord:
  video = np.random.default_rng(i).integers(0, 256, (FRAMES, 16, 32, 3), np.uint8)
  return ClipRecord(
    id=str(i), source=str(i), licence="", split="train", start_frame=0, fps=FPS, video=video,
    captions=("a clip",), attributes="", truth=b"",
  )  # fmt: skip


@pytest.fixture(scope="module")
def vae():
  channels = 3 * FACTOR * 8 * 8
  statistics = {"mean": np.zeros(channels), "std": np.ones(channels)}
  return FrozenVAE(CODEC, nnx.state(make_codec(CODEC, seed=0)), statistics)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("factor")


@pytest.fixture(scope="module")
def clips(folder):
  with DatasetWriter(folder / "clips", "clip", name="c", shard_bytes=2**24, meta={}) as writer:
    for i in range(2):
      writer.add(make_clip(i))
  return Dataset.open(folder / "clips", kind="clip")


@pytest.fixture(scope="module")
def encode(clips, vae):
  text = [load_text_encoder("bytes")]
  return lambda out: encode_dataset(clips, vae, text, out, rows=2, patch_side=2, captions=0)


@pytest.fixture(scope="module")
def latents(folder, encode):
  return encode(folder / "latents")


@pytest.fixture
def copied(latents, tmp_path):
  """A copy of the dataset whose meta says another time factor; None: nothing of it, as before."""

  def make(time_factor: int | None) -> Dataset:
    shutil.copytree(latents.path, tmp_path / "copy")
    path = tmp_path / "copy" / "meta.json"
    described = json.loads(path.read_text())
    del described["meta"]["time_factor"]
    if time_factor is not None:
      described["meta"]["time_factor"] = time_factor
    path.write_text(json.dumps(described))
    return Dataset.open(path.parent, kind="latent")

  return make


def seconds_of(batch) -> np.ndarray:
  """Of the first segment's latent frames."""
  patches = (batch["segment"][0] == 1) & (batch["token_index"][0] >= 0)
  return batch["position"][0, patches, 0].reshape(len(CENTRES), -1)


def test_latents_stand_at_the_centre_of_their_frames(latents, vae, monkeypatch):
  """Those that are trained on, and those that are sampled."""
  assert latents.time_factor == FACTOR == describe_dataset(latents.path)["time_factor"]
  loaded = latent_batches([latents], **LAYOUT)
  batch = next(loaded)
  loaded.close()
  np.testing.assert_allclose(seconds_of(batch), np.tile(CENTRES[:, None], (1, 2)), atol=1e-6)
  shape = Shape(*latent_shape(FRAMES / FPS, 32, 16, FPS, vae, PATCH), FPS)
  assert shape[:3] == (5, 2, 4) == tuple(batch["segment_shape"][0, 0])
  density = make_density(
    name="uniform", mean=0.0, std=1.0, base_tokens=1, shift_exponent=0.0, max_shift=0.0
  )
  sampler = Sampler(
    *nnx.split(nnx.Dict(p=nnx.Param(jnp.zeros(1)))), patch=PATCH, state_width=0, t_min=0.05,
    latent_channels=vae.latent_channels, time_factor=vae.time_factor, prediction="clean",
    density=density, attend=segment_attention("xla"),
  )  # fmt: skip
  seen = {}

  def run(params, batch, times, *_, **__):
    seen.update(batch)
    return np.zeros((1, 10, 4 * vae.latent_channels))

  monkeypatch.setattr(sampler, "_run", run)
  sampler([None], [None], [0], shape, Settings(1, 1.0, "euler", 1.0, 0))
  np.testing.assert_array_equal(seconds_of(seen), seconds_of(batch))


def test_a_dataset_of_before_is_the_same_dataset(copied, latents, encode):
  """It does not say its factor: that is the VAE's which it keeps, and its fingerprint stays."""
  old = copied(None)
  assert "time_factor" not in old.meta and old.time_factor == FACTOR
  assert old.fingerprint == latents.fingerprint
  old.verify()
  assert encode(old.path).fingerprint == latents.fingerprint  # it is there already
  loaded = latent_batches([old], **LAYOUT)
  others = latent_batches([latents], **LAYOUT)
  assert loaded.fingerprint == others.fingerprint
  np.testing.assert_array_equal(next(loaded)["position"], next(others)["position"])
  loaded.close()
  others.close()


def test_refuses_a_factor_that_is_not_the_vaes(copied, latents, tmp_path):
  odd = copied(4)
  with pytest.raises(BadInput, match="time_factor=4 of .*copy is not the 2 of its VAE in"):
    keep_frozen(odd, "bytes", tmp_path / "run")
  with pytest.raises(BadInput, match="copy and .*latents are of different time_factor"):
    latent_batches([latents, odd], **LAYOUT)
  loaded = latent_batches([odd], **LAYOUT)
  with pytest.raises(BadInput, match="has frames=9, but its 5 latents cover 17 by time_factor=4"):
    next(loaded)
  loaded.close()


@pytest.mark.parametrize("strides", [[[4, 8]], [[1, 4], [4, 2]], [[2, 2], [3, 4]]])
def test_the_factor_of_a_kept_vae_is_the_product_of_its_strides(tmp_path, strides):
  codec = dict(name="vae", widths=[8] * len(strides), blocks=[1] * len(strides), strides=strides)
  codec |= dict(taps=2, latent_channels=3, dtype="float32")
  (tmp_path / "vae").mkdir()
  (tmp_path / "vae" / "config.json").write_text(json.dumps({"codec": codec}))
  model = nnx.eval_shape(lambda: make_codec(codec, seed=0))
  assert time_factor_of({}, tmp_path) == model.time_factor == np.prod([s[0] for s in strides])


@pytest.mark.parametrize("factor", [0, "2", True])
def test_refuses_a_factor_that_is_none(copied, factor):
  with pytest.raises(BadInput, match=rf"time_factor={factor!r} of .*copy is no whole number"):
    copied(factor).time_factor  # noqa: B018


def test_refuses_latents_without_a_factor_and_without_a_vae(copied):
  dataset = copied(None)
  shutil.rmtree(dataset.path / "vae")
  with pytest.raises(BadInput, match="time_factor=None of .*copy is no whole number"):
    latent_batches([dataset], **LAYOUT)
  assert describe_dataset(dataset.path)["time_factor"] is None


def test_a_model_that_learnt_other_seconds_is_refused(tmp_path):
  check_time_factor(1, 4, "run")
  check_time_factor(2, 2, "run")
  with pytest.raises(BadInput, match=r"run is of version 1, which took time_factor=4 .* has 2:"):
    check_time_factor(1, 2, "run")
  saved = {"model": {"name": "dit"}}
  (tmp_path / "config.json").write_text(json.dumps(saved))
  with pytest.raises(BadInput, match="lacks"):  # it is read, and of version 1
    read_config(tmp_path)


def test_pictures_of_such_a_model_stand_at_no_wrong_second(latents):
  opened: Any = SimpleNamespace(version=1, pipeline=SimpleNamespace(vae=latents))
  check_seconds(opened, "run", 0.0)
  with pytest.raises(BadInput, match="--workdir=run is of version 1"):
    check_seconds(opened, "run", 0.1)
  opened.version = 2
  check_seconds(opened, "run", 1.0)


@pytest.mark.parametrize("f, refuses", [(1, False), (3, True)])
def test_training_goes_on_where_all_were_pictures(f, refuses, monkeypatch, tmp_path):
  """Only the lines before anything is built are run."""
  dataset = MagicMock(index={"fps": np.array([8.0, 8.0]), "f": np.array([1, f])})
  dataset.__len__.return_value, dataset.time_factor = 2, FACTOR
  for name, value in (
    ("check_workdir", None), ("open_data", [dataset]), ("choose_tokenizer", "bytes"),
    ("check_alike", None), ("saved_config", {"model": {"name": "dit"}}),
  ):  # fmt: skip
    monkeypatch.setattr(train, name, lambda *_, value=value, **__: value)
  monkeypatch.setattr(train, "warn_aliasing", lambda *_: 1 / 0)
  with pytest.raises(BadInput if refuses else ZeroDivisionError):
    train.train_locked(demo.get_config("dit"), tmp_path, cast(Any, None), None, None)


def test_training_from_such_weights_says_so(copied, monkeypatch, tmp_path, capsys):
  """Only the lines before anything is built are run."""
  dataset = copied(FACTOR)
  origin = tmp_path / "origin"
  origin.mkdir()
  (origin / "config.json").write_text(json.dumps({"model": {"name": "dit"}}))
  config = demo.get_config("dit")
  config.init_from, config.data.path = str(origin), str(dataset.path)
  monkeypatch.setattr(train, "keep_frozen", lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    train.train_locked(config, tmp_path / "run", cast(Any, None), None, None)
  assert "is of version 1, which took time_factor=4" in capsys.readouterr().err


@pytest.mark.parametrize("version, factor, warns", [(1, 2, True), (1, 4, False), (2, 2, False)])
def test_weights_that_may_have_learnt_other_seconds_are_named(version, factor, warns, tmp_path):
  saved = {"model": {"name": "dit"}} | ({"version": version} if version > 1 else {})
  (tmp_path / "config.json").write_text(json.dumps(saved))
  lines = compare_seconds(Origin(str(tmp_path), None, "ema"), factor)
  assert len(lines) == warns
  assert not warns or "took time_factor=4 for every VAE's, and its VAE has 2" in lines[0]


def test_warns_of_patches_further_apart_than_half_a_period(latents):
  """Those of this dataset are 2 / 8 s apart."""
  assert slowest_patches(latents, 1) == 0.25 and slowest_patches(latents, 2) == 0.5
  assert slowest_patches(latents, 5) == 0.0  # one patch a clip
  config = ConfigDict(dict(model=dict(patch=PATCH, rotary_seconds=(0.5, 128.0))))
  assert warn_aliasing(config, [latents]) == []
  config.model.rotary_seconds = (0.49, 128.0)
  (line,) = warn_aliasing(config, [latents])
  assert "lie up to 0.25 s apart, more than half of the shortest rotary period, 0.49 s" in line
  assert "rotary_seconds[0]=0.5 or more" in line
  config.model.update(patch=(1, 1, 4), rotary_seconds=(0.5, 128.0))
  (line,) = warn_aliasing(config, [latents])
  assert "model.patch=(1, 1, 4) lie up to 4 latents apart" in line

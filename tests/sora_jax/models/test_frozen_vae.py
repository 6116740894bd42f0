"""The frozen codec: a folder that comes back as it was, or says what is wrong with it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.errors import BadInput
from sora_jax.models.frozen_vae import (
  FILES,
  FrozenVAE,
  flat_params,
  latent_statistics,
  load_frozen_vae,
  save_frozen_vae,
)
from sora_jax.models.vae import decode_step, encode_step, make_codec, pixels_to_float

CONFIG = dict(
  name="vae", widths=[8], blocks=[1], strides=[[4, 4]], taps=2, latent_channels=3, dtype="float32"
)
PIXELS = dict(name="space_to_depth", time_factor=4, space_factor=4)
VIDEO = np.random.default_rng(0).integers(0, 256, (2, 9, 8, 12, 3), np.uint8)


def make_frozen(config=CONFIG):
  """(config, params, statistics), the statistics being those of VIDEO."""
  structure, params = nnx.split(nnx.eval_shape(lambda: make_codec(config, seed=0)))
  rng = np.random.default_rng(0)
  draw = lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.3, jnp.float32)  # noqa: E731
  params = jax.tree.map(draw, params)
  posterior, _ = encode_step(structure, params, pixels_to_float(VIDEO), None)
  return dict(config=config, params=params, statistics=latent_statistics([posterior]))


@pytest.fixture
def folder(tmp_path):
  save_frozen_vae(tmp_path / "vae", **make_frozen())
  return tmp_path / "vae"


def test_a_folder_comes_back_as_it_was_saved(folder):
  frozen, before = load_frozen_vae(folder), FrozenVAE(**make_frozen())
  assert frozen.config == CONFIG and frozen.fingerprint == before.fingerprint
  assert (frozen.time_factor, frozen.space_factor, frozen.latent_channels) == (4, 4, 3)
  jax.tree.map(np.testing.assert_array_equal, frozen.params, before.params)
  np.testing.assert_array_equal(frozen.encode(VIDEO), before.encode(VIDEO))


def test_latents_are_normalised_per_channel_and_decode_undoes_it(folder):
  """Draws from the posteriors have variance 1: that of the means, plus the posteriors' own."""
  frozen = load_frozen_vae(folder)
  latent = np.asarray(frozen.encode(VIDEO))
  assert latent.shape == (2, 3, 2, 3, 3) and latent.dtype == np.float32
  np.testing.assert_allclose(latent.mean((0, 1, 2, 3)), 0, atol=1e-5)
  _, logvar = frozen.posterior(VIDEO)
  own = np.exp(np.asarray(logvar, np.float64)).mean((0, 1, 2, 3)) / frozen.std**2
  assert np.all(own > 1e-3)  # or the test could not tell means from draws
  np.testing.assert_allclose(latent.var((0, 1, 2, 3)) + own, 1, atol=1e-5)
  (mean, _), _ = encode_step(frozen.structure, frozen.params, pixels_to_float(VIDEO), None)
  raw, _ = decode_step(frozen.structure, frozen.params, mean, None)
  expected = np.clip(np.asarray(raw) * 127.5 + 127.5, 0, 255)
  decoded = np.asarray(frozen.decode(latent))
  assert decoded.dtype == np.uint8
  assert np.abs(decoded - expected).max() < 0.51


def test_pixels_survive_the_lossless_codec(tmp_path):
  save_frozen_vae(tmp_path, **make_frozen(PIXELS))
  frozen = load_frozen_vae(tmp_path)
  np.testing.assert_array_equal(frozen.decode(frozen.encode(VIDEO)), VIDEO)


def test_streams_equal_the_whole(folder):
  frozen = load_frozen_vae(folder)
  latent = frozen.encode(VIDEO)
  parts = list(frozen.encode_stream([VIDEO[:, :5], VIDEO[:, 5:]]))
  np.testing.assert_allclose(np.concatenate(parts, axis=1), latent, atol=1e-5)
  posteriors = zip(*frozen.posterior_stream([VIDEO[:, :1], VIDEO[:, 1:]]), strict=True)
  for found, whole in zip(posteriors, frozen.posterior(VIDEO), strict=True):
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, atol=1e-5)
  videos = list(frozen.decode_stream([latent[:, :1], latent[:, 1:]]))
  difference = np.concatenate(videos, axis=1).astype(int) - np.asarray(frozen.decode(latent))
  assert np.abs(difference).max() <= 1  # a sum of another order may round another way


def test_fingerprint_knows_config_params_and_statistics():
  parts = make_frozen()
  base = FrozenVAE(**parts).fingerprint
  assert base == FrozenVAE(**make_frozen()).fingerprint
  nudged = jax.tree.map(lambda x: x.at[(0,) * x.ndim].add(1e-6), parts["params"])
  shifted = dict(parts["statistics"], mean=parts["statistics"]["mean"] + 1e-6)
  bf16 = dict(CONFIG, dtype="bfloat16")
  others = [dict(params=nudged), dict(statistics=shifted), dict(config=bf16)]
  prints = {FrozenVAE(**dict(parts, **other)).fingerprint for other in others}
  assert len(prints | {base}) == 4


def test_parameter_names_are_paths():
  names = list(flat_params(make_frozen()["params"]))
  assert names == sorted(names) and len(names) == len(set(names))
  assert {"encoder.down.0.linear.kernel", "decoder.stem.bias", "encoder.head.bias"} <= set(names)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
  (folder / name).unlink()
  with pytest.raises(BadInput, match=f"frozen_vae: .*{name} does not exist. Train a VAE"):
    load_frozen_vae(folder)


def flip_last_byte(data: bytes) -> bytes:
  return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
  "name, damage, message",
  [
    ("params.safetensors", flip_last_byte, "a file was changed or damaged"),
    ("params.safetensors", lambda data: data[:-5], "params.safetensors is damaged"),
    ("params.safetensors", lambda data: b"", "params.safetensors is damaged"),
    ("config.json", lambda data: data[:20], "config.json is not JSON"),
    ("config.json", lambda data: b"[]", "config.json holds no JSON object"),
    ("config.json", lambda data: data.replace(b'"codec"', b'"model"'), "lacks its keys"),
    ("config.json", lambda data: data.replace(b'"taps": 2', b'"taps": 3'), "does not hold the"),
    ("statistics.json", lambda data: data.replace(b'"std"', b'"sd"'), "lacks its keys"),
    ("config.json", lambda data: data.replace(b'"codec": {', b'"codec": "", "x": {'), "lacks its"),
    ("statistics.json", lambda data: data.replace(b'"std": [', b'"std": ["a",'), "is damaged"),
  ],
)
def test_a_damaged_file_is_noticed(folder, name, damage, message):
  data = (folder / name).read_bytes()
  assert damage(data) != data
  (folder / name).write_bytes(damage(data))
  with pytest.raises(BadInput, match=message):
    load_frozen_vae(folder)


def test_changed_statistics_are_noticed(folder):
  numbers = json.loads((folder / "statistics.json").read_text())
  numbers["std"][1] *= 1.001
  (folder / "statistics.json").write_text(json.dumps(numbers))
  with pytest.raises(BadInput, match="a file was changed or damaged"):
    load_frozen_vae(folder)


def test_statistics_of_uneven_batches_equal_those_of_all():
  rng = np.random.default_rng(0)
  batches = [1e4 + rng.normal(size=(n, 2, 3, 3, 5)) * np.arange(1, 6) for n in (1, 7, 4)]
  logvars = [rng.normal(size=batch.shape) for batch in batches]
  statistics = latent_statistics(zip(batches, logvars, strict=True))
  everything, noise = (np.concatenate(x).reshape(-1, 5) for x in (batches, logvars))
  np.testing.assert_allclose(statistics["mean"], everything.mean(0), rtol=1e-6)
  std = np.sqrt(everything.var(0) + np.exp(noise).mean(0))
  np.testing.assert_allclose(statistics["std"], std, rtol=1e-6)


def test_a_channel_that_carries_nothing_is_not_blown_up():
  means = np.random.default_rng(0).normal(size=(4, 1, 5, 5, 2)) * [1.0, 1e-3]
  logvars = np.log(np.broadcast_to([0.01, 1.0], means.shape))
  std = latent_statistics([(means, logvars)])["std"]
  assert np.all(np.abs(std - 1) < 0.1)


def test_statistics_refuse_what_cannot_be_normalised():
  with pytest.raises(BadInput, match="latent_statistics: count=0 latents"):
    latent_statistics([])
  latents = np.random.default_rng(0).normal(size=(2, 1, 2, 2, 3))
  latents[..., 1] = 5
  sure = np.full_like(latents, -1000.0)
  with pytest.raises(BadInput, match="std=0 of channel 1 cannot be divided by"):
    latent_statistics([(latents, sure)])
  latents[..., 1] = np.nan
  with pytest.raises(BadInput, match="std=nan of channel 1"):
    latent_statistics([(latents, sure)])

"""The VAE loss against closed forms, and its noise as a pure function of seed and draw."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import integrate, stats

from data_pipeline.errors import BadInput
from sora_jax.models.vae import LOGVAR_RANGE, make_codec
from sora_jax.train.vae_loss import (
  TERMS,
  kl_divergence,
  make_vae_loss,
  merge_vae_metrics,
  peak_snr_db,
  sample_posterior,
  vae_loss,
)

# Little is computed here, so the compiler need not try hard: it takes a quarter of the time.
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
posterior = quick(sample_posterior)
VAE = dict(
  name="vae", widths=[32], blocks=[1], strides=[[4, 4]], taps=2, latent_channels=8, dtype="float32"
)
PIXELS = dict(name="space_to_depth", time_factor=4, space_factor=4)


@cache
def new_vae():
  """(structure, params) of a new model, initialised in one compiled program."""
  return nnx.graphdef(nnx.eval_shape(lambda: make_codec(VAE, seed=0))), init_vae()


@quick
def init_vae():
  return nnx.state(make_codec(VAE, seed=0))


def scored(params, frozen, batch):
  """((loss, metrics), gradients) of one loss that several tests share, for it compiles once."""
  return score()(params, frozen, batch)


@cache
def score():
  loss = make_vae_loss(new_vae()[0], seed=0, kl_weight=1e-3, terms={"l2": 0.5})
  return quick(jax.value_and_grad(loss, has_aux=True))


def make_batch(rows=2, frames=5):
  rng = np.random.default_rng(0)
  video = rng.integers(0, 256, (rows, 1, 4, 4, 3), np.uint8)
  video = video.repeat(frames, 1).repeat(2, 2).repeat(2, 3)  # blocks of one colour, at rest
  draw = np.stack([np.arange(rows), 7 + np.arange(rows)], axis=-1).astype(np.uint32)
  return dict(video=jnp.asarray(video), draw=jnp.asarray(draw))


@pytest.mark.parametrize("mean, logvar", [(0.0, 0.0), (1.3, -2.0), (-0.4, 0.7)])
def test_kl_equals_its_integral(mean, logvar):
  q = stats.norm(mean, np.exp(logvar / 2))
  density = lambda x: q.pdf(x) * (q.logpdf(x) - stats.norm.logpdf(x))  # noqa: E731
  expected, _ = integrate.quad(density, mean - 12, mean + 12)
  shape = (2, 1, 3, 3, 4)
  ours = kl_divergence(jnp.full(shape, mean), jnp.full(shape, logvar))
  assert float(ours) == pytest.approx(expected, abs=1e-5)


def test_psnr_of_one_grey_level_is_48_db():
  assert float(peak_snr_db((2 / 255) ** 2)) == pytest.approx(48.1308, abs=1e-3)


def test_microbatches_average_errors_and_not_decibels():
  squared, weights = np.array([0.01, 0.09]), jnp.array([3.0, 1.0])
  metrics = dict(l1=jnp.array([0.2, 0.6]), psnr_db=jnp.asarray(-10 * np.log10(squared / 4)))
  merged = merge_vae_metrics(metrics, weights)
  assert float(merged["l1"]) == pytest.approx(0.3)
  assert float(merged["psnr_db"]) == pytest.approx(-10 * np.log10(0.03 / 4), abs=1e-4)


def test_the_lossless_codec_has_no_pixel_error():
  structure, params = nnx.split(make_codec(PIXELS, seed=0))
  batch = make_batch()
  loss_fn = make_vae_loss(structure, seed=0, kl_weight=0.1, terms={})
  loss, metrics = quick(loss_fn)(params, {}, batch)
  video = np.asarray(batch["video"]) / 127.5 - 1
  weights = np.array([4, 1, 1, 1, 1]) / 8  # the first frame is repeated
  square = (np.square(video).mean((0, 2, 3, 4)) * weights).sum()
  assert float(metrics["kl"]) == pytest.approx(0.5 * (square - 1 - LOGVAR_RANGE[0]), rel=1e-5)
  assert float(metrics["l1"]) < 1e-6 and float(metrics["psnr_db"]) > 120
  assert float(loss) == pytest.approx(0.1 * float(metrics["kl"]), rel=1e-5)


def test_loss_is_the_weighted_sum_of_its_terms():
  _, params = new_vae()
  (loss, metrics), _ = scored(params, {}, make_batch())
  assert set(metrics) == {"l1", "l2", "kl", "psnr_db", "weight"} and metrics["weight"] == 2
  metrics = {name: float(value) for name, value in metrics.items()}
  expected = metrics["l1"] + 1e-3 * metrics["kl"] + 0.5 * metrics["l2"]
  assert float(loss) == pytest.approx(expected, rel=1e-6)
  assert metrics["psnr_db"] == pytest.approx(10 * np.log10(4 / metrics["l2"]), rel=1e-5)
  assert metrics["l1"] > 0.1 and metrics["kl"] > 0.1


def test_a_term_reads_the_frozen_weights_of_the_step(monkeypatch):
  """A stand-in for a perceptual network: it sees the video in a basis that the loss has frozen."""

  def perceptual(decoded, video, frozen):
    return jnp.mean(((decoded - video) @ frozen["perceptual"]["kernel"]) ** 2)

  monkeypatch.setitem(TERMS, "perceptual", perceptual)
  structure, params = new_vae()
  batch, weights = make_batch(), np.diag([1.0, 2.0, 3.0]).astype(np.float32)
  terms = dict(seed=0, kl_weight=0.0, terms={"perceptual": 0.5})
  step = quick(jax.value_and_grad(make_vae_loss(structure, **terms), has_aux=True))
  results = [step(params, {"perceptual": {"kernel": scale * weights}}, batch) for scale in (1, 3)]
  ((loss, metrics), gradients), ((_, tripled), _) = results
  assert float(loss) == pytest.approx(float(metrics["l1"] + 0.5 * metrics["perceptual"]), rel=1e-6)
  assert float(metrics["perceptual"]) > 0.1
  ratio = float(tripled["perceptual"] / metrics["perceptual"])
  assert ratio == pytest.approx(9.0, rel=1e-5) and tripled["l1"] == metrics["l1"]
  assert jax.tree.structure(gradients) == jax.tree.structure(params)  # none for what is frozen


def test_noise_belongs_to_the_draw_and_not_to_the_row():
  mean, logvar = jnp.zeros((4, 2, 3, 3, 5)), jnp.full((4, 2, 3, 3, 5), np.log(4.0))
  draw = jnp.array([[0, 5], [0, 6], [1, 5], [0, 7]], jnp.uint32)
  z = posterior(mean, logvar, 3, draw)
  order = jnp.array([2, 0, 3, 1])
  np.testing.assert_array_equal(posterior(mean, logvar, 3, draw[order]), z[order])
  rows = np.asarray(z).reshape(4, -1)
  assert np.abs(np.corrcoef(rows) - np.eye(4)).max() < 0.4  # 90 numbers each
  assert (posterior(mean, logvar, 4, draw) != z).all()


def test_noise_has_the_posterior_mean_and_std():
  mean, logvar = jnp.full((8, 4, 8, 8, 4), 0.7), jnp.full((8, 4, 8, 8, 4), 2 * np.log(0.5))
  draw = jnp.stack([jnp.zeros(8, jnp.uint32), jnp.arange(8, dtype=jnp.uint32)], axis=-1)
  z = np.asarray(posterior(mean, logvar, 0, draw)).ravel()
  assert stats.kstest(z, stats.norm(0.7, 0.5).cdf).pvalue > 0.01


def test_training_lowers_the_loss():
  _, params = new_vae()
  batch = make_batch()
  optimizer = optax.adam(5e-3)
  update = jax.jit(optimizer.update)
  opt, scores = optimizer.init(params), []
  for _ in range(60):
    (_, metrics), gradients = scored(params, {}, batch)
    updates, opt = update(gradients, opt)
    params = optax.apply_updates(params, updates)
    scores.append(float(metrics["psnr_db"]))
  assert scores[-1] > 20 > 12 > scores[0], scores


def test_every_parameter_gets_a_gradient():
  _, params = new_vae()
  params = jax.tree.map(lambda x: x + 0.1, params)  # off the zeros of a new model
  _, gradients = scored(params, {}, make_batch())
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))


def test_an_unknown_term_is_named():
  structure, params = nnx.split(make_codec(PIXELS, seed=0))
  message = r"vae_loss: terms has 'lpips', which is not one of \['l2'\]"
  with pytest.raises(BadInput, match=message):
    make_vae_loss(structure, seed=0, kl_weight=0.0, terms={"lpips": 1.0})
  with pytest.raises(BadInput, match=message):
    vae_loss(params, structure, {}, make_batch(), 0, kl_weight=0.0, terms={"lpips": 1.0})


def test_clips_of_a_wrong_length_are_named():
  structure, params = new_vae()
  with pytest.raises(BadInput, match=r"vae: frames=6 is not 1\+4k"):
    vae_loss(params, structure, {}, make_batch(frames=6), 0, kl_weight=0.0, terms={})

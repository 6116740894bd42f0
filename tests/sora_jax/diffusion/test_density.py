"""Noise levels of training, the shift that sampling takes from them, and weights' expectations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import integrate, stats

from data_pipeline.errors import BadInput
from data_pipeline.tokens import Segment, pack_row, stack_rows
from experiments import recipe
from sora_jax.diffusion.samplers import time_grid
from sora_jax.diffusion.time import make_density, make_weighting
from sora_jax.train.accumulate import WEIGHT, make_gradient
from sora_jax.train.dit_loss import make_dit_loss, merge_by_time, segment_times

PLAIN = dict(
  name="uniform", mean=0.0, std=1.0, base_tokens=64, shift_exponent=0.5, max_shift=0.0
)
NORMAL = PLAIN | dict(name="logit_normal", mean=0.8, std=0.7)
GAMMA = 5.0
PATCH_DIM = 6


@pytest.mark.parametrize("settings", [PLAIN, NORMAL, NORMAL | dict(max_shift=1.5)])
@pytest.mark.parametrize("tokens", [4, 64, 400])
def test_the_middle_of_the_derived_grid_is_the_median_of_training(settings, tokens):
  density = make_density(**settings)
  u = jnp.asarray((np.arange(2001) + 0.5) / 2001, jnp.float32)
  median = np.median(density(u, jnp.full_like(u, tokens)))
  assert time_grid(2, density.sampling_shift(tokens))[1] == pytest.approx(median, abs=2e-4)


def test_few_derived_steps_go_where_training_hardly_went():
  """At 720p: half of the steps of an even grid lie below all but 5 % of training's levels."""
  density = make_density(**recipe.config(recipe.STAGES["high"], {}).diffusion.density)
  tokens = 75_600
  alpha = (tokens / 256) ** 0.3
  assert density.sampling_shift(tokens) == pytest.approx(alpha, rel=1e-5)
  lowest = 1 / (1 + np.exp(-stats.norm(np.log(alpha), 1.0).ppf(0.05)))
  below = lambda shift: np.mean(time_grid(200, shift)[:-1] < lowest)  # noqa: E731
  assert below(1.0) > 0.5 and below(density.sampling_shift(tokens)) < 0.17


def test_alpha_is_a_power_of_the_tokens_within_its_bounds():
  density = make_density(**PLAIN | dict(max_shift=3.0))
  tokens = jnp.array([1.0, 16.0, 64.0, 256.0, 64 * 9.0, 1e6])
  np.testing.assert_allclose(density.alpha(tokens), [1 / 3, 1 / 2, 1, 2, 3, 3], rtol=1e-6)
  free = make_density(**PLAIN)
  np.testing.assert_allclose(free.alpha(tokens), np.sqrt(np.array(tokens) / 64), rtol=1e-6)
  for bound in (0.5, -1.0, float("nan"), float("inf")):
    with pytest.raises(BadInput, match=f"density.max_shift={bound} is not 1 or more"):
      make_density(**PLAIN | dict(max_shift=bound))


def test_recipes_shift_as_published_models_do():
  """From 1 for small images to less than the largest of a published video model, 12."""
  for stage in recipe.STAGES.values():
    density = make_density(**recipe.config(stage, {}).diffusion.density)
    shifts = [density.sampling_shift(tokens - recipe.CAPTION) for tokens, _ in stage["clips"]]
    assert min(shifts) >= 1.0 and max(shifts) <= 9.0
    assert density.sampling_shift(10**7) == pytest.approx(12.0)


def test_times_depend_on_the_noisy_patches_of_their_segment():
  density = make_density(**PLAIN)
  draw = jnp.array([[[0, 5], [0, 5], [0, 6]]], jnp.uint32)
  batch = dict(draw=draw, segment_tokens=jnp.array([[64, 256, 64]]))
  few, many, other = np.asarray(segment_times(batch, density, seed=1))[0].tolist()
  assert many == pytest.approx(2 * few / (1 + few), rel=1e-5) and few != other


# ---- weights


def mean_weight(logits) -> float:
  """Of min-SNR, over a distribution of logits of t."""

  def product(x):
    t = 1 / (1 + np.exp(-x))
    return logits.pdf(x) * min((1 - t) ** 2, GAMMA * t**2)

  low, high = logits.ppf([1e-12, 1 - 1e-12])
  return integrate.quad(product, low, high, limit=500, epsabs=1e-10)[0]


@pytest.mark.parametrize("settings", [PLAIN, NORMAL, NORMAL | dict(mean=-1.2, std=1.5)])
def test_expected_weight_is_the_integral_over_the_density(settings):
  tokens = np.array([1.0, 64.0, 1000.0])
  weighting = make_weighting(name="min_snr", gamma=GAMMA)
  found = jax.jit(lambda n: weighting.expected(make_density(**settings), n))(
    jnp.asarray(tokens, jnp.float32)
  )
  for n, value in zip(tokens, found, strict=True):
    loc = 0.5 * np.log(n / 64)
    logits = stats.logistic(loc)  # of uniform t
    if settings["name"] == "logit_normal":
      logits = stats.norm(settings["mean"] + loc, settings["std"])
    assert float(value) == pytest.approx(mean_weight(logits), rel=1e-3)
  ones = make_weighting(name="uniform", gamma=GAMMA).expected(make_density(**settings), found)
  np.testing.assert_array_equal(ones, np.ones(3))


class Scaled(nnx.Module):
  """Predicts a multiple of what it sees: a model of one parameter."""

  def __init__(self):
    self.gain = nnx.Param(jnp.float32(0.3))

  def __call__(self, z, t, batch, *, attend, remat):
    return self.gain[...] * z


def row_of(rng, draws, shapes, segments):
  """A row of random clips, each of a weight of its own."""
  parts = [
    Segment(
      patches=rng.normal(size=(np.prod(shape), PATCH_DIM)).astype(np.float32),
      shape=shape,
      patch=(1, 1, 1),
      fps=8.0,
      time_factor=4,
      text_ids=np.array([1, 2]),
      weight=0.5 + draw % 3,
      draw=draw,
    )
    for draw, shape in zip(draws, shapes, strict=True)
  ]
  return pack_row(parts, slots=64, caption_slots=8, segments_per_row=segments)


@pytest.fixture(scope="module")
def loss():
  structure, params = nnx.split(Scaled())
  density = make_density(**NORMAL | dict(base_tokens=8))
  weighting = make_weighting(name="min_snr", gamma=GAMMA)
  settings = dict(prediction="velocity", t_min=0.05, seed=2, attend=None, remat="none")
  return make_dit_loss(structure, density, weighting, **settings), params


def batch_of(rows):
  batch = stack_rows(rows)
  return {key: jnp.asarray(batch[key]) for key in batch if key != "segment_record"}


def test_single_segments_weigh_on_average_what_they_do_in_one_batch(loss):
  """A step divides by what it expected of its t, not by what it happened to draw."""
  loss, params = loss
  rng = np.random.default_rng(0)
  rows = [row_of(rng, [3 * i], [(2, 2, 2)], 1) for i in range(24)]  # of equal weights and sizes
  value = jax.jit(loss)
  alone = [float(value(params, {}, batch_of([row]))[0]) for row in rows]
  together, metrics = value(params, {}, batch_of(rows))
  assert np.mean(alone) == pytest.approx(float(together), rel=1e-5)
  drawn = float(jnp.sum(metrics["weight_by_t"]))
  assert abs(drawn / float(metrics[WEIGHT]) - 1) > 0.02  # so the two would not be the same


def test_microbatches_add_up_to_the_batch(loss):
  """Loss, gradient and errors by t of rows with clips of several sizes and weights."""
  loss, params = loss
  rng = np.random.default_rng(1)
  shapes = [(1, 2, 2), (3, 2, 2), (2, 1, 4)]
  draws = [[7 * i + j for j in range(1 + i % 3)] for i in range(4)]
  rows = [row_of(rng, some, shapes[: len(some)], 3) for some in draws]
  results = [
    jax.jit(make_gradient(loss, merge_by_time, steps=steps, ranks=1))(params, {}, batch_of(rows))
    for steps in (1, 2, 4)
  ]
  for result in results[1:]:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), result, results[0]
    )

"""Path, densities, objective, guidance, solvers: closed forms and properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from data_pipeline.errors import BadInput
from sora_jax.diffusion import objective, path, time
from sora_jax.diffusion.guidance import classifier_free_guidance
from sora_jax.diffusion.noise import PURPOSES, segment_keys, segment_uniform, token_normal
from sora_jax.diffusion.samplers import integrate, time_grid

SHIFTED = dict(
  name="uniform", mean=0.0, std=1.0, base_tokens=64, shift_exponent=0.5, max_shift=0.0
)


@pytest.fixture
def points(rng):
  x, e = (jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32) for _ in range(2))
  return x, e, jnp.asarray(rng.uniform(0.1, 1, (2, 5)), jnp.float32)


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def test_velocity_is_the_derivative_of_the_path(points):
  x, e, t = points
  z = lambda t: path.interpolate(x, e, t)  # noqa: E731
  _, slope = jax.jvp(z, (t,), (jnp.ones_like(t),))
  np.testing.assert_allclose(slope, e - x, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    path.velocity_from_clean(z(t), x, t, 0.05), e - x, rtol=1e-3, atol=1e-4
  )
  np.testing.assert_allclose(path.clean_from_velocity(z(t), e - x, t), x, rtol=1e-3, atol=1e-5)


def test_given_tokens_leave_gradients_finite(points):
  x, e, _ = points
  t = jnp.zeros(x.shape[:2])
  error = lambda x_hat: jnp.sum(objective.velocity_error("clean", x_hat, x, e, x, t, 0.05))  # noqa: E731
  assert np.all(np.isfinite(jax.grad(error)(x + 1.0)))


def test_both_predictions_score_the_same_velocity(points):
  x, e, t = points
  z = path.interpolate(x, e, t)
  x_hat = x + 0.3
  as_clean = objective.velocity_error("clean", x_hat, x, e, z, t, 0.05)
  v_hat = path.velocity_from_clean(z, x_hat, t, 0.05)
  as_velocity = objective.velocity_error("velocity", v_hat, x, e, z, t, 0.05)
  np.testing.assert_allclose(as_clean, as_velocity, rtol=1e-3)


def test_clean_error_is_that_of_the_patch_below_the_clamp(points):
  """Its target is clamped as the prediction is, so the clean patch itself has no error there."""
  x, e, t = points
  t, t_min = t / 30, 0.05  # of 0.003 to 0.033
  z = path.interpolate(x, e, t)
  exact = objective.velocity_error("clean", x, x, e, z, t, t_min)
  np.testing.assert_array_equal(exact, np.zeros(t.shape))
  off = objective.velocity_error("clean", x + 0.3, x, e, z, t, t_min)
  np.testing.assert_allclose(off, np.full(t.shape, 0.3**2 / t_min**2), rtol=1e-4)


def test_weighted_mean_ignores_what_weighs_nothing():
  error = jnp.array([[1.0, jnp.nan], [3.0, jnp.inf]])
  weight = jnp.array([[1.0, 0.0], [3.0, 0.0]])
  value, gradient = jax.value_and_grad(objective.weighted_mean)(error, weight)
  assert value == pytest.approx(2.5)
  np.testing.assert_allclose(gradient, [[0.25, 0], [0.75, 0]])


def test_loss_by_time_adds_up(rng):
  error, weight, t = (jnp.asarray(rng.uniform(0, 1, (4, 50)), jnp.float32) for _ in range(3))
  mean, total = objective.mean_by_time(error, weight, t, 10)
  whole = objective.weighted_mean(error, weight)
  assert float(jnp.sum(mean * total) / jnp.sum(total)) == pytest.approx(float(whole), rel=1e-5)


def test_loss_by_time_of_an_empty_bin_is_not_a_number():
  error, weight = jnp.array([[2.0, jnp.inf, 4.0]]), jnp.array([[1.0, 0.0, 3.0]])
  mean, total = objective.mean_by_time(error, weight, jnp.array([[0.1, 0.1, 0.9]]), 3)
  np.testing.assert_allclose(mean, [2.0, np.nan, 4.0])
  np.testing.assert_allclose(total, [1.0, 0.0, 3.0])


def test_min_snr_weighs_the_clean_error():
  t, gamma = np.array([0.01, 0.2, 1 / (1 + np.sqrt(5)), 0.5, 0.9]), 5.0
  clean = 0.3  # squared; the velocity's is 1 / t² of it
  weight = time.make_weighting(name="min_snr", gamma=gamma)(jnp.asarray(t, jnp.float32))
  snr = ((1 - t) / t) ** 2
  np.testing.assert_allclose(weight * clean / t**2, np.minimum(snr, gamma) * clean, rtol=1e-5)
  np.testing.assert_array_equal(time.make_weighting(name="uniform", gamma=gamma)(t), np.ones(5))


@pytest.mark.parametrize(
  ("change", "text"),
  [
    (dict(name="sigma"), r"weighting.name='sigma' is not one of \['min_snr', 'uniform'\]"),
    (dict(gamma=0.0), "weighting.gamma=0.0 must be positive"),
  ],
)
def test_bad_weighting(change, text):
  with pytest.raises(BadInput, match=text):
    time.make_weighting(**{"name": "uniform", "gamma": 5.0, **change})


def test_logit_normal_density_is_scipys(rng):
  t = np.asarray(time.logit_normal(jnp.asarray(rng.uniform(size=20_000), jnp.float32), 0.4, 0.7))
  assert stats.kstest(np.log(t / (1 - t)), stats.norm(0.4, 0.7).cdf).pvalue > 0.01


def test_shift_grows_with_tokens_and_keeps_the_ends():
  density = time.make_density(**SHIFTED)
  u = jnp.array([0.0, 0.5, 1.0])
  np.testing.assert_allclose(density(u, jnp.full(3, 64.0)), u)
  np.testing.assert_allclose(density(u, jnp.full(3, 256.0)), [0, 2 / 3, 1], rtol=1e-6)
  with pytest.raises(BadInput, match="density.name='cosine' is not one of"):
    time.make_density(**SHIFTED | dict(name="cosine"))


def test_guidance_scale_convention():
  c, u = jnp.array([2.0]), jnp.array([1.0])
  assert [float(classifier_free_guidance(c, u, s)[0]) for s in (0.0, 1.0, 3.0)] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_solver_converges_at_its_order(solver, order):
  s = 0.5  # data N(0, s²): v = z ((1+s²)t - s²) / ((1-t)²s² + t²), whose exact flow maps e to s·e

  def velocity(z, t):
    return z * (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2)

  steps = np.array([64, 128, 256, 512])
  with jax.enable_x64(True):
    grid = lambda n: np.linspace(1.0, 0.0, n + 1)  # noqa: E731
    errors = [abs(float(integrate(solver, velocity, jnp.ones(()), grid(n))) - s) for n in steps]
  slope = -np.polyfit(np.log2(steps), np.log2(errors), 1)[0]
  assert slope == pytest.approx(order, abs=0.1), errors


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_no_solver_asks_for_the_velocity_of_data(solver):
  """At t = 0 a clean prediction has no velocity: (z - x) / 0."""
  velocity = lambda z, t: jnp.where(t > 0, z, jnp.nan)  # noqa: E731
  assert np.isfinite(integrate(solver, velocity, jnp.ones(3), time_grid(4, 3.0))).all()


def test_time_grid_and_bad_solver():
  np.testing.assert_allclose(time_grid(2, 3.0), [1, 0.75, 0])
  with pytest.raises(BadInput, match="steps=0 must be at least 1"):
    time_grid(0)
  with pytest.raises(BadInput, match="solver='rk4' is not one of"):
    integrate("rk4", lambda z, t: z, jnp.ones(1), time_grid(1))


def test_noise_follows_the_segment_not_its_place():
  draw = jnp.array([[[0, 7], [0, 9]]], jnp.uint32)
  here = token_normal(0, "noise", draw, jnp.array([[1, 1, 2, 0]]), jnp.array([[0, 1, 0, -1]]), 6)
  there = token_normal(
    0, "noise", draw[:, ::-1], jnp.array([[1, 2, 2, 0]]), jnp.array([[0, 0, 1, -1]]), 6
  )
  np.testing.assert_array_equal(here[0, :2], there[0, 1:3])
  np.testing.assert_array_equal(here[0, 2], there[0, 0])
  assert not np.any(here[0, 0] == here[0, 1]) and not np.any(here[0, 0] == here[0, 2])
  other = token_normal(0, "sample", draw, jnp.array([[1, 1, 2, 0]]), jnp.array([[0, 1, 0, -1]]), 6)
  assert not np.any(here[0, :3] == other[0, :3])


def test_no_two_purposes_share_their_numbers():
  draw = jnp.array([[[0, 7]]], jnp.uint32)
  keys = [jax.random.key_data(segment_keys(0, purpose, draw)).tobytes() for purpose in PURPOSES]
  assert len(set(keys)) == len(PURPOSES) >= 4


def test_both_words_of_a_draw_count():
  draws = jnp.array([[[0, 7], [1, 7], [7, 0], [0, 8]]], jnp.uint32)
  assert len(set(np.asarray(segment_uniform(0, "time", draws))[0].tolist())) == 4


def test_noise_is_normal_and_times_are_uniform():
  draw = jnp.stack([jnp.zeros(400, jnp.uint32), jnp.arange(400, dtype=jnp.uint32)], -1)[None]
  u = np.asarray(segment_uniform(3, "time", draw))
  assert stats.kstest(u.ravel(), "uniform").pvalue > 0.01
  segment = jnp.repeat(jnp.arange(1, 401), 5)[None]
  noise = np.asarray(token_normal(3, "noise", draw, segment, jnp.tile(jnp.arange(5), 400)[None], 8))
  assert stats.kstest(noise.ravel(), "norm").pvalue > 0.01
  assert abs(np.corrcoef(noise[0, :-1, 0], noise[0, 1:, 0])[0, 1]) < 0.08

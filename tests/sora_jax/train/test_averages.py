"""Averages of the parameters, against the weights that their formulas give to every step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import brentq

from data_pipeline.errors import BadInput
from experiments import demo
from sora_jax.train.averages import (
  ExponentialAverage,
  PowerAverage,
  ema_update,
  make_averages,
  saved_averages,
  solve_exponent,
)
from sora_jax.train.optim import advance
from sora_jax.train.state import init_state

STEPS, LENGTHS = 600, (60, 200, 600)
KINDS = (PowerAverage(0.05), PowerAverage(0.1), PowerAverage(0.25), ExponentialAverage(0.9))


@pytest.fixture(scope="module")
def profiles() -> np.ndarray:
  """Weights [length of the run, average, step] that are found by averaging unit vectors."""

  def step(ema, number):
    unit = jax.nn.one_hot(number, STEPS)
    ema = [
      ema_update(one, unit, average.share(number))
      for one, average in zip(ema, KINDS, strict=True)
    ]
    return ema, jnp.stack(ema)

  begin = [jnp.full(STEPS, jnp.float32(1e6))] * len(KINDS)  # what nobody should remember
  kept = jax.jit(lambda x: jax.lax.scan(step, x, jnp.arange(STEPS))[1])(begin)
  return np.asarray(kept)[[length - 1 for length in LENGTHS]]


def exponent(width: float) -> float:
  """The root of the relative deviation of t^g on [0, 1], written with its first two moments."""

  def apart(g):
    mean, square = (g + 1) / (g + 2), (g + 1) / (g + 3)
    return np.sqrt(square - mean**2) - width

  return brentq(apart, 0, 1e4, xtol=1e-12)


@pytest.mark.parametrize("width", [0.001, 0.05, 0.1, 0.25, 0.28])
def test_the_exponent_is_the_root_of_the_cubic(width):
  assert solve_exponent(width) == pytest.approx(exponent(width), rel=1e-6)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_power_average_weighs_the_steps_as_the_integral_of_a_power(profiles, which, length):
  width = (0.05, 0.1, 0.25)[which]
  edges = (np.arange(length + 1) / length) ** (exponent(width) + 1)
  expected = np.zeros(STEPS)
  expected[:length] = np.diff(edges)
  found = profiles[LENGTHS.index(length), which]
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-8)
  step = np.arange(STEPS)
  mean = found @ step
  relative = np.sqrt(found @ (step - mean) ** 2) / length
  assert relative == pytest.approx(width, rel=0.01)  # at any length
  assert KINDS[which].measure(length) == width


@pytest.mark.parametrize("length", LENGTHS)
def test_an_exponential_average_weighs_the_steps_as_it_says(profiles, length):
  expected, first = np.zeros(STEPS), 1.0
  for step in range(length):
    keep = min(0.9, (1 + step) / (10 + step))
    expected, first = expected * keep, first * keep
    expected[step] = 1 - keep
  found = profiles[LENGTHS.index(length), 3]
  np.testing.assert_allclose(found - 1e6 * first, expected, rtol=1e-4, atol=1e-6)
  step = np.arange(STEPS)
  weights = expected / expected.sum()
  spread = np.sqrt(weights @ (step - weights @ step) ** 2)
  assert KINDS[3].measure(length) == pytest.approx(spread / length, rel=1e-6)


def test_a_long_run_loses_nothing_to_rounding():
  """float32 has 1/t, but not 1 - 1/t."""
  for step in (10**3, 10**5, 10**7):
    exact = -np.expm1((exponent(0.05) + 1) * np.log1p(-1 / np.float64(step + 1)))
    assert float(PowerAverage(0.05).share(step)) == pytest.approx(exact, rel=1e-5)


def test_averages_take_in_the_new_parameters():
  """Not the old ones: the first step of a power average copies what the optimiser made."""
  averages = make_averages(
    ema_width=0.05, more_ema_widths=(), ema_decay=0.0, more_ema_decays=(0.999,)
  )
  optimizer = optax.sgd(1.0)
  state = init_state({"a": jnp.array([3.0, 5.0], jnp.bfloat16)}, optimizer, averages)
  state, _ = jax.jit(lambda s, g: advance(s, g, optimizer, averages))(state, {"a": jnp.ones(2)})
  np.testing.assert_array_equal(state.params["a"].astype(jnp.float32), [2.0, 4.0])
  np.testing.assert_array_equal(state.ema["a"], [2.0, 4.0])
  np.testing.assert_allclose(state.averages["0.999"]["a"], [2.1, 4.1], rtol=1e-6)  # keeps 1/10
  assert state.ema["a"].dtype == state.averages["0.999"]["a"].dtype == jnp.float32
  assert state.averaged is state.ema and list(state.averages) == ["0.999"]


def settings(**changes) -> dict:
  none = dict(ema_width=0.0, more_ema_widths=(), ema_decay=0.0, more_ema_decays=())
  return none | changes


def test_averages_by_name():
  both = settings(ema_width=0.05, more_ema_widths=(0.1,), more_ema_decays=[0.9999])
  assert make_averages(**both) == {
    "ema": PowerAverage(0.05), "0.1": PowerAverage(0.1), "0.9999": ExponentialAverage(0.9999)
  }  # fmt: skip
  assert make_averages(**settings(ema_decay=0.99)) == {"ema": ExponentialAverage(0.99)}
  assert make_averages(**settings(more_ema_widths=(0.1,))) == {"0.1": PowerAverage(0.1)}
  config = demo.dit().to_dict()
  assert saved_averages(config) == {"ema": PowerAverage(config["optim"]["ema_width"])}
  assert saved_averages({"seed": 0}) == {}


@pytest.mark.parametrize(
  "changes, text",
  [
    (dict(ema_width=0.3), r"ema_width=0.3 is not in \[0.001, 0.28\]: .*, or 0 for none"),
    (dict(ema_width=None), "ema_width=None is not in"),
    (dict(ema_width=float("nan")), "ema_width=nan is not in"),
    (dict(more_ema_widths=(0.0,)), "more_ema_widths=0.0 is not in"),
    (dict(more_ema_widths=0.1), r"more_ema_widths=0.1 is no tuple of numbers, such as \(0.1,\)"),
    (dict(more_ema_decays=("x",)), r"more_ema_decays='x' is not in \[0, 1\]"),
    (dict(ema_decay=1.5), r"ema_decay=1.5 is not in \[0, 1\]"),
    (dict(ema_decay=True), "ema_decay=True is not in"),
    (dict(ema_width=0.05, ema_decay=0.9), "are two kinds of the average that is evaluated"),
    (dict(ema_width=0.1, more_ema_widths=(0.1,)), "have one twice, or that of ema_width=0.1"),
    (dict(more_ema_widths=(0.1,), more_ema_decays=(0.1,)), "have one twice"),
  ],
)
def test_averages_that_are_refused(changes, text):
  with pytest.raises(BadInput, match=text):
    make_averages(**settings(**changes))

"""Averages made afterwards, against those that were kept all along and against quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from data_pipeline.errors import BadInput
from sora_jax.train.averages import ExponentialAverage, PowerAverage, ema_update, solve_exponent
from sora_jax.train.checkpoint import Checkpoints
from sora_jax.train.posthoc import (
  FARTHEST,
  Snapshot,
  find_snapshots,
  inner_products,
  reconstruct,
  solve_coefficients,
)
from sora_jax.train.state import Progress, State
from sora_jax.train.weights import Origin, read_weights

STEPS, EVERY, KEPT, TRACKED = 240, 12, (0.05, 0.1), (0.03, 0.07, 0.15)


def profile(step: float, width: float):
  g = solve_exponent(width)
  return lambda t: np.where(t <= step, (g + 1) * (t / step) ** g / step, 0.0)


@pytest.mark.parametrize(
  "a, b", [((3, 0.05), (5, 0.2)), ((4, 0.1), (4, 0.1)), ((5, 0.28), (2, 0.02))]
)
def test_inner_products_are_integrals(a, b):
  first, second = profile(*a), profile(*b)
  exact = quad(lambda t: first(t) * second(t), 0, min(a[0], b[0]))[0]
  pairs = [[(step, solve_exponent(width))] for step, width in (a, b)]
  assert inner_products(*pairs).item() == pytest.approx(exact, rel=1e-6)


def snapshots(steps, widths=KEPT):
  return [Snapshot(step, "ema", width) for step in steps for width in widths]


@pytest.mark.parametrize("widths, width", [((0.05,), 0.07), ((0.05,), 0.1), (KEPT, 0.15)])
def test_the_distance_is_that_of_the_profiles_and_the_smallest(widths, width):
  held = snapshots(range(10, 201, 10), widths)
  found, apart = solve_coefficients(held, 200, width)
  t = (np.arange(20_000) + 0.5) / 100
  rows = np.array([profile(one.step, one.width)(t) for one in held])
  wanted = profile(200, width)(t)
  size = np.linalg.norm(wanted)
  assert found.sum() == pytest.approx(1, abs=1e-9)
  assert apart == pytest.approx(np.linalg.norm(found @ rows - wanted) / size, rel=1e-2)
  for change in np.random.default_rng(0).normal(size=(20, len(held))) * 1e-2:
    other = found + change - change.mean()
    assert np.linalg.norm(other @ rows - wanted) / size > apart


def test_one_that_is_kept_is_itself():
  held = snapshots((100, 150, 200))
  found, apart = solve_coefficients(held, 200, 0.1)
  np.testing.assert_allclose(found, np.eye(6)[5], atol=1e-5)
  assert apart < 1e-4


def test_more_snapshots_come_nearer():
  apart = [
    solve_coefficients(snapshots(range(1000 // n, 1001, 1000 // n), (0.05,)), 1000, 0.1)[1]
    for n in (1, 5, 10, 20, 40)
  ]
  assert apart == sorted(apart, reverse=True)
  assert apart[0] > FARTHEST > 0.16 > apart[3] and apart[4] < 0.1
  close = snapshots([1000, 999, 998, *range(100, 1000, 100)])  # nearly the same, several times
  assert np.abs(solve_coefficients(close, 1000, 0.02)[0]).sum() < 300


def test_only_averages_by_width_up_to_the_step_are_sources():
  averages = {"ema": PowerAverage(0.05), "0.1": PowerAverage(0.1), "0.9": ExponentialAverage(0.9)}
  assert find_snapshots([0, 5, 10, 15], averages, 10) == [
    (5, "ema", 0.05), (5, "averages/0.1", 0.1), (10, "ema", 0.05), (10, "averages/0.1", 0.1)
  ]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run whose parameters wander: its folder, and the averages that were kept all along."""
  folder = tmp_path_factory.mktemp("posthoc")
  widths = KEPT + TRACKED
  noise = np.random.default_rng(0).normal(size=(STEPS, 64))
  trend = np.linspace(0, 5, STEPS)[:, None] ** 0.5
  path = jnp.asarray(np.cumsum(0.2 * noise, 0) + trend + 3, jnp.float32)

  def step(ema, number):
    kept = [
      ema_update(one, path[number], PowerAverage(width).share(number))
      for one, width in zip(ema, widths, strict=True)
    ]
    return kept, jnp.stack(kept)

  begin = [jnp.zeros(64)] * len(widths)
  all_of_them = jax.jit(lambda x: jax.lax.scan(step, x, jnp.arange(STEPS))[1])(begin)
  kept = np.asarray(all_of_them)
  optim = dict(ema_width=0.05, more_ema_widths=(0.1,), ema_decay=0.0, more_ema_decays=())
  with Checkpoints(folder / "checkpoints") as checkpoints:
    for done in range(EVERY, STEPS + 1, EVERY):
      at = {width: {"a": kept[done - 1, i]} for i, width in enumerate(widths)}
      state = State(jnp.int32(done), {"a": path[done - 1]}, at[0.05], {}, {"0.1": at[0.1]})
      facts = {"config": {"version": 2, "optim": optim}}
      checkpoints.save(done, jax.tree.map(jnp.asarray, state), Progress({}), facts)
  return folder, {width: kept[:, len(KEPT) + i] for i, width in enumerate(TRACKED)}, path


@pytest.mark.parametrize("step", [STEPS, 120])
@pytest.mark.parametrize("width", TRACKED)
def test_is_the_average_that_was_kept_all_along(run, capsys, width, step):
  """As near as the profiles are, of the way that the parameters went."""
  folder, tracked, path = run
  found, at = read_weights(Origin(str(folder), step, f"ema:{width}"))
  assert at == step and found["a"].dtype == np.float32
  exact, spread = tracked[width][step - 1], np.asarray(path)[:step].std(0)
  error = np.linalg.norm(found["a"] - exact) / np.linalg.norm(spread)
  (line,) = capsys.readouterr().err.splitlines()
  assert f"ema:{width} is made from {2 * step // EVERY} averages in {step // EVERY}" in line
  apart = float(line.split("off by ")[1].rstrip("%")) / 100
  assert apart < 0.11 and error < 0.02, (error, line)
  others = [read_weights(Origin(str(folder), step, f"ema:{kept}"))[0]["a"] for kept in KEPT]
  assert error < min(np.linalg.norm(one - exact) / np.linalg.norm(spread) for one in others) / 3


def test_those_that_are_kept_are_read_as_they_are(run, capsys):
  folder, _, _ = run
  for names in (("ema", "ema:0.05", "ema:0.050"), ("ema:0.1", "ema:0.10")):
    first, *same = (read_weights(Origin(str(folder), None, name))[0]["a"] for name in names)
    for other in same:
      np.testing.assert_array_equal(first, other)
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
  "which, step, text",
  [
    ("ema:0.004", STEPS, r"ema:0.004 cannot be made from 40 averages in 20 checkpoints \(widths "
     r"0.05, 0.1\): the nearest sum is off by \d\d% of its profile, more than 20%. Keep more"),
    ("ema:0.25", EVERY, "ema:0.25 cannot be made from 2 averages in 1 checkpoints"),
    ("ema:0.999", STEPS, r"'ema:0.999' is not in .* keeps \['ema', 'ema:0.1'\]. Others are made"),
    ("ema:x", STEPS, "'ema:x' is not one of"),
    ("ema:nan", STEPS, "'ema:nan' is not one of"),
    ("params:0.1", STEPS, "'params:0.1' is not one of"),
  ],
)  # fmt: skip
def test_what_cannot_be_made(run, which, step, text):
  with pytest.raises(BadInput, match=text):
    read_weights(Origin(str(run[0]), step, which))


def test_a_run_of_decays_has_nothing_to_make_widths_of(run):
  with Checkpoints(run[0] / "checkpoints", read_only=True) as checkpoints:
    with pytest.raises(BadInput, match="keeps no average by its width"):
      reconstruct(checkpoints, {"ema": ExponentialAverage(0.9)}, STEPS, 0.1)

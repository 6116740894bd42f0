"""Averages of widths that a run did not keep, from those in all of its checkpoints.

An average of an earlier step, or of another width, has another profile of weights over the run; a
sum of them, with coefficients of both signs, comes near the profile that is asked for.
Source: Karras et al. 2023 (EDM2), arXiv:2312.02696, sec. 3.2 and appendix C.3.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from data_pipeline.errors import BadInput
from sora_jax.train.averages import FIRST, Average, PowerAverage, solve_exponent
from sora_jax.train.checkpoint import Checkpoints

FARTHEST = 0.2  # from the profile that is asked for, as a share of its size (L2)
# Added to the sum's squared distance, times the sum of the squared coefficients: those of nearly
# equal profiles would grow until they magnify what float32 rounds off.
RIDGE = 1e-8


class Snapshot(NamedTuple):
  """An average in a checkpoint: its step, its place in the state, its relative width."""

  step: int
  part: str
  width: float


def inner_products(a: Sequence[tuple[int, float]], b: Sequence[tuple[int, float]]) -> np.ndarray:
  """Inner products of profiles over time, each with itself or with others, float64 [a, b].

  That of (step T, exponent g) is (g+1) t^g / T^(g+1) up to T and 0 after it: what a
  `PowerAverage` gives the steps of a unit of time (EDM2, eq. 4), with an integral of 1.

  Args:
    a, b: pairs (step, exponent).
  """
  step_a, g_a = (np.array(x, np.float64)[:, None] for x in zip(*a, strict=True))
  step_b, g_b = (np.array(x, np.float64)[None] for x in zip(*b, strict=True))
  first = np.minimum(step_a, step_b)
  size = (g_a + 1) * (g_b + 1) / (g_a + g_b + 1) / first
  return size * (first / step_a) ** (g_a + 1) * (first / step_b) ** (g_b + 1)


def solve_coefficients(
  snapshots: Sequence[Snapshot], step: int, width: float
) -> tuple[np.ndarray, float]:
  """Coefficients, of sum 1, of the sum of snapshots that is nearest to an average of `width`.

  Least squares in float64. Unlike EDM2's they have the sum 1: what stands still is kept exactly.

  Args:
    snapshots: none from after `step`.
    step: at which the average is asked for.
  Returns:
    The coefficients, and the distance of the profiles as a share of the size of the one asked for.
  """
  held = [(one.step, solve_exponent(one.width)) for one in snapshots]
  asked = [(step, solve_exponent(width))]
  products, with_asked = inner_products(held, held), inner_products(held, asked)[:, 0]
  size = inner_products(asked, asked).item()
  count = len(held)
  system = np.ones((count + 1, count + 1))
  system[:count, :count] = products + RIDGE * size * np.eye(count)
  system[count, count] = 0.0
  # In units of the size that is asked for, so that the row of the sum weighs as much.
  system[:count, :count] /= size
  found = np.linalg.solve(system, np.append(with_asked / size, 1.0))[:count]
  squared = found @ products @ found - 2 * found @ with_asked + size
  return found, float(np.sqrt(max(squared, 0.0) / size))


def find_snapshots(
  steps: Sequence[int], averages: Mapping[str, Average], last: int
) -> list[Snapshot]:
  """The power-function averages in a run's checkpoints up to step `last`."""
  return [
    Snapshot(step, name if name == FIRST else f"averages/{name}", average.width)
    for step in steps
    if 0 < step <= last
    for name, average in averages.items()
    if isinstance(average, PowerAverage)
  ]


def reconstruct(
  checkpoints: Checkpoints, averages: Mapping[str, Average], step: int, width: float
) -> tuple[Any, str]:
  """An average of the parameters that no checkpoint holds, and a line that says how near it is.

  Checkpoints are read one after the other: memory for one tree beside the sum.

  Args:
    averages: those that the run keeps, by name.
    step: of a checkpoint.
    width: relative width asked for.
  Raises:
    BadInput: the averages that are there come not near enough.
  """
  snapshots = find_snapshots(checkpoints.all_steps(), averages, step)
  if not snapshots:
    raise BadInput(
      f"weights: ema:{width:g} cannot be made: this run keeps no average by its width"
      " (optim.ema_width). Ask for one that it keeps, or for params."
    )
  coefficients, apart = solve_coefficients(snapshots, step, width)
  widths = ", ".join(f"{one:g}" for one in sorted({one.width for one in snapshots}))
  count = len({one.step for one in snapshots})
  source = f"{len(snapshots)} averages in {count} checkpoints (widths {widths})"
  if apart > FARTHEST:
    raise BadInput(
      f"weights: ema:{width:g} cannot be made from {source}: the nearest sum is off by {apart:.0%}"
      f" of its profile, more than {FARTHEST:.0%}. Keep more checkpoints (keep.period_steps), or"
      " ask for a width nearer to those."
    )
  total = None
  for one, coefficient in zip(snapshots, coefficients, strict=True):
    tree = checkpoints.read(one.step, parts=(one.part,))[one.part]
    share = np.float32(coefficient)
    total = _add(total, tree, share)
    del tree
  return total, f"weights: ema:{width:g} is made from {source}, its profile off by {apart:.1%}"


def _add(total, tree, share: np.float32):
  """`total` + `share` of a tree of numpy arrays, in place; float32."""
  if total is None:
    return jax.tree.map(lambda leaf: share * np.asarray(leaf, np.float32), tree)

  def add(sums, leaf):
    np.add(sums, share * np.asarray(leaf, np.float32), out=sums)
    return sums

  return jax.tree.map(add, total, tree)

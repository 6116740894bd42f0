"""How sure a score is: an interval for a proportion, and the chance of luck."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def wilson_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
  """Bounds a proportion from `k` successes in `n` trials, without leaving [0, 1] for any `k`.

  Args:
    k: successes, 0 <= k <= n.
    n: trials, at least 1.
    confidence: of the two-sided interval, in (0, 1).
  Returns:
    Lower and upper bound.
  Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
  """
  _check_count(k, n)
  z = NormalDist().inv_cdf((1 + confidence) / 2)
  centre = (k + z * z / 2) / (n + z * z)
  half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
  return (0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half)


def binomial_p_value(k: int, n: int, p: float) -> float:
  """Probability that at least `k` of `n` trials succeed when each does so by chance `p`."""
  return poisson_binomial_p_value(k, [p] * n)


def poisson_binomial_p_value(k: int, probabilities: Sequence[float]) -> float:
  """Probability of at least `k` successes in trials whose chances differ; exact.

  The distribution of the count is the convolution of the trials' own, one after the other. All
  terms are positive, so small tails keep their relative precision.

  Args:
    k: successes, 0 <= k <= number of trials.
    probabilities: chance of success of each trial, in [0, 1].
  """
  chances = np.asarray(probabilities, np.float64)
  _check_count(k, chances.size)
  if not np.all((chances >= 0) & (chances <= 1)):
    raise ValueError("poisson_binomial_p_value: a probability lies outside [0, 1].")
  count = np.ones(1)
  for chance in chances:
    count = np.append(count * (1 - chance), 0.0) + np.append(0.0, count * chance)
  return min(1.0, math.fsum(count[k:]))


def _check_count(k: int, n: int) -> None:
  if n < 1 or not 0 <= k <= n:
    raise ValueError(f"statistics: k={k} successes are not possible in n={n} trials.")

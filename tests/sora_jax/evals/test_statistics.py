import math

import numpy as np
import pytest
from scipy import stats

from sora_jax.evals.statistics import (
  binomial_p_value,
  poisson_binomial_p_value,
  wilson_interval,
)

COUNTS = [(0, 1), (1, 1), (0, 24), (21, 24), (24, 24), (50, 96), (95, 96), (700, 1000)]


@pytest.mark.parametrize("k, n", COUNTS)
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_wilson_interval_is_scipys(k, n, confidence):
  reference = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
  assert wilson_interval(k, n, confidence) == pytest.approx(tuple(reference), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("k, n", COUNTS)
@pytest.mark.parametrize("p", [0.0, 1 / 6, 0.5, 0.97, 1.0])
def test_binomial_p_value_is_scipys(k, n, p):
  reference = stats.binomtest(k, n, p, alternative="greater").pvalue
  assert binomial_p_value(k, n, p) == pytest.approx(reference, rel=1e-8, abs=1e-290)


def test_poisson_binomial_is_scipys():
  chances = np.random.default_rng(0).uniform(0.05, 0.6, 96)
  for k in (0, 20, 31, 40, 60, 96):
    reference = stats.poisson_binom.sf(k - 1, chances)
    assert poisson_binomial_p_value(k, chances) == pytest.approx(reference, rel=1e-6, abs=1e-15)


def test_poisson_binomial_counts_every_outcome():
  chances = [0.5, 0.25, 0.125]
  three = math.prod(chances)
  two = sum(three / p * (1 - p) for p in chances)
  assert poisson_binomial_p_value(3, chances) == pytest.approx(three, rel=1e-12)
  assert poisson_binomial_p_value(2, chances) == pytest.approx(two + three, rel=1e-12)


@pytest.mark.parametrize("k, n", [(-1, 4), (5, 4), (0, 0)])
def test_impossible_counts_are_errors(k, n):
  with pytest.raises(ValueError, match=f"k={k} successes are not possible in n={n}"):
    wilson_interval(k, n)
  with pytest.raises(ValueError, match="not possible"):
    binomial_p_value(k, n, 0.5)


def test_chances_outside_the_unit_interval_are_errors():
  with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
    poisson_binomial_p_value(1, [0.5, 1.5])

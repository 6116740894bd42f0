"""Clipping by the history of the norms, against a plain computation of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import BadInput
from sora_jax.train.clip import clip_by_history

DECAY, SIGMAS = 0.9, 3.0


def run(norms):
  """Norms of the clipped gradients, one step after the other."""
  clip = clip_by_history(SIGMAS, DECAY)
  state, found = clip.init(None), []
  update = jax.jit(clip.update)
  for norm in norms:
    out, state = update({"a": jnp.full(4, norm / 2), "b": jnp.zeros(3)}, state)
    found.append(float(jnp.linalg.norm(out["a"])))
  return np.array(found), state


def expected(norms):
  """The same with the weights of every norm written out."""
  seen = []
  for i, norm in enumerate(norms):
    limit = np.inf
    if i >= round(1 / (1 - DECAY)):
      weights = DECAY ** np.arange(i)[::-1]
      mean = np.average(seen, weights=weights)
      spread = np.sqrt(np.average((np.array(seen) - mean) ** 2, weights=weights))
      limit = mean + SIGMAS * spread
    seen.append(min(norm, limit))
  return np.array(seen)


def test_clips_at_mean_and_deviations_of_what_passed():
  rng = np.random.default_rng(0)
  norms = 1 + 0.1 * rng.random(60)
  norms[[3, 30, 31, 45]] = 9.0, 50.0, 50.0, 7.0
  found, _ = run(norms)
  np.testing.assert_allclose(found, expected(norms), rtol=2e-3)
  assert found[3] == 9.0  # there is no history yet
  calm = np.delete(np.arange(32, 60), 45 - 32)
  np.testing.assert_allclose(found[calm], norms[calm], rtol=1e-6)  # spikes did not lower the rest
  assert found[30] < 4 and found[31] < 6 and found[45] < 4


def test_what_is_not_finite_is_not_learnt_from():
  norms = np.ones(30)
  before = run(norms)[1]
  found, after = run([*norms, np.nan, np.inf])
  assert np.isnan(found[-2]) and np.isinf(found[-1])  # the run's own checks stop at them
  assert [float(a) for a in after] == [float(b) for b in before]


@pytest.mark.parametrize(("sigmas", "decay"), [(-1.0, 0.9), (3.0, 1.0), (3.0, 0.0)])
def test_numbers_out_of_range(sigmas, decay):
  with pytest.raises(BadInput, match=f"clip_sigmas={sigmas} must be 0 .off. or above"):
    clip_by_history(sigmas, decay)

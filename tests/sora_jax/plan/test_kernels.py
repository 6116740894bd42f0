"""What attention's blocks compute, against the blocks that a packed row really has."""

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.attention.runs import block_ranges, runs
from sora_jax.plan.kernels import BLOCKS, computed_pairs, find


@pytest.mark.parametrize("backend", BLOCKS)
@pytest.mark.parametrize("mean", [300, 1200, 6000, 20_000])
def test_pairs_are_about_those_of_packed_rows(backend, mean):
  rng, slots = np.random.default_rng(mean), 131_072
  lengths = rng.integers(int(0.8 * mean), int(1.2 * mean), 2 * slots // mean)
  ends = np.cumsum(lengths)
  segment = np.searchsorted(ends, np.arange(slots), side="right") + 1
  looking, seen = BLOCKS[backend]
  first, end = block_ranges(runs(jnp.asarray(segment, jnp.int32)[None]), looking, seen)
  really = float(np.sum(np.asarray(end - first), dtype=np.float64)) * looking * seen
  inside = lengths[ends <= slots]
  told = sum(n * computed_pairs(float(n), slots, backend) for n in inside) * slots / inside.sum()
  assert told == pytest.approx(really, rel=0.12)


def test_a_row_of_one_segment_has_no_more_than_its_slots():
  assert computed_pairs(76_112, 76_160, "splash") == 76_160
  assert computed_pairs(100, 4096, "xla") == 4096  # it computes all pairs


def test_kernels_are_known_by_name():
  assert find("splash_mha_fwd_segmented_residuals.3", "") == ("forward", 1.0)
  shares = [find(name, "") for name in ("splash_mha_dq_segmented", "splash_mha_dkv_segmented")]
  assert [share[0] for share in shares] == ["backward"] * 2
  assert sum(share[1] for share in shares) == 1
  assert find("custom-call.7", 'backend_config={name = "query_gradient_kernel"}')[0] == "backward"
  assert find("custom-call.7", "something") is None

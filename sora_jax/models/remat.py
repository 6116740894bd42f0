"""Rematerialisation: what the backward pass of a block recomputes instead of keeping it.

| policy | kept of each block | recomputed |
|---|---|---|
| none | everything | nothing |
| attention | its input, attention's output and log-sum-exp | all but attention |
| block | its input | the whole block |
| offload | its input, in the host's memory | the whole block |

With any but `none`, the backward pass of a block also computes norms, modulation, rotations and
activations when it comes to them: kept from the block's own recomputation, their float32 arrays
would be most of what it needs.

Source: Chen et al. 2016, arXiv:1604.06174 (one checkpoint a layer).
"""

from collections.abc import Callable
from typing import Any

import jax

from data_pipeline.errors import BadInput
from sora_jax.attention.saved import ATTENDED

BLOCK_INPUT = "block_input"  # name of a block's input

_policies = jax.checkpoint_policies
POLICIES: dict[str, Any] = {
  "attention": _policies.save_only_these_names(ATTENDED),
  "block": _policies.nothing_saveable,
  "offload": _policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[BLOCK_INPUT],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}
REMAT = ("none", *POLICIES)


def rematerialised(layer: Callable, remat: str) -> Callable:
  """A layer, the body of a scan, that keeps for its backward pass what the policy says.

  Raises:
    BadInput: no policy of that name.
  """
  if remat not in REMAT:
    raise BadInput(f"dit: remat={remat!r} is not one of {list(REMAT)}.")
  if remat == "none":
    return layer
  return jax.checkpoint(layer, prevent_cse=False, policy=POLICIES[remat])


def recomputing(remat: str) -> Callable:
  """What wraps a function of a layer that is cheap to compute again: keeps its arguments alone."""
  return (lambda function: function) if remat == "none" else jax.checkpoint

"""Segment attention in plain XLA: the reference of the other backends, and the one of the CPU."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sora_jax.attention.saved import ATTENDED
from sora_jax.typed import Array, Float, Int, typed

_MASKED = -1e30  # finite: exp underflows to exactly 0, and a row without any key leaves no NaN


@typed
def xla_segment_attention(
  q: Float[Array, "b n heads head_dim"],
  k: Float[Array, "b n heads head_dim"],
  v: Float[Array, "b n heads head_dim"],
  segment: Int[Array, "b n"],
) -> Float[Array, "b n heads head_dim"]:
  """Bidirectional attention inside each segment; softmax in float32.

  Args:
    q, k, v: queries, keys, values; q is not yet scaled by 1/sqrt(head_dim).
    segment: id of each slot. Slots see exactly the slots of equal id, so padding (0) sees padding.
  Returns:
    Attention output in the dtype of `q`.
  """
  scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
  same = segment[:, None, :, None] == segment[:, None, None, :]
  scores = jnp.where(same, scores * q.shape[-1] ** -0.5, _MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return checkpoint_name(jnp.einsum("bhqk,bkhd->bqhd", weights, v), ATTENDED)

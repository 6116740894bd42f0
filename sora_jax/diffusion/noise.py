"""Noise as a pure function of (seed, purpose, draw, token index): threefry counters, no state.

The same segment of the same run meets the same noise on any mesh, in any row and beside any
neighbours.
"""

import jax
import jax.numpy as jnp

from sora_jax.typed import Array, Float, Int, UInt, typed

PURPOSES = {"noise": 0, "time": 1, "posterior": 2, "sample": 3}


def segment_keys(seed: int | Array, purpose: str, draw: UInt[Array, "*b 2"]):
  """One key per draw index, given as (high, low) 32-bit words."""
  base = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), PURPOSES[purpose])
  flat = draw.reshape(-1, 2)
  keys = jax.vmap(lambda w: jax.random.fold_in(jax.random.fold_in(base, w[0]), w[1]))(flat)
  return keys.reshape(draw.shape[:-1])


@typed
def segment_uniform(seed: int, purpose: str, draw: UInt[Array, "b s 2"]) -> Float[Array, "b s"]:
  """One uniform number in (0, 1) per segment."""
  keys = segment_keys(seed, purpose, draw)
  tiny = 2.0**-24
  draw_one = lambda key: jax.random.uniform(key, (), minval=tiny, maxval=1.0)  # noqa: E731
  return jax.vmap(jax.vmap(draw_one))(keys)


@typed
def token_normal(
  seed: int | Array,
  purpose: str,
  draw: UInt[Array, "b s 2"],
  segment: Int[Array, "b n"],
  token_index: Int[Array, "b n"],
  features: int,
) -> Float[Array, "b n {features}"]:
  """Standard normal noise [b,n,features], one draw per token.

  Args:
    seed: of the run; a traced integer will do.
    purpose: a key of `PURPOSES`; different purposes never share numbers.
    draw: draw index of each segment.
    segment: 1..s names the column of `draw`; 0 is padding.
    token_index: of the patch in its segment; negative for slots that hold no patch.
    features: numbers per token.
  Returns:
    float32; padding and caption slots hold noise as well, which nobody uses.
  """
  keys = segment_keys(seed, purpose, draw)
  slot = jnp.maximum(segment - 1, 0)
  index = jnp.maximum(token_index, 0).astype(jnp.uint32)

  def row(keys, slot, index):
    return jax.vmap(lambda i, j: jax.random.normal(jax.random.fold_in(keys[i], j), (features,)))(
      slot, index
    )

  return jax.vmap(row)(keys, slot, index)

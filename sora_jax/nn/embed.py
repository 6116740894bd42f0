"""Embeddings of noise levels, caption tokens and their null token."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sora_jax.nn.gather import gather_rows
from sora_jax.typed import Array, Float, Int, typed

# Accelerators round the factors of a float32 product to 8 or 10 bits unless told otherwise.
EXACT = jax.lax.Precision.HIGHEST


@typed
def sinusoidal(t: Float[Array, "b u"], features: int) -> Float[Array, "b u {features}"]:
  """Fourier features of the noise level, 1000·t (Peebles & Xie 2023, arXiv:2212.09748)."""
  half = features // 2
  frequencies = np.exp(-np.log(10_000.0) * np.arange(half) / half).astype(np.float32)
  angles = 1000.0 * t[..., None] * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class LevelEmbedding(nnx.Module):
  """Noise level -> conditioning vector, float32: Fourier features and a two-layer MLP."""

  def __init__(self, width: int, *, features: int = 256, rngs: nnx.Rngs):
    self.features = features
    self.into = nnx.Linear(features, width, precision=EXACT, rngs=rngs)
    self.out = nnx.Linear(width, width, precision=EXACT, rngs=rngs)

  def __call__(self, t: Array) -> Array:
    return self.out(nnx.silu(self.into(sinusoidal(t, self.features))))


class CaptionEmbedding(nnx.Module):
  """Caption tokens -> model width. A dropped caption is one learned null token (text id -1).

  Args:
    state_width: k of the text encoder's token states; 0 embeds token ids instead (trained jointly).
    vocabulary: number of token ids, used when `state_width` is 0.
  """

  def __init__(self, width, *, state_width: int, vocabulary: int, dtype, rngs: nnx.Rngs):
    self.state_width, self.dtype = state_width, dtype
    normal = nnx.initializers.normal(0.02)
    self.null = nnx.Param(normal(rngs.params(), (width,), jnp.float32))
    if state_width:
      self.states = nnx.Linear(state_width, width, dtype=dtype, rngs=rngs)
    else:
      self.table = nnx.Param(normal(rngs.params(), (vocabulary, width), jnp.float32))

  def __call__(self, text_ids: Int[Array, "b m"], text_states: Array | None) -> Array:
    if self.state_width and text_states is not None:
      tokens = self.states(text_states.astype(self.dtype))
    elif self.state_width:  # no clip has a caption: every token is the null one
      tokens = jnp.zeros((*text_ids.shape, self.null.shape[0]), self.dtype)
    else:  # a product with one-hot rows: its backward is a product as well, never a scatter
      table = self.table[...]
      one_hot = jax.nn.one_hot(text_ids, table.shape[0], dtype=self.dtype)
      tokens = one_hot @ table.astype(self.dtype)
    return jnp.where((text_ids < 0)[..., None], self.null[...].astype(tokens.dtype), tokens)


class CaptionPool(nnx.Module):
  """One vector a segment, pooled from its caption tokens, that conditions the modulation.

  Attention has to find the word that matters before a patch hears of it; by this way every patch
  does from the first step on. The layer before the mean lets words be told apart after it.
  Source: Esser et al. 2024, arXiv:2403.03206, fig. 2 (there of pooled CLIP states).
  """

  def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
    self.into = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
    self.out = nnx.Linear(width, width, use_bias=False, precision=EXACT, rngs=rngs)

  def __call__(self, tokens: Array, text_index: Array, segment: Array, levels: int) -> Array:
    """Mean over each segment's caption tokens: [b,u,d], float32, zeros where there are none.

    Args:
      tokens: embedded caption tokens [b,m,d].
      text_index: which of them stands in each slot [b,n], -1 for none.
      segment: of each slot [b,n].
      levels: u; level i belongs to segment i, level 0 to none.
    """
    hidden = gather_rows(nnx.silu(self.into(tokens)), text_index).astype(jnp.float32)
    share = jax.nn.one_hot(segment, levels) * (text_index >= 0)[..., None]
    share = share / jnp.maximum(jnp.sum(share, 1, keepdims=True), 1.0)
    return self.out(jnp.einsum("bnu,bnd->bud", share, hidden, precision=EXACT))

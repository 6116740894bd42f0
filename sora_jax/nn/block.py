"""The transformer block: adaLN-Zero, QK-norm, rotary positions, attention inside segments."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.errors import BadInput
from sora_jax.nn.gather import gather_rows
from sora_jax.nn.rope import rotate


def layer_norm(x):
  """Layer normalisation without parameters, in float32 (adaLN brings scale and shift)."""
  x = x.astype(jnp.float32)
  x = x - jnp.mean(x, -1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def modulate(x, shift, scale):
  """Normalises x, then (1 + scale) x + shift, in float32."""
  return layer_norm(x) * (1 + scale) + shift


class Attention(nnx.Module):
  """Self-attention, queries and keys RMS-normalised (Dehghani et al. 2023, arXiv:2302.05442)."""

  def __init__(self, width: int, heads: int, *, dtype, param_dtype, rngs: nnx.Rngs):
    if width % heads:
      raise BadInput(f"dit: width={width} is not a multiple of heads={heads}. Change one of them.")
    self.heads, self.head_dim = heads, width // heads
    shared: dict[str, Any] = dict(
      use_bias=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs
    )
    # Axes of their own for q, k, v and the heads, so that heads lie whole on a device.
    self.qkv = nnx.LinearGeneral(width, (3, heads, self.head_dim), **shared)
    self.out = nnx.LinearGeneral((heads, self.head_dim), width, axis=(-2, -1), **shared)
    self.norm_q = nnx.RMSNorm(self.head_dim, dtype=jnp.float32, rngs=rngs)
    self.norm_k = nnx.RMSNorm(self.head_dim, dtype=jnp.float32, rngs=rngs)

  def __call__(self, x, angles, attend, again):
    q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)
    q = again(lambda q: rotate(self.norm_q(q), angles).astype(v.dtype))(q)
    k = again(lambda k: rotate(self.norm_k(k), angles).astype(v.dtype))(k)
    return self.out(attend(q, k, v))


def mlp_hidden(width: int, ratio: float, kind: str) -> int:
  """Width of the MLP's inner layer: SwiGLU has two of 2/3 the size; rounded up to 32."""
  return -(-int(ratio * width * (2 / 3 if kind == "swiglu" else 1)) // 32) * 32


class MLP(nnx.Module):
  """Position-wise network: GELU, or SwiGLU (Shazeer 2020, arXiv:2002.05202) at equal parameters."""

  def __init__(self, width: int, *, ratio: float, kind: str, dtype, param_dtype, rngs: nnx.Rngs):
    if kind not in ("gelu", "swiglu"):
      raise BadInput(f"dit: mlp={kind!r} is not one of ['gelu', 'swiglu'].")
    self.gated = kind == "swiglu"
    hidden = mlp_hidden(width, ratio, kind)
    shared: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    self.into = nnx.LinearGeneral(width, (1 + self.gated, hidden), **shared)
    self.out = nnx.Linear(hidden, width, **shared)

  def __call__(self, x, again):
    parts = jnp.moveaxis(self.into(x), 2, 0)
    return self.out(again(self._activate)(parts))

  def _activate(self, parts):
    return nnx.silu(parts[0]) * parts[1] if self.gated else nnx.gelu(parts[0])


class Block(nnx.Module):
  """adaLN-Zero transformer block (Peebles & Xie 2023, arXiv:2212.09748, fig. 3).

  The modulation is one projection shared by all blocks plus a table of this block's own
  (Chen et al. 2023, arXiv:2310.00426, sec. 2.3): computed per noise level, then gathered to slots.
  """

  def __init__(
    self, width, heads, *, mlp, mlp_ratio, dtype, param_dtype, zero_init: bool, rngs: nnx.Rngs
  ):
    shared: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    self.attention = Attention(width, heads, **shared)
    self.mlp = MLP(width, ratio=mlp_ratio, kind=mlp, **shared)
    scale = 0.0 if zero_init else 0.5
    self.table = nnx.Param(scale * rngs.params.normal((6, width), jnp.float32))
    self.dtype = dtype

  def __call__(self, x, shared, level_index, angles, attend, again):
    levels = shared + self.table[...].reshape(-1)  # [b,u,6d], float32
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(levels, 6, -1)

    def prepare(x, shift, scale):
      shift, scale = (gather_rows(part, level_index) for part in (shift, scale))
      return modulate(x, shift, scale).astype(self.dtype)

    def add(x, gate, y):
      return x + (gather_rows(gate, level_index) * y).astype(x.dtype)

    prepare, add = again(prepare), again(add)
    x = add(x, gate1, self.attention(prepare(x, shift1, scale1), angles, attend, again))
    return add(x, gate2, self.mlp(prepare(x, shift2, scale2), again))

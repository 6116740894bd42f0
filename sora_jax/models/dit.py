"""The diffusion transformer: one stream of caption tokens and patches, a noise level per token."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from data_pipeline.errors import BadInput
from sora_jax.models.remat import BLOCK_INPUT, recomputing, rematerialised
from sora_jax.nn.block import Block, modulate
from sora_jax.nn.embed import EXACT, CaptionEmbedding, CaptionPool, LevelEmbedding
from sora_jax.nn.gather import gather_rows
from sora_jax.nn.rope import check_periods, fourier_features, rotary_angles
from sora_jax.parallel.place import ROWS, SLOTS, constrain
from sora_jax.typed import Array, Float, typed

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
POSITION_FEATURES = 64
COLUMNS = PartitionSpec("data", None, "fsdp")  # [b,u,d]: rows of all of `fsdp`, a share of columns
COLUMNS_WHOLE = PartitionSpec("data")

# Where parameters lie: kernels in shards of the model's width, vectors whole. Stacked layers lead
# with depth.
_DENSE = r"((level|pool)/(into|out)|modulation|head_modulation|caption/states|position)"
RULES = (
  (r"blocks/attention/qkv/kernel", PartitionSpec(None, "fsdp", None, "tensor")),
  (r"blocks/attention/out/kernel", PartitionSpec(None, "tensor", None, "fsdp")),
  (r"blocks/mlp/into/kernel", PartitionSpec(None, "fsdp", None, "tensor")),
  (r"blocks/mlp/out/kernel", PartitionSpec(None, "tensor", "fsdp")),
  (r"blocks/(attention/norm_[qk]/scale|mlp/(into|out)/bias|table)", PartitionSpec()),
  (rf"{_DENSE}/kernel", PartitionSpec(None, "fsdp")),
  (r"(patches|head)/kernel|caption/(null|table)", PartitionSpec()),
  (rf"{_DENSE}/bias|(patches|head)/bias", PartitionSpec()),
)


class DiT(nnx.Module):
  """Diffusion transformer over packed rows (after Peebles & Xie 2023, arXiv:2212.09748).

  Args:
    patch_dim: p, numbers in a latent patch (c·pt·ph·pw).
    width, depth, heads: of the transformer; width/heads is the head dimension.
    mlp: "gelu" or "swiglu"; `mlp_ratio` its hidden width over `width` (SwiGLU at equal parameters).
    state_width: k of the caption token states, 0 to embed `vocabulary` token ids.
    pooled_caption: the modulation also knows a mean over the segment's caption tokens.
    rotary_seconds: shortest and longest rotary period in time, seconds (`nn.rope`).
    dtype: of matrix products, "float32" or "bfloat16"; norms and modulation are float32.
    param_dtype: of the blocks' kernels and biases; all other parameters are float32. In bfloat16,
      updates of less than 1/256 of a number are lost.
    zero_init: zero gates and head (a new model is the identity and predicts 0); False draws them,
      which parity tests need.
  """

  def __init__(
    self,
    *,
    patch_dim,
    width,
    depth,
    heads,
    mlp,
    mlp_ratio,
    state_width,
    vocabulary,
    pooled_caption,
    rotary_seconds,
    dtype,
    param_dtype,
    zero_init,
    rngs: nnx.Rngs,
  ):
    for setting, name in dict(dtype=dtype, param_dtype=param_dtype).items():
      if name not in DTYPES:
        raise BadInput(f"dit: {setting}={name!r} is not one of {sorted(DTYPES)}.")
    if min(width, depth, heads) < 1 or not 0 < mlp_ratio < math.inf:
      raise BadInput(
        f"dit: width={width}, depth={depth}, heads={heads} must be at least 1, "
        f"mlp_ratio={mlp_ratio} above 0. Correct the config's model."
      )
    self.head_dim, self.dtype = width // heads, DTYPES[dtype]
    self.rotary_seconds = check_periods(rotary_seconds)
    gates = nnx.initializers.zeros_init() if zero_init else nnx.initializers.normal(0.02)
    self.patches = nnx.Linear(patch_dim, width, dtype=self.dtype, rngs=rngs)
    self.caption = CaptionEmbedding(
      width, state_width=state_width, vocabulary=vocabulary, dtype=self.dtype, rngs=rngs
    )
    self.position = nnx.Linear(POSITION_FEATURES, width, dtype=self.dtype, rngs=rngs)
    self.level = LevelEmbedding(width, rngs=rngs)
    self.pool = CaptionPool(width, dtype=self.dtype, rngs=rngs) if pooled_caption else None
    exact: dict[str, Any] = dict(kernel_init=gates, precision=EXACT, rngs=rngs)
    self.modulation = nnx.Linear(width, 6 * width, **exact)
    dtypes = dict(dtype=self.dtype, param_dtype=DTYPES[param_dtype])
    make_block = lambda r: Block(  # noqa: E731
      width, heads, mlp=mlp, mlp_ratio=mlp_ratio, **dtypes, zero_init=zero_init, rngs=r
    )
    self.blocks = nnx.vmap(make_block, axis_size=depth)(rngs.split(depth))
    self.head_modulation = nnx.Linear(width, 2 * width, **exact)
    self.head = nnx.Linear(width, patch_dim, **exact)

  @typed
  def __call__(
    self, z: Float[Array, "b n p"], t: Float[Array, "b u"], batch: dict, *, attend, remat: str
  ) -> Float[Array, "b n p"]:
    """Predicts for every slot.

    Args:
      z: noisy patches; what stands in caption and padding slots is ignored.
      t: the row's noise levels, level 0 being 0 (captions and given tokens).
      batch: a packed row batch (docs/architecture.md): text_ids, text_states, text_index, position,
        segment and level_index are read.
      attend: `segment_attention` of a backend.
      remat: what the backward pass recomputes, see `sora_jax.models.remat`.
    Returns:
      The prediction (clean patch or velocity, as trained), float32; undefined in caption slots.
    """
    # What slots gather from is whole on every device of a row: XLA would else divide its width, and
    # move what was gathered.
    caption = constrain(self.caption(batch["text_ids"], batch.get("text_states")), ROWS)
    is_caption = (batch["text_index"] >= 0)[..., None]
    x = jnp.where(
      is_caption, gather_rows(caption, batch["text_index"]), self.patches(z.astype(self.dtype))
    )
    place = fourier_features(batch["position"], POSITION_FEATURES, self.rotary_seconds)
    x = constrain(x + self.position(place.astype(self.dtype)), SLOTS)
    condition = self.level(t)
    if self.pool is not None:
      condition += self.pool(caption, batch["text_index"], batch["segment"], t.shape[1])
    condition = constrain(nnx.silu(condition), COLUMNS_WHOLE)
    angles = rotary_angles(batch["position"], self.head_dim, self.rotary_seconds)
    attend_here = lambda q, k, v: attend(q, k, v, batch["segment"])  # noqa: E731
    shared = self._modulate(self.modulation, condition)
    x = self._run_blocks(x, shared, batch["level_index"], angles, attend_here, remat)
    last = jnp.split(self._modulate(self.head_modulation, condition), 2, -1)
    return self.head(modulate(x, *(gather_rows(part, batch["level_index"]) for part in last)))

  def _modulate(self, layer, condition):
    """A modulation [b,u,...] where its rows are. The kernel stays where it lies: it is large and
    the levels are few, so these come to its shards, and their share of the columns goes back."""
    return constrain(constrain(layer(condition), COLUMNS), ROWS)

  def _run_blocks(self, x, shared, level_index, angles, attend, remat):
    """Scans over the stacked layers: compile time does not grow with depth."""
    structure, stacked = nnx.split(self.blocks)
    again = recomputing(remat)

    def layer(x, parameters):
      x = checkpoint_name(constrain(x, SLOTS), BLOCK_INPUT)
      return nnx.merge(structure, parameters)(x, shared, level_index, angles, attend, again), None

    return jax.lax.scan(rematerialised(layer, remat), x, stacked)[0]

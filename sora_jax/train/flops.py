"""Model FLOPs of a step, counted on the host: useful work only.

Neither padding nor attention across segments counts. A multiply-add is two FLOPs; a training step
costs three forward passes (remat is not counted).
Source: Kaplan et al. 2020, arXiv:2001.08361, sec. 2.1, with attention by Σ segment².
"""

import jax

from data_pipeline.tokens import Totals
from sora_jax.train.metrics import Counts


def dit_forward_flops(
  patches: float,
  captions: float,
  squares: float,
  *,
  width: int,
  depth: int,
  hidden: int,
  gated: bool,
  patch_dim: int,
  state_width: int,
  pooled: bool,
) -> float:
  """One forward pass of the DiT.

  Args:
    patches, captions: tokens of each kind.
    squares: Σ (tokens of a segment)².
    hidden: width of the MLP's inner layer; `gated` if it has two of them (SwiGLU).
    state_width: k; 0 when caption tokens are looked up.
    pooled: caption tokens pass the layer of the pooled caption too.
  """
  linear = depth * (4 * width**2 + (3 if gated else 2) * width * hidden)
  attention = depth * 2 * width * squares  # q·k and weights·v
  ends = patches * 2 * width * patch_dim + captions * width * (state_width + pooled * width)
  return 2 * (linear * (patches + captions) + attention + ends)


def count_packed(totals: Totals, **settings) -> Counts:
  """What a packed step holds and costs; `settings` are those of `dit_forward_flops`."""
  patches, captions, squares, clips, slots = totals
  flops = 3 * dit_forward_flops(patches, captions, squares, **settings)
  return Counts(patches + captions, clips, flops, slots)


def forward_flops(function, *shapes) -> float:
  """FLOPs of a function without loops, as XLA counts them before it compiles (nothing runs).

  Raises:
    RuntimeError: the backend counts none.
  """
  costs = jax.jit(function).lower(*shapes).cost_analysis()
  if costs is None:
    raise RuntimeError(f"forward_flops: XLA counts no costs on {jax.default_backend()}.")
  return float(costs["flops"])


def count_clips(totals: Totals, *, flops_per_clip: float, tokens_per_clip: int) -> Counts:
  """What a VAE's step holds: windows of equal size and cost; its tokens are latent positions."""
  tokens = totals.clips * tokens_per_clip
  return Counts(tokens, totals.clips, totals.clips * flops_per_clip, slots=tokens)

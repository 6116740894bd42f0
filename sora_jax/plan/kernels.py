"""Attention kernels in a compiled program: which they are, what they compute, how fast.

XLA sees a call alone. What it computes is known from the model: Σ segment² of the rows that a
device has, 4 FLOPs a pair and feature forward, 10 backward (Dao 2023, arXiv:2307.08691, sec. 4.1).
"""

from typing import NamedTuple

FORWARD, BACKWARD = 4, 10

# A kernel's name, as it is in a program -> its share of the forward's or the backward's work. The
# gradients are two kernels: of queries three products of five, of keys and values four; two of the
# seven are the same.
NAMES = {
  "splash_mha_fwd": ("forward", 1.0),
  "splash_mha_dq": ("backward", 3 / 7),
  "splash_mha_dkv": ("backward", 4 / 7),
  "forward_kernel": ("forward", 1.0),
  "query_gradient_kernel": ("backward", 3 / 7),
  "key_gradient_kernel": ("backward", 4 / 7),
}


class Efficiency(NamedTuple):
  """Useful FLOP/s of a kernel over the device's peak, and where that is from."""

  forward: float
  backward: float
  source: str


_TPU7X = "tokamax' splash kernel on TPU7x"
_V5P = "MaxText#4687: 52-53 % MFU of whole steps at 32k and 64k tokens on v5p"
_NARROW = (128, Efficiency(0.34, 0.37, _TPU7X))  # half of a 256 x 256 MXU is idle
_WIDE = (256, Efficiency(0.63, 0.72, _TPU7X))
_V5 = (128, Efficiency(0.50, 0.50, _V5P))
_TRITON = (128, Efficiency(0.32, 0.23, "FlexAttention, packed 32k rows on H100"))
# Kind of device -> efficiencies by head dimension, the nearest of which counts. v6e is taken as
# TPU7x, whose MXU it has; v4 and v5e as v5p; H200 and B200 as H100.
EFFICIENCIES = {
  "v4": (_V5,),
  "v5e": (_V5,),
  "v5p": (_V5,),
  "v6e": (_NARROW, _WIDE),
  "tpu7x": (_NARROW, _WIDE),
  "h100": (_TRITON,),
  "h200": (_TRITON,),
  "b200": (_TRITON,),
}


# Backend -> slots of its blocks: of those that look, and of those that they go over.
BLOCKS = {"splash": (1024, 1024), "triton": (128, 64)}


def computed_pairs(tokens: float, slots: int, backend: str) -> float:
  """Slots that a kernel multiplies for each query of a segment of so many tokens, useful or not.

  A block of queries inside of a segment goes over that and half a block at either end; one where
  segments meet goes over both of them; one with many goes over at least a block beyond each edge.
  """
  if backend not in BLOCKS:
    return slots
  looking, seen = BLOCKS[backend]
  return min(max(tokens + looking + seen, looking + 2 * seen), slots)


def efficiency(kind: str, head_dim: int) -> Efficiency:
  """That of a kind of device."""
  return min(EFFICIENCIES[kind], key=lambda entry: abs(entry[0] - head_dim))[1]


def find(name: str, attributes: str) -> tuple[str, float] | None:
  """Direction and share of the attention kernel that a custom call is; None if it is none."""
  text = name + attributes
  return next((entry for kernel, entry in NAMES.items() if kernel in text), None)

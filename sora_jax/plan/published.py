"""What the estimator says of steps whose time is published: so its numbers can be trusted or not.

Both are MaxDiffusion's Wan 14 B (40 layers of width 5,120, 40 heads, MLP 13,824) at 75,600 tokens,
a quarter of a clip a device, which cannot be compiled here as they ran. So their sizes are summed
up with the efficiencies and rates of `estimate`: it is these that are held against what was
measured, not the walk through a program. An MFU is compared as it was stated, by its own count of
FLOPs and its own peak: it moves as the seconds do.
"""

from typing import NamedTuple

from sora_jax.plan import kernels
from sora_jax.plan.estimate import PRODUCTS, STREAMS
from sora_jax.plan.network import LINK_EFFICIENCY
from sora_jax.plan.pods import GIB, Pod, parse_topology

TOKENS, CLIPS, DEPTH, WIDTH, HEADS, HIDDEN, CAPTION = 75_600, 0.25, 40, 5120, 40, 13_824, 512
# Read and written a step and device by a program of these sizes (`sora_14b.py:peer` on v5p:4x4x4).
HBM_BYTES = 3.4e12
# Twelve all-to-alls a layer among four devices; weights of bfloat16 gathered twice and scattered.
EXCHANGED = 12 * DEPTH * 3 / 4 * CLIPS * TOKENS * WIDTH * 2
GATHERED = 3 * 2 * 14.3e9
CLOSE = 0.2  # relative error up to which a mean of 20 % is "within 20 %"


class Case(NamedTuple):
  """A published step.

  Attributes:
    topology: it ran on.
    seconds: measured.
    mfu: as stated.
    forwards: of attention in a step; 1 where its output is kept.
    wire: bytes a device sends, ring-equivalent.
    links: of the torus that its collectives use at once.
    source: where it is published.
  """

  topology: str
  seconds: float
  mfu: float
  forwards: int
  wire: float
  links: int
  source: str


CASES = (
  Case(
    "v5p:2x2x1", 36.01, 0.296, 2, 248 * GIB, 2,
    "MaxDiffusion's README: 135.9 TFLOP/s a device; wire as compiled (its commit 7cfb880)",
  ),
  Case(
    "tpu7x:4x4x4", 13.57, 0.402, 1, EXCHANGED + GATHERED, 2,
    "MaxDiffusion#487: 384 TFLOP/s a device; Ulysses, attention's output kept; weights over all",
  ),
)  # fmt: skip


def seconds(case: Case) -> float:
  """What the estimator gives."""
  pod: Pod = parse_topology(case.topology)
  kind = pod.kind
  head_dim = WIDTH // HEADS
  linear = 4 * WIDTH**2 + 2 * WIDTH * HIDDEN + 2 * WIDTH**2  # q and out of the cross-attention too
  products = 4 * 2 * DEPTH * CLIPS * (TOKENS * linear + CAPTION * 2 * WIDTH**2)
  rate = kernels.efficiency(kind.name, head_dim)
  pairs = DEPTH * HEADS * CLIPS * TOKENS * (TOKENS + CAPTION) * head_dim
  attention = pairs * (
    case.forwards * kernels.FORWARD / rate.forward + kernels.BACKWARD / rate.backward
  )
  return (
    products / (kind.peak * PRODUCTS[kind.platform])
    + attention / kind.peak
    + HBM_BYTES / (kind.hbm_rate * STREAMS)
    + case.wire / (kind.link * case.links * LINK_EFFICIENCY)
  )


def error(case: Case) -> float:
  """Of the MFU, relative: above 0 where the estimator is too hopeful."""
  return case.seconds / seconds(case) - 1


def is_trusted() -> bool:
  """Whether every published case is met within `CLOSE`: only then is an MFU told."""
  return all(abs(error(case)) <= CLOSE for case in CASES)

"""What the estimator says of steps whose time is published: so its numbers can be trusted or not.

Both are MaxDiffusion's Wan 14 B (40 layers of width 5,120, 40 heads, MLP 13,824) at 75,600 tokens,
a quarter of a clip a device, which cannot be compiled here as they ran. So each is written down as
the smallest program that does a device's work of it (a loop over layers: products, attention
kernels, collectives, and a stream of what else is read and written), and `estimate.estimate` walks
that as it walks a compiled one. An MFU is compared as it was stated, by its own count of FLOPs and
its own peak: it moves as the seconds do.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from sora_jax.plan import hlo
from sora_jax.plan.estimate import Attention, Estimate, estimate
from sora_jax.plan.pods import GIB, Pod, parse_topology

TOKENS, CLIPS, DEPTH, WIDTH, HEADS, HIDDEN, CAPTION = 75_600, 0.25, 40, 5120, 40, 13_824, 512
# Read and written a step and device by a program of these sizes (`sora_14b.py:peer` on v5p:4x4x4),
# by the products too.
HBM_BYTES = 3.4e12
PASSES = 4  # products of a forward pass: forward, recomputed, and two backward
CALLS = 2  # of the attention kernel a layer: within the clip, and over its caption
CLOSE = 0.2  # relative error up to which a mean of 20 % is "within 20 %"
# [m, k] by [k, n] a layer: q, k, v, out, and q, out over the caption; the MLP; the caption's k, v.
_SLOTS, _CAPTION_SLOTS = round(CLIPS * TOKENS), round(CLIPS * CAPTION)
PRODUCTS = (
  *[(_SLOTS, WIDTH, WIDTH)] * 6,
  (_SLOTS, WIDTH, HIDDEN),
  (_SLOTS, HIDDEN, WIDTH),
  *[(_CAPTION_SLOTS, WIDTH, WIDTH)] * 2,
)


class Exchange(NamedTuple):
  """Collectives of a layer: how many of an opcode, each of so many bfloat16 numbers of the result,
  among groups as XLA writes them."""

  opcode: str
  count: int
  numbers: int
  groups: str


class Case(NamedTuple):
  """A published step.

  Attributes:
    topology: it ran on.
    seconds: measured.
    mfu: as stated.
    forwards: of attention in a step; 1 where its output is kept.
    mesh: sizes of its axes, in order.
    exchanges: of a layer; nothing runs beside them.
    source: where it is published.
  """

  topology: str
  seconds: float
  mfu: float
  forwards: int
  mesh: dict[str, int]
  exchanges: tuple[Exchange, ...]
  source: str


_WEIGHTS = round(14.3e9 / DEPTH)  # of a layer

CASES = (
  Case(
    "v5p:2x2x1", 36.01, 0.296, 2, {"context": 4},
    # A device sends three of four parts of what is gathered: 248 GiB in all.
    (Exchange("all-gather", 1, round(248 * GIB / DEPTH * 4 / 3 / 2), "[1,4]<=[4]"),),
    "MaxDiffusion's README: 135.9 TFLOP/s a device; wire as compiled (its commit 7cfb880)",
  ),
  Case(
    "tpu7x:4x4x4", 13.57, 0.402, 1, {"fsdp": 32, "context": 4},
    (
      Exchange("all-to-all", 12, _SLOTS * WIDTH, "[32,4]<=[128]"),
      Exchange("all-gather", 2, _WEIGHTS, "[1,128]<=[128]"),
      Exchange("reduce-scatter", 1, round(_WEIGHTS / 128), "[1,128]<=[128]"),
    ),
    "MaxDiffusion#487: 384 TFLOP/s a device; Ulysses, attention's output kept; weights over all",
  ),
)  # fmt: skip


class _Device(NamedTuple):
  coords: tuple[int, ...]


def program(case: Case) -> str:
  """The step as XLA would write it, a loop over its layers."""
  body = "\n".join(f"  {line}" for line in _layer(case))
  return (
    f"HloModule published, is_scheduled=true\n\n%layer (p: ()) -> () {{\n{body}\n}}\n\n"
    "ENTRY %step (p: ()) -> () {\n  %p = () parameter(0)\n  ROOT %w = () while(%p),"
    f' condition=%more, body=%layer, backend_config={{"known_trip_count":{{"n":"{DEPTH}"}}}}\n}}\n'
  )


def _layer(case: Case) -> Iterator[str]:
  nbytes = 0
  for i, (m, k, n) in enumerate(PRODUCTS):
    yield f"%x.{i} = bf16[{m},{k}]{{1,0}} parameter(0)"
    yield f"%w.{i} = bf16[{k},{n}]{{1,0}} parameter(0)"
    for j in range(PASSES):
      yield (
        f"%y.{i}.{j} = bf16[{m},{n}]{{1,0}} dot(%x.{i}, %w.{i}),"
        " lhs_contracting_dims={1}, rhs_contracting_dims={0}"
      )
    nbytes += 2 * PASSES * (m * k + k * n + m * n)
  kernels = ["fwd"] * case.forwards + ["dq", "dkv"]
  for i, name in itertools.product(range(CALLS), enumerate(kernels)):
    yield f"%splash_mha_{name[1]}.{i}.{name[0]} = bf16[{_SLOTS},{WIDTH}]{{1,0}} custom-call(%x.0)"
  for i, one in enumerate(case.exchanges):
    for j in range(one.count):
      groups = f"replica_groups={one.groups}, dimensions={{0}}"
      yield f"%exchange.{i}.{j} = bf16[{one.numbers}]{{0}} {one.opcode}(%x.0), {groups}"
  rest = round((HBM_BYTES / DEPTH - nbytes) / 4)  # numbers of two bytes, read and written
  yield f"%rest = bf16[{rest}]{{0}} parameter(0)"
  yield f"ROOT %stream = bf16[{rest}]{{0}} negate(%rest)"


def walk(case: Case) -> Estimate:
  """What the estimator makes of a case."""
  pod: Pod = parse_topology(case.topology)
  places = itertools.product(*map(range, pod.shape))
  devices = [_Device(place) for place in places for _ in range(pod.kind.cores)]
  pairs = HEADS * CLIPS * TOKENS * (TOKENS + CAPTION)
  attention = Attention(pairs, CALLS, WIDTH // HEADS)
  return estimate(hlo.parse(program(case)), pod, devices, case.mesh, attention)


def seconds(case: Case) -> float:
  """What the estimator gives."""
  return walk(case).seconds


def error(case: Case) -> float:
  """Of the MFU, relative: above 0 where the estimator is too hopeful."""
  return case.seconds / seconds(case) - 1


def is_trusted() -> bool:
  """Whether every published case is met within `CLOSE`: only then is an MFU told."""
  return all(abs(error(case)) <= CLOSE for case in CASES)

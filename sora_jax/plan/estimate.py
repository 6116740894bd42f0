"""Seconds of a step: the compiled program's schedule, walked by a clock.

Every instruction takes the longer of its arithmetic at the device's peak times an efficiency and
its bytes at HBM's rate times another one. A collective that waits for its end stops the clock; one
that starts and ends apart runs beside what is scheduled between, as does a copy between memories.
Attention kernels take what `kernels` says. Loops run as often as they say.
Source: Williams et al. 2009, "Roofline".
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sora_jax.plan import kernels
from sora_jax.plan.collectives import find as find_collectives
from sora_jax.plan.hlo import Instruction, Module, Shape, trip_count
from sora_jax.plan.network import collective_seconds
from sora_jax.plan.pods import Pod

# Of large bfloat16 products (MaxText's 71.5 % MFU of a whole 32 B step on v5p bounds TPUs from
# below; cuBLAS reaches about 700 of 989 TFLOP/s on H100), and of streams from HBM.
PRODUCTS = {"tpu": 0.85, "cuda": 0.7}
STREAMS = 0.85
# What a float32 product of a precision costs, in bfloat16 ones: on TPUs it is made of so many, on
# GPUs it leaves the tensor cores (67 of 989 TFLOP/s on H100).
PASSES = {"tpu": {"highest": 6, "high": 3}, "cuda": {"highest": 15, "high": 3}}
EXCHANGES = "collectives"  # how the parts of a step that are exchanges begin
HOST = 5  # XLA's number of the host's memory, where `remat=offload` puts activations
HOST_RATE = 16e9  # bytes a second a device and direction, PCIe (scaling-book, ch. 2)
NO_WORK = {
  "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "partition-id",
  "iota", "opt-barrier", "custom-call",
}  # fmt: skip


class Attention(NamedTuple):
  """What the attention kernels of a step compute on a device.

  Attributes:
    pairs: slots that are multiplied with each other, times heads, of all kernel calls of a layer's
      forward pass: Σ segment², and what blocks reach beyond.
    calls: of the kernel that these are divided into.
    head_dim: features.
  """

  pairs: float
  calls: int
  head_dim: int


class Estimate(NamedTuple):
  """Seconds of a step, and what they are made of.

  Attributes:
    seconds: of the step.
    parts: products, attention, memory (what waits for HBM), and collectives that nothing hides, by
      mesh axis: sums up to `seconds`.
    hidden: of collectives that run beside other work.
    wire: bytes that a device sends, ring-equivalent, by (kind, mesh axis).
    product_flops: of a device, recomputation included; attention's not.
    hbm_bytes: read and written by a device.
    kernels: calls of attention kernels.
  """

  seconds: float
  parts: dict[str, float]
  hidden: float
  wire: dict[tuple[str, str], float]
  product_flops: float
  hbm_bytes: float
  kernels: int


class _Clock:
  """The state of a walk: the time, and when what runs beside the program will end."""

  def __init__(self):
    self.now, self.hidden, self.flops, self.bytes, self.kernels = 0.0, 0.0, 0.0, 0.0, 0
    self.parts: dict[str, float] = defaultdict(float)
    self.wire: dict[tuple[str, str], float] = defaultdict(float)
    self.busy: dict[str, float] = {}  # a network axis, or the copies' engine -> until when
    self.ends: dict[str, tuple[float, float, str]] = {}  # start -> (end, seconds, part)

  def spend(self, part: str, seconds: float) -> None:
    self.now += seconds
    self.parts[part] += seconds

  def start(self, name: str, engine: str, seconds: float, part: str) -> None:
    end = max(self.now, self.busy.get(engine, 0.0)) + seconds
    self.busy[engine] = end
    self.ends[name] = (end, seconds, part)

  def finish(self, name: str) -> None:
    end, seconds, part = self.ends.pop(name, (0.0, 0.0, ""))
    waits = max(0.0, end - self.now)
    if part.startswith(EXCHANGES):
      self.hidden += max(0.0, seconds - waits)
    self.spend(part, waits) if waits else None

  def add(self, inner: "_Clock", trips: int) -> None:
    """A part that ran so often; its work is counted as often already."""
    for part, seconds in inner.parts.items():
      self.spend(part, trips * seconds)
    self.hidden += trips * inner.hidden
    for key, wire in inner.wire.items():
      self.wire[key] += wire
    self.flops, self.bytes = self.flops + inner.flops, self.bytes + inner.bytes
    self.kernels += inner.kernels


def estimate(
  module: Module, pod: Pod, devices: Sequence, mesh: dict[str, int], attention: Attention
) -> Estimate:
  """Walks a compiled step.

  Args:
    devices: in the mesh's order.
    mesh: sizes of its axes.
  """
  clock = _Clock()
  _Walk(module, pod, devices, mesh, attention).computation(module.entry, clock, 1)
  return Estimate(
    clock.now,
    {part: seconds for part, seconds in clock.parts.items() if seconds},
    clock.hidden,
    dict(clock.wire),
    clock.flops,
    clock.bytes,
    clock.kernels,
  )


class _Walk(NamedTuple):
  module: Module
  pod: Pod
  devices: Sequence
  mesh: dict[str, int]
  attention: Attention

  def computation(self, name: str, clock: _Clock, times: int) -> None:
    """Spends the time of a computation once; counts its work `times` over."""
    shapes: dict[str, tuple[Shape, ...]] = {}
    for instruction in self.module.computations[name]:
      shapes[instruction.name] = instruction.shapes
      self.instruction(instruction, shapes, clock, times)

  def instruction(self, one: Instruction, shapes: dict, clock: _Clock, times: int) -> None:
    if one.opcode == "while":
      return self.loop(one, clock, times)
    if one.opcode == "call":
      for name in one.called("to_apply"):
        self.computation(name, clock, times)
      return None
    if one.opcode == "conditional":
      return self.branches(one, clock, times)
    collectives = find_collectives(self.module, one, self.mesh)
    for found in collectives:
      clock.wire[found.kind, found.axis] += times * found.wire
    if collectives:
      seconds = sum(collective_seconds(c, self.pod, self.devices) for c in collectives)
      axis = collectives[0].axis or "one device"
      part = f"{EXCHANGES} over {axis}"
      if one.opcode.endswith("-start"):
        return clock.start(one.name, axis, seconds, part)
      if one.opcode != "fusion" or not _products(self.module, one, shapes):
        return clock.spend(part, seconds)
      before = clock.now
      self.work(one, shapes, clock, times)
      return clock.spend(part, max(0.0, seconds - (clock.now - before)))
    if one.opcode.endswith("-start"):  # a copy between memories: of what comes out of it
      nbytes = min((shape.nbytes for shape in one.shapes if shape.dims), default=0)
      clock.bytes += times * nbytes
      if _of_host(one):
        return clock.start(one.name, "host", nbytes / HOST_RATE, "copies to the host's memory")
      return clock.start(one.name, "copies", nbytes / self.hbm_rate, "memory")
    if one.opcode.endswith(("-done", "-update")):
      return clock.finish(one.operands[0]) if one.operands else None
    return self.work(one, shapes, clock, times)

  def loop(self, one: Instruction, clock: _Clock, times: int) -> None:
    trips = trip_count(self.module, one)
    inner = _Clock()
    for name in one.called("body"):
      self.computation(name, inner, times * trips)
    clock.add(inner, trips)

  def branches(self, one: Instruction, clock: _Clock, times: int) -> None:
    """Of a conditional the slowest branch."""
    roles = ("branch_computations", "true_computation", "false_computation")
    walked = []
    for name in (name for role in roles for name in one.called(role)):
      walked.append(_Clock())
      self.computation(name, walked[-1], times)
    if walked:
      clock.add(max(walked, key=lambda inner: inner.now), 1)

  def work(self, one: Instruction, shapes: dict, clock: _Clock, times: int) -> None:
    kernel = one.opcode == "custom-call" and kernels.find(one.name, one.attributes)
    if kernel:
      clock.kernels += times
      return clock.spend("attention", self.kernel_seconds(*kernel))
    if one.opcode in NO_WORK and "cublas" not in one.attributes and "cudnn" not in one.attributes:
      return None
    flops = _products(self.module, one, shapes)
    nbytes = _bytes(self.module, one, shapes)
    clock.flops += times * flops
    clock.bytes += times * nbytes
    arithmetic = flops / (self.pod.kind.peak * PRODUCTS[self.pod.kind.platform])
    arithmetic *= _passes(self.module, one, self.pod.kind.platform)
    if _of_host(one):
      return clock.spend("copies to the host's memory", nbytes / HOST_RATE)
    streams = nbytes / self.hbm_rate
    return clock.spend("products" if arithmetic > streams else "memory", max(arithmetic, streams))

  @property
  def hbm_rate(self) -> float:
    return self.pod.kind.hbm_rate * STREAMS

  def kernel_seconds(self, direction: str, share: float) -> float:
    rate = kernels.efficiency(self.pod.kind.name, self.attention.head_dim)
    per_pair = kernels.FORWARD if direction == "forward" else kernels.BACKWARD
    flops = per_pair * self.attention.head_dim * self.attention.pairs / self.attention.calls
    return share * flops / (self.pod.kind.peak * getattr(rate, direction))


def _of_host(one: Instruction) -> bool:
  return any(shape.space == HOST for shape in one.shapes)


def _inside(module: Module, one: Instruction) -> list[Instruction]:
  return module.fused(one) if one.opcode == "fusion" else [one]


def _products(module: Module, one: Instruction, shapes: dict) -> float:
  """FLOPs of the matrix products that an instruction is made of; `shapes` are around it."""
  inside = _inside(module, one)
  sides = shapes if inside == [one] else {i.name: i.shapes for i in inside}
  total = 0.0
  for i in inside:
    if i.opcode in ("dot", "convolution") or "__cublas$" in i.attributes:
      total += 2 * _multiply_adds(i, sides)
    elif i.opcode == "fusion" and i is not one:
      total += _products(module, i, sides)
  return total


def _multiply_adds(product: Instruction, sides: dict) -> float:
  """m·n·k of a product of [m,k] and [k,n], however XLA writes it: as a convolution its axes are in
  disguise, but the three arrays still have m·k, k·n and m·n numbers. Of g products in a batch each
  has g times as many."""
  left, right = (sides.get(name, ()) for name in product.operands[:2])
  if not left or not right:
    return 0.0
  out = product.shapes[0].size  # cuBLAS' second result is its workspace
  batch = 1
  axes = re.search(r"lhs_batch_dims=\{([\d,]+)\}", product.attributes)
  axes = axes or re.search(r'"lhs_batch_dimensions":\[([\d,"]+)\]', product.attributes)
  if axes:
    batch = math.prod(left[0].dims[int(axis)] for axis in re.findall(r"\d+", axes[1]))
  if groups := re.search(r"(?:feature|batch)_group_count=(\d+)", product.attributes):
    batch *= int(groups[1])
  return math.sqrt(left[0].size * right[0].size * out / batch)


def _passes(module: Module, one: Instruction, platform: str) -> int:
  text = " ".join(i.attributes for i in _inside(module, one) if i.opcode in ("dot", "convolution"))
  found = re.search(r"operand_precision=\{(\w+)", text)
  return PASSES[platform].get(found[1], 1) if found else 1


def _bytes(module: Module, one: Instruction, shapes: dict) -> float:
  """Bytes of the main memory that an instruction reads and writes. Of an array that it only takes
  slices of, or only replaces a slice in, these count."""
  read = [sum(s.nbytes for s in shapes.get(name, ()) if not s.space) for name in one.operands]
  wrote = sum(s.nbytes for s in one.shapes if not s.space)
  if one.opcode == "dynamic-slice":
    return 2 * wrote
  if one.opcode == "dynamic-update-slice":
    return 2 * sum(read[1:2])
  if one.opcode != "fusion":
    return sum(read) + wrote
  inside = module.fused(one)
  users: dict[str, list[Instruction]] = {}
  for i in inside:
    for name in i.operands:
      users.setdefault(name, []).append(i)
  by_name = {i.name: i for i in inside}
  for i in inside:
    if i.opcode != "parameter" or not i.argument.isdecimal() or int(i.argument) >= len(read):
      continue
    use = list(_through(i.name, users))
    if use and all(u.opcode in ("dynamic-slice", "gather") and first for u, first in use):
      read[int(i.argument)] = sum(u.nbytes for u, _ in use)
    elif use and all(u.opcode == "dynamic-update-slice" and first for u, first in use):
      updates = sum(by_name[u.operands[1]].nbytes for u, _ in use if u.operands[1] in by_name)
      read[int(i.argument)] = updates
      wrote -= sum(u.nbytes for u, _ in use) - updates
  return sum(read) + max(0.0, wrote)


def _through(name: str, users: dict) -> Iterator[tuple[Instruction, bool]]:
  """Who uses a value, past what moves no bytes, and whether as its first operand."""
  for user in users.get(name, []):
    if user.opcode == "bitcast":
      yield from _through(user.name, users)
    else:
      yield user, user.operands[0] == name

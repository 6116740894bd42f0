"""Collectives of a compiled program: which devices take part, and what a device sends.

`wire` is ring-equivalent: the bytes that a device sends in a ring algorithm, whatever the network
does. Source: Thakur et al. 2005, "Optimization of collective communication operations in MPICH".
"""

import math
import re
from typing import NamedTuple

import numpy as np

from sora_jax.plan.hlo import Instruction, Module

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


class Collective(NamedTuple):
  """One exchange.

  Attributes:
    kind: of `KINDS`.
    nbytes: of the whole: gathered, scattered, or reduced array of a group.
    group: partitions of the group that partition 0's like, as numbers in the mesh's order.
    axis: mesh axes that the group extends along, joined by "+"; "" for a group of one.
  """

  kind: str
  nbytes: int
  group: tuple[int, ...]
  axis: str

  @property
  def wire(self) -> float:
    """Bytes that a device sends, in a ring."""
    n = len(self.group)
    if self.kind == "collective-permute":
      return self.nbytes * (n > 1)
    return (2 if self.kind == "all-reduce" else 1) * (n - 1) / n * self.nbytes


def find(module: Module, instruction: Instruction, mesh: dict[str, int]) -> list[Collective]:
  """The collectives that an instruction is, starts, or has inside of a fusion.

  Args:
    mesh: sizes of the axes, in order.
  """
  kind = instruction.opcode.removesuffix("-start")
  if kind in KINDS:
    return [_collective(kind, instruction, _moved(kind, instruction), mesh)]
  if instruction.opcode not in ("fusion", "async-start", "call"):
    return []
  inside = module.fused(instruction)
  found = []
  for part in inside:
    kind = part.opcode.removesuffix("-start")
    if kind not in KINDS:
      continue
    nbytes = _moved(kind, part)
    # TPUs write a reduce-scatter as an all-reduce of which each device keeps a slice.
    if kind == "all-reduce" and any(i.opcode == "dynamic-slice" for i in inside):
      kind = "reduce-scatter"
    found.append(_collective(kind, part, nbytes, mesh))
  return found


def _moved(kind: str, instruction: Instruction) -> int:
  """Bytes of the whole array. A start's result is a tuple of what goes in and what comes out."""
  shapes = instruction.shapes
  if instruction.opcode.endswith("-start") and kind != "all-reduce":
    arrays = [shape for shape in shapes if shape.dtype not in ("token", "opaque")]
    sizes = [shape.nbytes for shape in arrays if shape.dims]
    if kind == "collective-permute":
      return max(sizes, default=0)
    return sum(sizes) - sum(sizes[: len(instruction.operands)])
  return instruction.nbytes


def _collective(kind: str, instruction: Instruction, nbytes: int, mesh) -> Collective:
  total = math.prod(mesh.values())
  if kind == "collective-permute":
    group = _pair(instruction.attributes)
  else:
    group = first_group(instruction.attributes, total)
  if kind == "reduce-scatter" and instruction.opcode.startswith("reduce-scatter"):
    nbytes *= len(group)  # its result is one share
  return Collective(kind, nbytes, group, axes_of(group, mesh))


def _pair(attributes: str) -> tuple[int, ...]:
  """The first pair that crosses devices, as a group."""
  pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
  for a, b in re.findall(r"\{(\d+),(\d+)", pairs[0] if pairs else ""):
    if a != b:
      return int(a), int(b)
  return (0,)


def first_group(attributes: str, total: int) -> tuple[int, ...]:
  """The first of `replica_groups`, in any of the three forms that XLA writes.

  Raises:
    ValueError: a form that is not known.
  """
  listed = re.search(r"replica_groups=\{(\{[\d,]*\})?", attributes)
  if listed:
    return tuple(map(int, listed[1].strip("{}").split(","))) if listed[1] else tuple(range(total))
  iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\])(?:T\(([\d,]+)\))?", attributes)
  if iota:
    ids = _permuted(iota[3], iota[4])
    return tuple(ids.reshape(int(iota[1]), int(iota[2]))[0].tolist())
  named = re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\((\[[\d,]+\])(?:T\(([\d,]+)\))?\))?"
    r"\s*\{([^}]*)\}",
    attributes,
  )
  if named:
    sides = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
    ids = _permuted(named[2], named[3]) if named[2] else np.arange(math.prod(sides.values()))
    chosen = re.findall(r"'(\w+)'", named[4])
    index = tuple(slice(None) if name in chosen else 0 for name in sides)
    return tuple(ids.reshape(tuple(sides.values()))[index].ravel().tolist())
  raise ValueError(f"collectives: no replica groups in {attributes[:200]!r}.")


def _permuted(sides: str, order: str | None) -> np.ndarray:
  """XLA's iota form: numbers in `sides`, axes reordered, flat."""
  shape = [int(side) for side in sides.strip("[]").split(",")]
  ids = np.arange(math.prod(shape)).reshape(shape)
  return (ids.transpose([int(axis) for axis in order.split(",")]) if order else ids).ravel()


def axes_of(group: tuple[int, ...], mesh: dict[str, int]) -> str:
  """Axes along which the members of a group differ."""
  places = np.array(np.unravel_index(group, tuple(mesh.values())))
  return "+".join(
    name for name, row in zip(mesh, places, strict=True) if len(set(row.tolist())) > 1
  )

"""Where a device's memory goes: state and batch exactly, what a step adds by what it is for.

XLA lays out all that a step adds in one heap, where arrays that are not needed at once share their
place. Each byte of it counts for the first of these kinds that ever lies there: activations kept
for the backward pass, gradients, collectives, then all else that a layer needs while it runs.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sora_jax.plan.collectives import KINDS
from sora_jax.plan.hlo import Module

HEAP_KINDS = ("activations", "gradients", "collectives", "workspace")


class Memory(NamedTuple):
  """Bytes on a device. `by_kind` sums up to `total`; `host` is what is offloaded to its host."""

  by_kind: dict[str, int]
  host: int = 0

  @property
  def total(self) -> int:
    return sum(self.by_kind.values())


class Value(NamedTuple):
  """An array in the heap: where, and the instruction that makes it."""

  name: str
  offset: int
  size: int


def shard_bytes(tree: Any) -> int:
  """Bytes of a tree of `jax.ShapeDtypeStruct`s on one device, padding of layouts not counted."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def read_heap(dump: Path) -> tuple[int, list[Value]]:
  """Size of the device's heap and its values, of XLA's dump of a buffer assignment.

  Raises:
    FileNotFoundError: there is no such dump.
  """
  files = sorted(dump.glob("*after_optimizations-buffer-assignment.txt"))
  if not files:
    raise FileNotFoundError(f"memory: XLA left no buffer assignment in {dump}.")
  largest = max(files, key=lambda file: file.stat().st_size)
  total, values, inside = 0, [], False
  for line in largest.read_text().splitlines():
    if line.startswith("allocation "):
      inside = line.endswith("preallocated-temp:") and not re.search(r"color [1-9]", line)
      total += int(line.split("size ")[1].split(",")[0]) if inside else 0
    elif inside and (found := re.match(r" value: <\d+ (\S+).*\(size=(\d+),offset=(\d+)\)", line)):
      values.append(Value(re.sub(r"\{[\d,]*\}$", "", found[1]), int(found[3]), int(found[2])))
  return total, values


def divide_heap(total: int, values: list[Value], module: Module, depth: int) -> dict[str, int]:
  """Bytes of a heap by kind, of `HEAP_KINDS`.

  Args:
    depth: of the model: what a loop over its layers collects leads with so many.
  """
  kinds = dict(_kinds(module, depth))
  by_kind, taken = {}, np.empty((0, 2), np.int64)
  for kind in HEAP_KINDS[:-1]:
    spans = [(v.offset, v.offset + v.size) for v in values if kinds.get(v.name) == kind]
    more = _union(np.concatenate([taken, np.array(spans, np.int64).reshape(-1, 2)]))
    by_kind[kind] = _length(more) - _length(taken)
    taken = more
  return {**by_kind, HEAP_KINDS[-1]: total - _length(taken)}


def _kinds(module: Module, depth: int) -> Iterator[tuple[str, str]]:
  """Name and kind of what is no workspace."""
  for computation in module.computations.values():
    for instruction in computation:
      opcode, source = instruction.opcode, instruction.source
      collects = "dynamic_update_slice" in source and any(
        shape.dims[:1] == (depth,) for shape in instruction.shapes
      )
      if opcode.removesuffix("-start").removesuffix("-done") in KINDS:
        yield instruction.name, "collectives"
      elif collects:
        yield instruction.name, "gradients" if "transpose(" in source else "activations"


def _union(spans: np.ndarray) -> np.ndarray:
  """Spans [k,2] that overlap or touch, joined."""
  joined: list[list[int]] = []
  for start, stop in spans[np.argsort(spans[:, 0])].tolist():
    if joined and start <= joined[-1][1]:
      joined[-1][1] = max(joined[-1][1], stop)
    else:
      joined.append([start, stop])
  return np.array(joined, np.int64).reshape(-1, 2)


def _length(spans: np.ndarray) -> int:
  return int((spans[:, 1] - spans[:, 0]).sum())

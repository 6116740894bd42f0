"""A compiled program as data: what XLA prints of it, parsed.

XLA's text is its only form that all of its compilers give out. Computations are in the order of
their schedule; a loop's body is a computation that its `while` names.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from data_pipeline.errors import BadInput

ITEM_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16, "token": 0, "opaque": 0}


class Shape(NamedTuple):
  """An array: XLA's name of its dtype, its sides, and its memory (0 is the device's main one)."""

  dtype: str
  dims: tuple[int, ...]
  space: int

  @property
  def size(self) -> int:
    return math.prod(self.dims)

  @property
  def nbytes(self) -> int:
    return math.ceil(self.size * item_bytes(self.dtype))


class Instruction(NamedTuple):
  """One line. `shapes` are several where the result is a tuple; `attributes` are as printed."""

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  argument: str
  attributes: str
  is_root: bool

  @property
  def nbytes(self) -> int:
    return sum(shape.nbytes for shape in self.shapes)

  def called(self, role: str) -> list[str]:
    """Names of the computations that it calls as `calls`, `body`, `condition` ..."""
    found = re.search(rf"\b{role}=(?:%([\w.\-]+)|{{([^}}]*)}})", self.attributes)
    if not found:
      return []
    return [found[1]] if found[1] else re.findall(r"%([\w.\-]+)", found[2])

  @property
  def source(self) -> str:
    """Where in the program it comes from: jax's `op_name`."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ""


class Module(NamedTuple):
  """Computations by name, and the name of the first."""

  computations: dict[str, list[Instruction]]
  entry: str

  def fused(self, instruction: Instruction) -> list[Instruction]:
    """What a fusion computes, or an asynchronous instruction wraps."""
    return [i for name in instruction.called("calls") for i in self.computations.get(name, [])]


def item_bytes(dtype: str) -> float:
  """Bytes of a number. Raises ValueError for a dtype that has no size in its name."""
  if dtype in ITEM_BYTES:
    return ITEM_BYTES[dtype]
  bits = re.match(r"[a-z]+(\d+)", dtype)
  if not bits:
    raise ValueError(f"hlo: {dtype!r} is no dtype.")
  return int(bits[1]) / 8


def parse(text: str) -> Module:
  """Reads `Compiled.as_text()`.

  Raises:
    ValueError: it is not the text of a compiled program.
  """
  computations: dict[str, list[Instruction]] = {}
  entry, current = "", None
  # Pallas' notes on a kernel go over several lines.
  text = re.sub(r"kernel_metadata=\{\n.*?\n\}\}", "}", text, flags=re.DOTALL)
  for line in text.splitlines():
    header = re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$", line)
    if header and not line.startswith("HloModule"):
      current = computations.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif line.startswith("}"):
      current = None
    elif current is not None and (instruction := _instruction(line)):
      current.append(instruction)
  if not entry:
    raise ValueError("hlo: the text has no entry computation.")
  return Module(computations, entry)


def _instruction(line: str) -> Instruction | None:
  head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
  if not head:
    return None
  rest = line[head.end() :]
  end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
  kind, rest = rest[:end], rest[end:].lstrip()
  opcode = re.match(r"[\w\-]+", rest)
  if not opcode:
    return None
  rest = rest[opcode.end() :]
  close = _closing(rest)
  inside, attributes = rest[1:close], rest[close + 1 :]
  operands = tuple(re.findall(r"%([\w.\-]+)", inside))
  return Instruction(
    head[2], opcode[0], tuple(_shapes(kind)), operands, inside, attributes, bool(head[1])
  )


def _closing(text: str) -> int:
  """Where the parenthesis that begins a text closes."""
  depth = 0
  for place, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if not depth:
      return place
  raise ValueError(f"hlo: no closing parenthesis in {text[:80]!r}.")


def _shapes(kind: str) -> Iterator[Shape]:
  for dtype, dims, layout in re.findall(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", kind):
    space = re.search(r"S\((\d+)\)", layout)
    sides = tuple(int(side.lstrip("<=")) for side in dims.split(",") if side)
    yield Shape(dtype, sides, int(space[1]) if space else 0)


def trip_count(module: Module, loop: Instruction) -> int:
  """How often the body of a `while` runs: what XLA found, else by its counter's start, step, bound.

  Raises:
    BadInput: it depends on data.
  """
  known = re.search(r'known_trip_count[^}]*?"?n"?:\s*"?(\d+)', loop.attributes)
  if known:
    return int(known[1])
  found = _counted(module, loop)
  if found is None:
    raise BadInput(
      f"plan: the loop {loop.name} ({loop.source}) runs as often as data say, so its time is not"
      " known. Choose another model.attention_backend."
    )
  return found


def _counted(module: Module, loop: Instruction) -> int | None:
  """Trips of `for (i = start; i < bound; i += step)`; None where one of these is not constant."""
  condition = {i.name: i for name in loop.called("condition") for i in _deep(module, name)}
  bounds = [v for i in condition.values() if (v := _constant(i)) is not None]
  places = {place for i in condition.values() if (place := _place(i)) is not None}
  if not bounds or not places:
    return None
  bound = max(bounds)
  inclusive = any("direction=LE" in i.attributes for i in condition.values())
  around = next((c for c in module.computations.values() if loop in c), [])
  for place in sorted(places):
    start = _start(module, around, loop, place)
    step = _step(module, loop, place)
    if start is not None and step:
      return max(0, -(-(bound + inclusive - start) // step))
  return None


def _constant(one: Instruction) -> int | None:
  whole = one.opcode == "constant" and re.fullmatch(r"-?\d+", one.argument)
  return int(one.argument) if whole and one.shapes[0].dtype[0] in "su" else None


def _place(one: Instruction) -> int | None:
  """Which element of the loop's tuple an integer scalar is taken from."""
  index = re.search(r"\bindex=(\d+)", one.attributes)
  scalar = one.opcode == "get-tuple-element" and one.shapes and not one.shapes[0].dims
  return int(index[1]) if scalar and index and one.shapes[0].dtype[0] in "su" else None


def _start(module: Module, around: list, loop: Instruction, place: int) -> int | None:
  names = {i.name: i for i in around}
  value = names.get(loop.operands[0]) if loop.operands else None
  if value is not None and value.opcode == "tuple" and place < len(value.operands):
    value = names.get(value.operands[place])
  while value is not None and value.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
    value = names.get(value.operands[0])
  return _constant(value) if value is not None else None


def _step(module: Module, loop: Instruction, place: int) -> int | None:
  """What a body adds to the counter in its place."""
  body = [i for name in loop.called("body") for i in module.computations.get(name, [])]
  names = {i.name: i for i in body}
  root = next((i for i in body if i.is_root), None)
  if root is None or root.opcode != "tuple" or place >= len(root.operands):
    return None
  value = names.get(root.operands[place])
  while value is not None and value.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
    value = names.get(value.operands[0])
  if value is None:
    return None
  inside = module.fused(value) if value.opcode == "fusion" else [value]
  sums = [i for i in inside if i.opcode == "add"]
  if not sums:
    return None
  known = {**names, **{i.name: i for i in inside}}
  parts = [known[name] for name in sums[-1].operands if name in known]
  values = [v for i in parts if (v := _constant(i)) is not None]
  if not values and value.opcode == "fusion":  # the step comes in as a parameter
    outside = [names[name] for name in value.operands if name in names]
    values = [v for i in outside if (v := _constant(i)) is not None]
  return values[0] if len(values) == 1 and values[0] > 0 else None


def _deep(module: Module, name: str) -> Iterator[Instruction]:
  for instruction in module.computations.get(name, []):
    yield instruction
    for called in instruction.called("calls") + instruction.called("to_apply"):
      yield from _deep(module, called)

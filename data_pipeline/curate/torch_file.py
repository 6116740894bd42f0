"""Reads tensors out of a file that torch saved, without torch and without unpickling.

The file is a zip archive: `archive/data.pkl` tells names, shapes and places, `archive/data/KEY`
hold the numbers. The opcodes of the former are taken apart (`pickletools`), and the few that
tensors are written with are understood here: nothing is imported or called, whatever it says.
"""

import io
import pickletools
import zipfile
from typing import Any

import numpy as np

_KINDS = {"torch FloatStorage": np.float32, "torch LongStorage": np.int64}
_TENSOR, _DICT = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG1", "NEWTRUE", "NEWFALSE", "NONE")
_TEXTS = ("STRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE")
_SHORT = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_LIST": list}
_PUT = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GET = ("GET", "BINGET", "LONG_BINGET")
_MARK = object()


def read_tensors(data: bytes) -> dict[str, np.ndarray]:
  """Reads a dict of tensors.

  Raises:
    ValueError: the file holds anything else.
  """
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    machine = _Machine(archive)
    for opcode, argument, _ in pickletools.genops(archive.read("archive/data.pkl")):
      machine.take(opcode.name, argument)
  found = machine.stack[-1] if machine.stack else None
  if not isinstance(found, dict) or not all(isinstance(x, np.ndarray) for x in found.values()):
    raise ValueError("the file holds no dict of tensors.")
  return found


class _Machine:
  """The stack and the memo that opcodes work on."""

  def __init__(self, archive: zipfile.ZipFile):
    self.stack: list[Any] = []
    self._memo: dict[int, Any] = {}
    self._archive = archive

  def take(self, name: str, argument: Any) -> None:
    """Does what an opcode says. Raises ValueError: it is none of tensors."""
    stack = self.stack
    if name in _NUMBERS or name in _TEXTS:
      stack.append({"NEWTRUE": True, "NEWFALSE": False, "NONE": None}.get(name, argument))
    elif name in _EMPTY:
      stack.append(_EMPTY[name]())
    elif name == "MARK":
      stack.append(_MARK)
    elif name == "GLOBAL":
      stack.append(_checked(argument))
    elif name == "STACK_GLOBAL":
      stack[-2:] = [_checked(" ".join(map(str, stack[-2:])))]
    elif name in _PUT:
      self._memo[len(self._memo) if argument is None else argument] = stack[-1]
    elif name in _GET:
      stack.append(self._memo[argument])
    elif name == "TUPLE":
      stack.append(tuple(self._to_mark()))
    elif name in _SHORT:
      stack[-_SHORT[name] :] = [tuple(stack[-_SHORT[name] :])]
    elif name in ("SETITEM", "SETITEMS"):
      items = self._to_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
      stack[-1].update(zip(items[::2], items[1::2], strict=True))
    elif name == "BINPERSID":
      _, kind, key, *_ = stack.pop()
      stack.append(np.frombuffer(self._archive.read(f"archive/data/{key}"), _KINDS[kind]))
    elif name == "REDUCE":
      arguments, made_by = stack.pop(), stack.pop()
      stack.append(_make_array(*arguments) if made_by == _TENSOR else {})
    elif name == "BUILD":
      stack.pop()  # what an OrderedDict knows beside its items
    elif name not in ("PROTO", "FRAME", "STOP"):
      raise ValueError(f"opcode {name} is none of tensors.")

  def _to_mark(self) -> list[Any]:
    at = next(i for i in reversed(range(len(self.stack))) if self.stack[i] is _MARK)
    items = self.stack[at + 1 :]
    del self.stack[at:]
    return items


def _checked(name: str) -> str:
  if name not in (_TENSOR, _DICT, *_KINDS):
    raise ValueError(f"{name} is no tensor of numbers.")
  return name


def _make_array(storage: np.ndarray, offset: int, shape: tuple, stride: tuple, *_: Any):
  steps = [step * storage.itemsize for step in stride]
  whole = np.ndarray(shape, storage.dtype, storage, offset * storage.itemsize, steps)
  return np.ascontiguousarray(whole)

"""Frozen dataclasses out of plain values, with errors that a user can mend."""

import collections.abc
import dataclasses
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from data_pipeline.errors import BadInput


def make(kind: Any, where: str, value: Any) -> Any:
  """Makes a value of a type, or of a dataclass whose fields a mapping names, each of its own type.

  Args:
    kind: int, float, str, bool, one of them or None, or a dataclass, `tuple[kind, ...]` or
      `Mapping[str, kind]` of such; `Any` takes what comes.
    where: name of the setting, for errors.
  Raises:
    BadInput: a name is missing or unknown, or a value of another type.
  """
  if dataclasses.is_dataclass(kind):
    if not isinstance(value, Mapping):
      raise BadInput(f"{where}={value!r} is no section. Give its settings by name.")
    hints = typing.get_type_hints(kind)
    check_names(where, set(hints), set(value))
    made = {name: make(hints[name], f"{where}.{name}", value[name]) for name in hints}
    return typing.cast(Any, kind)(**made)
  if kind is Any:
    return value
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, (list, tuple)):
      raise BadInput(f"{where}={value!r} is no tuple. Correct it.")
    return tuple(make(kind.__args__[0], where, one) for one in value)
  if typing.get_origin(kind) is collections.abc.Mapping:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
      raise BadInput(f"{where}={value!r} is no section. Give its settings by name.")
    return {name: make(kind.__args__[1], f"{where}.{name}", one) for name, one in value.items()}
  kinds = kind.__args__ if isinstance(kind, types.UnionType) else (kind,)
  is_whole = type(value) is int and abs(value) < 2**1023  # beyond it there is no float
  if float in kinds and (is_whole or isinstance(value, float)):  # NumPy's as well
    value = float(value)
  if type(value) not in kinds or value != value:
    names = " or ".join("None" if k is types.NoneType else k.__name__ for k in kinds)
    raise BadInput(f"{where}={value!r} is no {names}. Correct it.")
  return value


def check_names(where: str, wanted: set[str], given: set[str]) -> None:
  """Raises BadInput: a setting is missing, or unknown."""
  for name in sorted(wanted ^ given):
    what = "missing" if name in wanted else "unknown"
    raise BadInput(f"{where}.{name} is {what}. Its settings are {', '.join(sorted(wanted))}.")


def check_choice(where: str, value: str, known: Collection[str]) -> None:
  """Raises BadInput: the value is none of those that are known."""
  if value not in known:
    raise BadInput(f"{where}={value!r} is unknown. Use one of {', '.join(known)}.")


def check_range(where: str, value: float | None, low: float, high: float = math.inf) -> None:
  """Raises BadInput: the value lies outside; None lies inside."""
  if value is not None and not low <= value <= high:
    raise BadInput(f"{where}={value:g} is not in {low:g}..{high:g}. Correct it.")

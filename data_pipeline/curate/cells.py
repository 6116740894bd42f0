"""Reads what a cell of text may hold: a list of texts, numbers or objects, or a time.

Lists come as Python, JSON or NumPy write them: ['a', "b"], ["a", "b"], ['a' 'b'].
"""

import ast
import json
import re
import warnings
from typing import Any

_STRING = r"""(?:[uU]?'(?:[^'\\]|\\.)*'|[uU]?"(?:[^"\\]|\\.)*")"""
_STRINGS = re.compile(_STRING, re.DOTALL)
_LIST = re.compile(rf"\[\s*{_STRING}\s*(?:(?:,\s*)?{_STRING}\s*)*(?:,\s*)?\]", re.DOTALL)
_TUPLE = re.compile(
  rf"\(\s*{_STRING}\s*,\s*(?:{_STRING}\s*(?:,\s*{_STRING}\s*)*,?\s*)?\)", re.DOTALL
)
_BEGIN, _END = re.compile(r"\[\s*[uU]?['\"]"), re.compile(r"['\"]\s*,?\s*\]\Z")
_MOST_SECONDS = 1e12
_TIME = re.compile(r"(?:(?:(\d+):)?(\d{1,2}):)?((?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?)s?")


def read_texts(cell: str) -> list[str]:
  """The texts of a cell: those of a list, or the cell itself.

  Raises:
    ValueError: it begins and ends as a list of texts does, and is none.
  """
  text = cell.strip()
  if re.fullmatch(r"\[\s*\]|\(\s*\)", text):
    return []
  if _LIST.fullmatch(text) or _TUPLE.fullmatch(text):
    return [_string(found[0]) for found in _STRINGS.finditer(text)]
  if _BEGIN.match(text) and _END.search(text):
    raise ValueError(f"{text[:40]!r} begins as a list of texts and is none")
  return [cell]


def _string(literal: str) -> str:
  literal = literal.lstrip("uU")
  if "\\" not in literal:
    return literal[1:-1]
  try:
    return json.loads(literal, strict=False)
  except ValueError:
    return _evaluate(literal.replace("\n", "\\n").replace("\r", "\\r"))


def _evaluate(text: str) -> Any:
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of escapes that Python does not know, and keeps
      return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
    raise ValueError(f"{text[:40]!r} is neither JSON nor a Python literal") from error


def read_literal(value: Any) -> Any:
  """Reads a cell of JSON or Python; gives anything but text as it is.

  Raises:
    ValueError: it is neither.
  """
  if not isinstance(value, str):
    return value
  try:
    return json.loads(value)
  except (ValueError, RecursionError):
    pass
  return _evaluate(value.strip())


def read_seconds(value: Any) -> float:
  """A time: seconds, or [HH:]MM:SS[.mmm].

  Raises:
    ValueError: it is none.
  """
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    seconds = value
  else:
    found = _TIME.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found:
      raise ValueError(f"{str(value)[:40]!r} is no time. Give seconds, or HH:MM:SS.mmm")
    hours, minutes, rest = (float((part or "0").replace(",", ".")) for part in found.groups())
    seconds = 3600 * hours + 60 * minutes + rest
  if not 0 <= seconds <= _MOST_SECONDS:
    raise ValueError(f"{str(value)[:40]!r} is no time at or after 0")
  return float(seconds)

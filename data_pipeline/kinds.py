"""What a setting's value may be: kinds, and the comparison of a config with a table of them.

    TABLE = {"data.rows": whole(1), "model.patch": row(whole(1), whole(1), whole(1)), ...}
    check_settings(config, TABLE, where="config: experiments/demo.py")
Lists stand for tuples: a config that went through JSON has them.
"""

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from data_pipeline.errors import BadInput

MANY = 2**31 - 1  # of what is counted in int32, such as steps
_SHOWN = 4  # wrong values that a refusal names


class Kind(NamedTuple):
  """A kind of value.

  Attributes:
    what: in words, after "must be".
    fits: whether a value is one.
  """

  what: str
  fits: Callable[[Any], bool]


def whole(least: int = 0, most: int = MANY) -> Kind:
  """A whole number in [least, most]; True and 1.0 are none."""
  limit = f"of {least} or more" if most == MANY else f"in [{least}, {most}]"
  return Kind(f"a whole number {limit}", lambda v: type(v) is int and least <= v <= most)


def real(least: float = 0.0, most: float = math.inf, *, above: bool = False) -> Kind:
  """A finite number in [least, most], or above `least`; whole ones count, and NumPy's floats."""
  limit = f"of {least:g} or more" if most == math.inf else f"in [{least:g}, {most:g}]"
  limit = f"above {least:g}, at most {most:g}" if above and most < math.inf else limit
  limit = f"above {least:g}" if above and most == math.inf else limit

  def fits(value) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      return False
    # A whole number beyond all floats is none that can be computed with.
    is_inside = least < value if above else least <= value
    return bool(abs(value) <= 1e300 and is_inside and value <= most)

  return Kind(f"a number {limit}", fits)


FLAG = Kind("True or False", lambda value: type(value) is bool)
TEXT = Kind('text ("" for none)', lambda value: isinstance(value, str))
WORD = Kind("text, not empty", lambda value: isinstance(value, str) and bool(value.strip()))


def one_of(*known: str) -> Kind:
  """One of the words that are known."""
  return Kind(f"one of {sorted(known)}", lambda v: isinstance(v, str) and v in known)


def row(*kinds: Kind) -> Kind:
  """A tuple of so many values, each of its own kind."""
  alike = len({kind.what for kind in kinds}) == 1
  each = f"each {kinds[0].what}" if alike else ", ".join(kind.what for kind in kinds)

  def fits(value) -> bool:
    same = isinstance(value, (list, tuple)) and len(value) == len(kinds)
    return same and all(kind.fits(one) for kind, one in zip(kinds, value, strict=True))

  return Kind(f"a tuple of {len(kinds)} ({each})", fits)


def several(kind: Kind, least: int = 0) -> Kind:
  """A tuple of at least so many values of one kind."""

  def fits(value) -> bool:
    return isinstance(value, (list, tuple)) and len(value) >= least and all(map(kind.fits, value))

  count = f"{least} or more" if least else "none or more"
  return Kind(f"a tuple of {count} ({kind.what} each)", fits)


def named(kind: Kind, known: Collection[str]) -> Kind:
  """A group whose settings are some of those known, all of one kind."""

  def fits(value) -> bool:
    return isinstance(value, Mapping) and set(value) <= set(known) and all(
      kind.fits(one) for one in value.values()
    )

  return Kind(f"a group of settings, some of {sorted(known)}, each {kind.what}", fits)


class Compared(NamedTuple):
  """What is amiss in a config, each a list in its order.

  Attributes:
    lacking: names in the table that the config has not.
    unknown: names in the config that the table has not.
    wrong: one text a value that is not of its kind.
  """

  lacking: list[str]
  unknown: list[str]
  wrong: list[str]


def compare(config: Mapping, table: Mapping[str, Kind]) -> Compared:
  """Compares a config, nested mappings, with a table of dotted names."""
  found, unknown, wrong = set(), [], []
  groups = {name.rsplit(".", i)[0] for name in table for i in range(1, name.count(".") + 1)}

  def walk(group: Mapping, prefix: str) -> None:
    for key, value in group.items():
      name = f"{prefix}{key}"
      if name in table:
        found.add(name)
        if not table[name].fits(value):
          wrong.append(f"{name}={value!r} must be {table[name].what}")
      elif name not in groups:
        unknown.append(name)
      elif isinstance(value, Mapping):
        walk(value, f"{name}.")
      else:
        inside = [one for one in table if one.startswith(f"{name}.")]
        found.update(inside)
        wrong.append(f"{name}={value!r} must be a group of settings, such as {inside[0]}")

  walk(config, "")
  return Compared([name for name in table if name not in found], unknown, wrong)


def check_settings(
  config: Mapping, table: Mapping[str, Kind], where: str, file: str = "", before: Mapping = {}
) -> None:
  """Holds a config against a table.

  Args:
    config: nested mappings of plain values.
    table: dotted name -> kind; all of them are needed, and there are no others.
    where: of the complaint.
    file: that the config is from, for people; "" where it is from none.
    before: by name what new settings meant before they were some, for who has to add them.
  Raises:
    BadInput: what is lacking, all of it; else what is unknown, all of it; else the wrong values.
  """
  lacking, unknown, wrong = compare(config, table)
  of = f" ({file})" if file else ""
  if lacking:
    names = [f"{one} (as before: {before[one]!r})" if one in before else one for one in lacking]
    raise BadInput(f"{where}: {', '.join(names)} {_be(lacking)} missing{of}. Add what it lacks.")
  if unknown:
    near = [match for one in unknown for match in difflib.get_close_matches(one, table, 1)]
    advice = f"Did you mean {', '.join(near)}?" if near else "Remove what is not known."
    raise BadInput(f"{where}: {', '.join(unknown)} {_be(unknown)} no setting{of}. {advice}")
  if wrong:
    more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    raise BadInput(f"{where}: {'; '.join(wrong[:_SHOWN])}{more}{of}. Set it so.")


def _be(names: list[str]) -> str:
  return "is" if len(names) == 1 else "are"

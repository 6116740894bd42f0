"""Collects what a person is to know of an input although nothing is wrong with it.

    notes = Notes()
    notes.add("files of an operating system, passed over", "._a.mp4")
    notes.lines()  # ["1 files of an operating system, passed over (._a.mp4)"]
One kind has one line, however many names it has.
"""

from collections import Counter

_NAMED, _KEPT = 12, 1000  # names of each kind that are told, and that are known apart


class Notes:
  """Counts things by kind, and keeps the first few names of each kind."""

  def __init__(self) -> None:
    self._kinds: dict[str, dict[str, None]] = {}
    self._more: Counter[str] = Counter()
    self._lines: dict[str, None] = {}

  def add(self, kind: str, name: str) -> None:
    """Counts a name of some kind, once."""
    names = self._kinds.setdefault(kind, {})
    if len(names) < _KEPT:
      names[name] = None
    elif name not in names:
      self._more[kind] += 1

  def say(self, line: str) -> None:
    """Adds a line of its own, once."""
    self._lines[line] = None

  def lines(self) -> list[str]:
    """One line for every kind, in the order in which they came."""
    return [*self._lines, *map(self._line, self._kinds)]

  def _line(self, kind: str) -> str:
    names = list(self._kinds[kind])
    count = len(names) + self._more[kind]
    more = f", … {count - _NAMED} more" if count > _NAMED else ""
    return f"{count} {kind} ({', '.join(names[:_NAMED])}{more})"

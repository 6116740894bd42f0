"""Progress on stderr: a bar with the time left on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TaskID,
  TextColumn,
  TimeRemainingColumn,
)

QUIET_SECONDS = 10.0  # between two lines when stderr is not a terminal


def track(items: Iterable, what: str, total: int) -> Iterator:
  """Passes `items` on and shows how many of `total` went by."""
  console = Console(stderr=True)
  if not console.is_terminal:
    yield from _lines(items, what, total)
    return
  columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
  with Progress(*columns, console=console) as progress:
    yield from progress.track(items, total=total)


def _lines(items, what, total):
  begin = said = time.monotonic()
  for count, item in enumerate(items, 1):
    yield item
    now = time.monotonic()
    if now - said > QUIET_SECONDS:
      left = (now - begin) / count * (total - count)
      print(f"{what}: {count}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)
      said = now


class Meter:
  """Shows counts that are told from outside: a bar on a terminal, a line now and then elsewhere."""

  def __init__(self) -> None:
    self._console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    self._progress = Progress(*columns, TimeRemainingColumn(), console=self._console)
    self._tasks: dict[str, TaskID] = {}
    self._said = 0.0

  def __enter__(self) -> "Meter":
    if self._console.is_terminal:
      self._progress.start()
    return self

  def __exit__(self, *error) -> None:
    if self._console.is_terminal:
      self._progress.stop()

  def __call__(self, what: str, done: int, total: int) -> None:
    """So many of `total` are done."""
    if self._console.is_terminal:
      if what not in self._tasks:
        self._tasks[what] = self._progress.add_task(what, total=total)
      task = self._tasks[what]
      self._progress.update(task, completed=done)
    elif time.monotonic() - self._said > QUIET_SECONDS:
      self._said = time.monotonic()
      say(f"{what}: {done}/{total}")


def say(text: str) -> None:
  """One line on stderr."""
  print(text, file=sys.stderr, flush=True)

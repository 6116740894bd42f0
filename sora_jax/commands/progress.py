"""Progress on stderr: a bar with the time left on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator

from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TaskID,
  TextColumn,
  TimeRemainingColumn,
)

from sora_jax.train.console import Clock, Pace, format_seconds, open_console


def track(items: Iterable, what: str, total: int) -> Iterator:
  """Passes `items` on and shows how many of `total` went by. What is done soon gets no line."""
  console = open_console()
  if not console.is_terminal:
    yield from _lines(items, what, total)
    return
  columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
  with Progress(*columns, console=console) as progress:
    yield from progress.track(items, total=total)


def _lines(items, what, total):
  pace = Pace(time.monotonic)
  pace.due()
  count = said = 0
  for count, item in enumerate(items, 1):
    yield item
    if pace.due():
      said = count
      say(describe_progress(what, count, total, pace.seconds))
  if 0 < said < count:
    say(describe_progress(what, count, total, pace.seconds))


def describe_progress(
  what: str, done: int, total: int, seconds: float, *, before: int = 0, unit: str = ""
) -> str:
  """Says how far something is, how fast it goes and how long it takes, where known.

  Args:
    what, done, total: so many of `total` are done.
    seconds: that it took.
    before: of those done, how many were there at the beginning.
    unit: of what is counted.
  """
  rate = (done - before) / max(seconds, 1e-9)
  if not rate:
    return f"{what}: {done}/{total}"
  left = "" if done >= total else f", {format_seconds((total - done) / rate)} left"
  return f"{what}: {done}/{total}, {rate:.3g}{unit and ' '}{unit}/s{left}"


class _Count:
  """One kind of thing: when it was first told, how many were done, what was said last."""

  def __init__(self, done: int, clock: Clock):
    self.before, self.now, self.said, self.pace = done, (done, 0), (-1, 0), Pace(clock)


class Meter:
  """Shows counts that are told from outside: a bar on a terminal, a line now and then elsewhere.

  First and last count of each kind have their line.
  """

  def __init__(self, clock: Clock = time.monotonic) -> None:
    self._console, self._clock = open_console(), clock
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    self._progress = Progress(*columns, TimeRemainingColumn(), console=self._console)
    self._tasks: dict[str, TaskID] = {}
    self._counts: dict[str, _Count] = {}

  def __enter__(self) -> "Meter":
    if self._console.is_terminal:
      self._progress.start()
    return self

  def __exit__(self, *error) -> None:
    if self._console.is_terminal:
      self._progress.stop()
    for what in self._counts:
      self._say(what)

  def __call__(self, what: str, done: int, total: int) -> None:
    """So many of `total` are done."""
    if self._console.is_terminal:
      if what not in self._tasks:
        self._tasks[what] = self._progress.add_task(what, total=total)
      self._progress.update(self._tasks[what], completed=done, total=total)
      return
    if what not in self._counts:
      self._counts[what] = _Count(done, self._clock)
    count = self._counts[what]
    count.now = done, total
    if count.pace.due(is_last=done >= total > count.said[0]):
      self._say(what)

  def _say(self, what: str) -> None:
    count = self._counts[what]
    if count.said != count.now:
      count.said = count.now
      say(describe_progress(what, *count.now, count.pace.seconds, before=count.before))


def say(text: str) -> None:
  """One line on stderr."""
  print(text, file=sys.stderr, flush=True)

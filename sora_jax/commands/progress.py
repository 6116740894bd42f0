"""Progress on stderr: a bar with the time left on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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


def say(text: str) -> None:
  """One line on stderr."""
  print(text, file=sys.stderr, flush=True)

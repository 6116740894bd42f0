"""The console of a long job: a bar on a terminal; elsewhere lines that become rarer."""

import os
import sys
import time
from collections.abc import Callable

from rich.console import Console

EVERY_SECONDS = 10.0  # between two lines of the first minute
LATER_SECONDS = 60.0  # between those that follow
Clock = Callable[[], float]


def open_console() -> Console:
  """Stderr. What sets colours for pipes (FORCE_COLOR) does not make a terminal of one.

  A bar in a log file would be a line for each of its changes, many a second.
  """
  is_dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
  return Console(stderr=True, force_terminal=sys.stderr.isatty() and not is_dumb)


class Pace:
  """Says when a line is due: at once, every ten seconds of the first minute, then every minute."""

  def __init__(self, clock: Clock = time.monotonic):
    self._clock, self._begin, self._said = clock, clock(), -float("inf")

  @property
  def seconds(self) -> float:
    """Since the beginning."""
    return self._clock() - self._begin

  def due(self, is_last: bool = False) -> bool:
    """Tells whether a line is due now; if so, it counts as said."""
    now = self.seconds
    wait = EVERY_SECONDS if now <= LATER_SECONDS else LATER_SECONDS
    is_due = is_last or now - self._said >= wait
    if is_due:
      self._said = now
    return is_due


def format_seconds(seconds: float) -> str:
  """Hours, minutes and seconds: 0:03:00."""
  whole = round(seconds)
  return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"

"""Renditions done, how many a second and the time left, on stderr: a bar, or lines."""

import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sora_jax.commands.progress import describe_progress, say
from sora_jax.train.console import Clock, Pace, open_console

UNIT = "renditions"


class RenditionMeter:
  """Context manager that counts renditions. First and last count have their line.

  Attributes:
    count: renditions so far.

  Args:
    what: is done with them.
    total: renditions there are.
  """

  def __init__(self, what: str, total: int, clock: Clock = time.monotonic):
    self.count, self._what, self._total, self._clock = 0, what, total, clock
    console = open_console()
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn()
    rate = TextColumn(f"{{task.fields[rate]:.3g}} {UNIT}/s")
    self._bar = Progress(*columns, rate, TimeRemainingColumn(), console=console)
    self._is_terminal = console.is_terminal

  def __enter__(self) -> "RenditionMeter":
    self._pace = Pace(self._clock)
    if self._is_terminal:
      self._bar.start()
      self._task = self._bar.add_task(self._what, total=self._total, rate=0.0)
    elif self._total:
      self._show()
    return self

  def __exit__(self, *_) -> None:
    if self._is_terminal:
      self._bar.stop()
    elif self.count < self._total:
      self._show(is_last=self.count > 0)

  @property
  def seconds(self) -> float:
    """Since the beginning."""
    return self._pace.seconds

  @property
  def rate(self) -> float:
    """Renditions a second, since the beginning."""
    return self.count / max(self.seconds, 1e-9)

  def __call__(self) -> None:
    """One rendition more."""
    self.count += 1
    if self._is_terminal:
      self._bar.update(self._task, advance=1, rate=self.rate)
    else:
      self._show(is_last=self.count == self._total)

  def _show(self, is_last: bool = False) -> None:
    if self._pace.due(is_last):
      say(describe_progress(self._what, self.count, self._total, self.seconds, unit=UNIT))

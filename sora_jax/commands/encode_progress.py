"""Clips done, clips a second and the time left, on stderr: a bar on a terminal, else lines."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sora_jax.commands.progress import QUIET_SECONDS, say


class ClipMeter:
  """Context manager that counts clips.

  Attributes:
    count: clips so far.

  Args:
    what: is done with them.
    total: clips there are.
  """

  def __init__(self, what: str, total: int):
    self.count, self._what, self._total = 0, what, total
    console = Console(stderr=True)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn()
    rate = TextColumn("{task.fields[rate]:.3g} clips/s")
    self._bar = Progress(*columns, rate, TimeRemainingColumn(), console=console)
    self._is_terminal = console.is_terminal

  def __enter__(self) -> "ClipMeter":
    self._begin = self._said = time.monotonic()
    if self._is_terminal:
      self._bar.start()
      self._task = self._bar.add_task(self._what, total=self._total, rate=0.0)
    return self

  def __exit__(self, *_) -> None:
    if self._is_terminal:
      self._bar.stop()

  @property
  def seconds(self) -> float:
    """Since the beginning."""
    return time.monotonic() - self._begin

  @property
  def rate(self) -> float:
    """Clips a second, since the beginning."""
    return self.count / max(self.seconds, 1e-9)

  def __call__(self) -> None:
    """One clip more."""
    self.count += 1
    if self._is_terminal:
      self._bar.update(self._task, advance=1, rate=self.rate)
    elif time.monotonic() - self._said > QUIET_SECONDS:
      self._said = time.monotonic()
      left = (self._total - self.count) / self.rate
      say(f"{self._what}: {self.count}/{self._total}, {self.rate:.3g} clips/s, {left:.0f} s left")

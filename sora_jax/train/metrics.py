"""What a run reports: `metrics.jsonl`, TensorBoard files, a progress bar, and the rates in them."""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_pipeline.errors import BadInput
from sora_jax.parallel import hosts
from sora_jax.train.board import Board
from sora_jax.train.console import Clock, Pace, format_seconds, open_console
from sora_jax.train.lines import Lines
from sora_jax.train.stop import DiskFull


class Counts(NamedTuple):
  """What one batch holds, counted on the host.

  Attributes:
    tokens: slots that hold one; `slots`, all of them.
    flops: the model's work, padding and remat not counted.
  """

  tokens: int
  clips: int
  flops: float
  slots: int


class Meter:
  """Rates between two readings. Time inside its `with` block (compiling, saving) does not count.

  Args:
    peak: FLOP/s of the devices that work on what is counted, for `mfu`; None leaves that out.
  """

  def __init__(self, clock=time.perf_counter, peak: float | None = None):
    self._clock, self._peak = clock, peak
    self._pause = 0.0
    self._reset(0)

  def _reset(self, steps):
    self._begin, self._excluded, self._wait, self._host = self._clock(), 0.0, 0.0, 0.0
    self._steps, self._tokens, self._clips, self._flops, self._slots = steps, 0, 0, 0.0, 0

  def add(self, counts: Counts) -> None:
    """One step done, on a batch of `counts`."""
    self._steps += 1
    self._tokens += counts.tokens
    self._clips += counts.clips
    self._flops += counts.flops
    self._slots += counts.slots

  def waited(self, seconds: float) -> None:
    """Time inside `next(batches)` by whose end no step was running: a device waited for the data.

    An upper bound, since the step may have ended in the middle of it.
    """
    self._wait += seconds

  def worked(self, seconds: float) -> None:
    """Time that this host took to have the next batch ready, whether a device waited or not."""
    self._host += seconds

  def __enter__(self):
    self._pause = self._clock()
    return self

  def __exit__(self, *_):
    self._excluded += self.since_pause()

  def since_pause(self) -> float:
    """Seconds since the pause began."""
    return self._clock() - self._pause

  def read(self) -> dict[str, float]:
    """The rates since the last reading, and starts anew."""
    seconds = max(self._clock() - self._begin - self._excluded, 1e-9)
    rates = {
      "seconds": seconds,
      "step_seconds": seconds / max(1, self._steps),
      "host_seconds": self._host / max(1, self._steps),
      "tokens_per_second": self._tokens / seconds,
      "clips_per_second": self._clips / seconds,
      "model_flops_per_second": self._flops / seconds,
      "fill": self._tokens / max(1, self._slots),
      "data_wait_fraction": min(1.0, self._wait / seconds),
    }
    if self._peak:
      rates["mfu"] = self._flops / seconds / self._peak
    self._reset(0)
    return rates


def read_values(metrics: dict) -> dict:
  """Brings metrics to the host: scalars as numbers, arrays as lists. Waits for the device."""
  return {key: np.asarray(value).tolist() for key, value in metrics.items()}


def _finite(value):
  """JSON knows no NaN: null stands for a number that is not there (a bin without tokens)."""
  if isinstance(value, list):
    return [_finite(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _name_items(key: str, value) -> list[tuple]:
  """(name, number) of a metric: one, or one for each item of a list."""
  if isinstance(value, list):
    return [(f"{key}/{i:02d}", item) for i, item in enumerate(value)]
  return [(key, value)]


class MetricsWriter:
  """Writes a run's metrics into its workdir and shows them on stderr.

  Args:
    workdir: made if it is not there.
    total_steps: length of the progress bar.
    step: steps done already; TensorBoard drops what an earlier session wrote after it. `cut_back`
      does the same for `metrics.jsonl` and must be called first.

    clock: for the lines, which become rarer where stderr is no terminal; first and last are shown.

  Of several processes the first one writes and shows.
  """

  def __init__(self, workdir, *, total_steps: int, step: int = 0, clock: Clock = time.monotonic):
    self._total, self._bar, self._writes = total_steps, None, hosts.is_first()
    if not self._writes:
      return
    self._lines = Lines(Path(workdir) / "metrics.jsonl")
    self._board = Board(Path(workdir) / "tensorboard", first_step=step + 1)
    self._pace, console = Pace(clock), open_console()
    if console.is_terminal:
      columns = (
        TextColumn("train"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
      )
      self._bar = Progress(*columns, console=console)
      self._task = self._bar.add_task("", total=total_steps, completed=step)
      self._bar.start()

  def __call__(self, step: int, values: dict) -> None:
    """One line for `step`: numbers and lists of numbers by name.

    On the board, which knows no lists, their items are `name/00`, `name/01`, ...
    """
    if not self._writes:
      return
    values = {key: _finite(value) for key, value in values.items()}
    self._lines.write({"step": step, **values})
    items = [pair for key, value in values.items() for pair in _name_items(key, value)]
    self._board.add(step, {name: item for name, item in items if item is not None})
    self._show(step, values)

  def _show(self, step, values):
    shown = {key: values[key] for key in ("loss", "tokens_per_second") if key in values}
    words = [f"{key} {value:.4g}" for key, value in shown.items()]
    if self._bar:
      self._bar.update(self._task, completed=step, description=", ".join(words))
      return
    if not self._pace.due(is_last=step >= self._total):
      return
    if "step_seconds" in values:
      words.append(f"{format_seconds((self._total - step) * values['step_seconds'])} left")
    print(f"train: step {step}/{self._total}, {', '.join(words)}", file=sys.stderr, flush=True)

  def close(self) -> None:
    """Ends the bar and closes the files."""
    if self._bar:
      self._bar.stop()
    if self._writes:
      self._lines.close()
      self._board.close()

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    try:
      self.close()
    except DiskFull:
      if kind is None:  # else what ends the session says more
        raise


def read_metrics(workdir) -> list[dict]:
  """All lines of a workdir's `metrics.jsonl`, without a last one that a kill has cut off.

  Raises:
    BadInput: another line is not JSON.
  """
  path = Path(workdir) / "metrics.jsonl"
  lines = path.read_text().split("\n")[:-1] if path.exists() else []
  try:
    return [json.loads(line) for line in lines]
  except json.JSONDecodeError as error:
    raise BadInput(
      f"metrics: {path} holds a line that is not JSON ({error}). Remove that line."
    ) from error


def cut_back(workdir, step: int) -> None:
  """Removes the lines after `step`, and one that a kill has cut off: those steps will run again."""
  path = Path(workdir) / "metrics.jsonl"
  if not path.exists():
    return
  kept = [line for line in read_metrics(workdir) if line["step"] <= step]
  short = path.with_suffix(".jsonl.short")
  short.write_text("".join(json.dumps(line) + "\n" for line in kept))
  os.replace(short, path)

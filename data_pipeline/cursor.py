"""The cursor: where in a stage's stream the next batch lies. JSON-able, the same on every host."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.errors import BadInput
from data_pipeline.plans import Plans

Ranges = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cursor:
  """The next step to read.

  Attributes:
    stage, epoch, window: which window.
    bin: its first bin within the window, a multiple of the rows of a step.
    step: batches read since the stage began.
    skipped: ranges [start, stop) of the stage's steps that were jumped over, ascending.
  """

  stage: int = 0
  epoch: int = 0
  window: int = 0
  bin: int = 0
  step: int = 0
  skipped: Ranges = ()

  @property
  def position(self) -> int:
    """Step of the stage's stream, those that were jumped over counted as well."""
    return self.step + sum(stop - start for start, stop in self.skipped)

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self) | {"skipped": [list(part) for part in self.skipped]}

  @classmethod
  def from_json(cls, values: Mapping, stage: int) -> "Cursor":
    """Inverse of `to_json`. Raises BadInput: not a cursor of this stage."""
    fits = set(values) == set(cls(stage=stage).to_json()) and values["stage"] == stage
    if not fits or min(values[name] for name in values if name != "skipped") < 0:
      raise BadInput(
        f"loader: cursor={dict(values)} is not one of stage {stage} (such as "
        f"{cls(stage=stage).to_json()}). Resume from the run's own checkpoint."
      )
    skipped = tuple((start, stop) for start, stop in values["skipped"])
    return cls(**{**values, "skipped": skipped})


def check_skips(skips: Sequence[Sequence[int]], cursor: Cursor) -> Ranges:
  """The ranges that are still to be jumped over.

  Args:
    skips: ranges [start, stop) of the stage's steps, of the run's config.
    cursor: where it stands.
  Raises:
    BadInput: no ascending ranges; one that the run has read from already.
  """
  edges = [edge for part in skips for edge in part]
  pairs = all(len(part) == 2 and part[0] < part[1] for part in skips)
  if not pairs or edges != sorted(edges) or min(edges, default=0) < 0:
    raise BadInput(
      f"loader: skip_steps={tuple(skips)} are not ascending ranges (first step, step after the "
      "last). Correct data.skip_steps."
    )
  ahead = tuple((a, b) for a, b in skips if (a, b) not in cursor.skipped)
  for start, stop in ahead:
    if start < cursor.position:
      raise BadInput(
        f"loader: skip_steps=({start}, {stop}) begins before step {cursor.position} of the data, "
        "where the run stands. Resume from an earlier checkpoint, or skip later steps."
      )
  return ahead


def jump(cursor: Cursor, ahead: Ranges, plans: Plans, *, rows: int, windows: int) -> Cursor:
  """The cursor itself, or the end of the ranges that begin there, one after the other."""
  for start, stop in ahead:
    if start == cursor.position:
      moved = move(cursor, stop - start, plans, rows=rows, windows=windows)
      skipped = tuple(sorted({*cursor.skipped, (start, stop)}))
      cursor = dataclasses.replace(moved, skipped=skipped)
  return cursor


def move(cursor: Cursor, steps: int, plans: Plans, *, rows: int, windows: int) -> Cursor:
  """The cursor so many steps of the stream further; `step` counts batches and is left alone.

  Args:
    plans: by number of the window: epoch * windows + window.
    rows: bins of a step.
    windows: of an epoch.
  """
  number, step = cursor.epoch * windows + cursor.window, cursor.bin // rows + steps
  while step >= plans.steps(number):
    step -= plans.steps(number)
    number += 1
  epoch, window = divmod(number, windows)
  return dataclasses.replace(cursor, epoch=epoch, window=window, bin=step * rows)

"""Loss spikes: back to the last checkpoint, and over the data that they came with.

Source: Chowdhery et al. 2022, "PaLM", arXiv:2204.02311, sec. 5.1: going back some steps and
skipping the batches around a spike ends it; the same batches at another time do no harm.
"""

import statistics
from collections import deque
from typing import NamedTuple

from sora_jax.train.stop import Stop

LEAST = 8  # looks before there is anything to compare with


class SpikeSettings(NamedTuple):
  """Attributes:
  factor: a loss above so many medians is a spike; 0 watches for none.
  window: losses that the median is of, as often as they are logged.
  most: rollbacks of a session; one more spike stops it.
  """

  factor: float = 0.0
  window: int = 50
  most: int = 3


class Spike(Stop):
  """A loss far above those before.

  Attributes:
    step: that was looked at; the spike began after `after`.
    skip: steps of the data [first, stop) that were trained on since.
  """

  def __init__(self, text: str, *, step: int, after: int, skip: tuple[int, int]):
    super().__init__(text)
    self.step, self.after, self.skip = step, after, skip


def position(cursor: dict) -> int:
  """Step of the data that a cursor stands at, those jumped over counted."""
  return cursor.get("step", 0) + sum(stop - start for start, stop in cursor.get("skipped", ()))


class Guard:
  """Shown what was looked at, with the cursor after it; raises Spike. All processes see the same.

  Args:
    settings: of the run.
  """

  def __init__(self, settings: SpikeSettings):
    self._settings = settings
    self._losses: deque[float] = deque(maxlen=settings.window)
    self._step, self._place = 0, 0

  def begin(self, step: int, cursor: dict) -> None:
    """A session, or what follows a rollback, begins here."""
    self._step, self._place = step, position(cursor)

  def __call__(self, step: int, values: dict, cursor: dict) -> None:
    if not self._settings.factor:
      return
    loss, place = values["loss"], position(cursor)
    if len(self._losses) >= LEAST:
      usual = statistics.median(self._losses)
      if loss > self._settings.factor * usual:
        raise Spike(
          f"train: loss={loss:.4g} at step {step} is above spike.factor={self._settings.factor:g}"
          f" times the median {usual:.4g}. Lower optim.lr or optim.clip_norm, or look at the data.",
          step=step,
          after=self._step,
          skip=(self._place, place),
        )
    self._losses.append(loss)
    self._step, self._place = step, place

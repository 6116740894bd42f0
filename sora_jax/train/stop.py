"""Why a run stops before its end, and the exit code of each reason."""

import math
import signal


class Stop(RuntimeError):
  """A run that cannot go on: one clear line, and the exit code of the program."""

  exit_code = 1


class NotFinite(Stop):
  """Loss or gradients are not finite. Nothing is repaired, nothing of it is saved."""


class DiskFull(Stop):
  """A checkpoint does not fit on the disk. The one before it stays whole."""


class Preempted(Stop):
  """Asked to leave, and saved."""

  exit_code = 42


class Sigterm:
  """Notes SIGTERM, so that the loop can save between two steps.

      with Sigterm() as stop:
        fit(..., stop=stop)

  Must be entered in the main thread. The handler found is put back at the end.
  """

  def __init__(self):
    self._asked = False
    self._found = None

  def __enter__(self):
    self._found = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *_):
    signal.signal(signal.SIGTERM, self._found)

  def _note(self, *_):
    self._asked = True

  def __call__(self, step: int) -> bool:
    """Whether to save and leave after `step`."""
    return self._asked


def check_finite(values: dict, *, first: int, last: int, saved: int) -> dict:
  """Returns `values` if their `loss` and `grad_norm` are finite.

  Args:
    values: metrics of step `last`.
    first: the step after the last one that was looked at.
    saved: step of the last good checkpoint, 0 for none.
  Raises:
    NotFinite: one is not; a bad step spoils those after it, so it lies in `first` to `last`.
  """
  if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
    return values
  raise NotFinite(
    f"train: loss={values['loss']}, grad_norm={values['grad_norm']} in steps {first} to {last}."
    f" Last good checkpoint: {f'step {saved}' if saved else 'none'}; nothing was saved after it."
    " Lower optim.lr or optim.clip_norm, or look at the data of those steps."
  )

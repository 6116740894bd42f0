"""What a checkpoint that cannot be read is: damaged, removed meanwhile, or another's to read."""

import contextlib
import inspect
import sys

from data_pipeline.errors import BadInput

# In TensorStore's errors, which have no errno: no rights, room or handles, or no answer.
AWAY = (
  "PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED",
  "ABORTED", "CANCELLED", "Too many open files", "timed out", "Timeout",
)  # fmt: skip


class Damaged(BadInput):
  """A checkpoint that was saved whole and cannot be read any more."""


class Removed(BadInput):
  """A checkpoint that went while it was read, as a training removes those that it need not keep."""


def is_damage(error: Exception) -> bool:
  """Whether a damaged file may have raised it; not a slip in code, nor a store that is away."""
  if isinstance(error, OSError):  # a disk or a store that does not answer has damaged nothing
    return isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
  # Orbax raises a bare `Exception` for an array that tensorstore cannot read.
  if not isinstance(error, (ValueError, KeyError)) and type(error) is not Exception:
    return False
  return not any(word in str(error) for word in AWAY)


def name_reason(error: Exception) -> str:
  """The kind of an error and the first sentence of its text."""
  reason = str(error).strip().split("\n")[0].split(". ")[0]
  return f"{type(error).__name__}: {reason}"


@contextlib.contextmanager
def muted_readers():
  """Silences Orbax's other readers when one fails: they report to an event loop that is gone.

  They do so from threads and at any later time, so after a failure the filter stays.
  """
  shown = sys.unraisablehook

  def hook(event):
    closed = isinstance(event.exc_value, RuntimeError) and "loop is closed" in str(event.exc_value)
    if not (closed or inspect.iscoroutine(event.object)):
      shown(event)

  sys.unraisablehook = hook
  yield
  sys.unraisablehook = shown

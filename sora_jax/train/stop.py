"""Why a run stops before its end, and the exit code of each reason."""

import contextlib
import errno
import itertools
import math
import signal
from collections.abc import Iterator

from sora_jax.parallel import hosts

_sessions = itertools.count()  # of this process; the others count alike


class Stop(RuntimeError):
  """A run that cannot go on: one clear line, and the exit code of the program."""

  exit_code = 1


class NotFinite(Stop):
  """Loss, gradients or parameters are not finite: nothing is repaired, nothing of it saved."""


class DiskFull(Stop):
  """No room on the disk for what has to be written. Checkpoints that were saved stay whole."""


class NotSaved(Stop):
  """A checkpoint that was to be written is not there."""


@contextlib.contextmanager
def naming_full_disk(path) -> Iterator[None]:
  """Turns "no space left" while `path` is written into `DiskFull`."""
  try:
    yield
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise DiskFull(
      f"train: {path} cannot be written, its disk is full (checkpoints saved are whole)."
      " Make room and start again."
    ) from error


class Preempted(Stop):
  """Asked to leave, and saved."""

  exit_code = 42


def asking_signals() -> list[signal.Signals]:
  """Those that ask a command to leave: SIGTERM, and SIGHUP unless it is ignored, as by nohup."""
  is_heard = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
  return [signal.SIGTERM, *([signal.SIGHUP] if is_heard else [])]


def put_back(found: dict, *, is_leaving: bool) -> None:
  """Gives signals the handlers that were found.

  A terminal that goes sends SIGHUP more than once: who leaves for it hears no further one.
  """
  for number, handler in found.items():
    if not (is_leaving and number == signal.SIGHUP):
      signal.signal(number, handler)
    else:
      signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def leaving_at_signals(command: str) -> Iterator[None]:
  """Outside a loop that saves first, a signal ends a command where it stands: it goes on later."""
  asked = []

  def leave(number, _):
    asked.append(number)
    if number == signal.SIGHUP:
      signal.signal(number, signal.SIG_IGN)
    raise Preempted(
      f"{command}: stopped by {signal.Signals(number).name} outside the steps, nothing is lost. The"
      " same command resumes."
    )

  found = {number: signal.signal(number, leave) for number in asking_signals()}
  try:
    yield
  finally:
    put_back(found, is_leaving=bool(asked))


class Signals:
  """Notes SIGTERM, SIGHUP and the first Ctrl-C, so that the loop can save between two steps.

      with Signals() as stop:
        fit(..., stop=stop)

  Several processes leave after the same step, whichever was asked. A second Ctrl-C interrupts at
  once. Must be entered in the main thread. The handlers found are put back at the end.
  """

  def __init__(self):
    self._asked, self._said = "", False
    self._key = f"leave/{next(_sessions)}"
    self._found = {}

  def __enter__(self):
    for number in (*asking_signals(), signal.SIGINT):
      self._found[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_):
    put_back(self._found, is_leaving=bool(self._asked))

  def _note(self, number, _):
    self._asked = signal.Signals(number).name
    if number == signal.SIGINT:
      signal.signal(number, self._found[number])

  def __call__(self, step: int) -> str:
    """The signal for which to save and leave after `step`; "" to go on.

    Asked in `step`, a process names the second step after it. All see this in time: whoever asks
    here for that step has finished the one before, which needed the naming process to have begun
    it, and that it did after it had said so. None asks here earlier for a later step.
    """
    if hosts.count() == 1:
      return self._asked
    if self._asked and not self._said:
      who = f"{self._asked} to process {hosts.index()}"
      hosts.say_once(self._key, {"step": step + 2, "why": who})
      self._said = True
    agreed = hosts.heard(self._key)
    return agreed["why"] if agreed and step >= agreed["step"] else ""


def check_finite(values: dict, *, first: int, last: int, saved: int) -> dict:
  """Returns `values` if their `loss`, `grad_norm` and `param_norm` are finite.

  Args:
    values: metrics of step `last`.
    first: the step after the last one that was looked at.
    saved: step of the last good checkpoint, 0 for none.
  Raises:
    NotFinite: one is not; a bad step spoils those after it, so it lies in `first` to `last`.
  """
  looked_at = {name: values[name] for name in ("loss", "grad_norm", "param_norm")}
  if all(map(math.isfinite, looked_at.values())):
    return values
  found = ", ".join(f"{name}={value}" for name, value in looked_at.items())
  raise NotFinite(
    f"train: {found} in steps {first} to {last}."
    f" Last good checkpoint: {f'step {saved}' if saved else 'none'}; nothing was saved after it."
    " Lower optim.lr or optim.clip_norm, or look at the data of those steps."
  )

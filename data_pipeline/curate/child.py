"""Runs a function in a process of its own, so that what it does to that process hurts nobody else.

    caller ── keeper ── worker ── whatever the worker starts

The caller waits. The keeper, a small process that never sees the data, looks at the others twenty
times a second. It kills all of them when the time is up, when they hold too much memory, when the
caller is gone, and when the worker is done. Orphans of the worker become the keeper's children, so
none escapes it; and should the keeper itself be killed, the kernel kills the worker.

Bounds, for each call at a time:
  * memory: the worker and its descendants are killed once they hold more than `memory_bytes` of
    RSS together. Between two looks no one process can own more than `memory_bytes` + `SLACK_BYTES`
    of private memory (RLIMIT_DATA). The keeper holds about 15 MiB.
  * time: `seconds`, and at most ten more until the caller has its answer.
  * answer: `ANSWER_BYTES`.
Off Linux orphans do not become the keeper's children, and a killed keeper leaves the worker alone:
there only what still has its parents is killed.
"""

import errno
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")

SLACK_BYTES = 512 << 20  # stacks of threads and the like, which take room but are not filled
ANSWER_BYTES = 64 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of an OSError: no fault of what is worked on
_KNOWN = {  # what answers may name
  ("builtins", "OSError"),
  ("data_pipeline.curate.child", "ChildFailed"),
  ("data_pipeline.curate.types", "Refused"),
  ("data_pipeline.errors", "BadInput"),
}
_GRACE_SECONDS = 10.0
_ROOT = str(Path(__file__).parents[2])
_KEEP = "import sys; sys.path.insert(0, {!r}); from data_pipeline.curate.keeper import keep; keep()"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ChildFailed(Exception):
  """The worker gave no result.

  Args:
    reason: "timeout", "memory" or "crashed" (a signal, an exit, or an exception other than those
      that `run_in_child` raises).
    detail: a line for a person.
  """

  def __init__(self, reason: str, detail: str = ""):
    super().__init__(reason, detail)
    self.reason, self.detail = reason, detail

  def __str__(self) -> str:
    return f"{self.reason}: {self.detail}"


class Job(NamedTuple):
  """What the keeper is told."""

  path: list[str]
  call: bytes  # pickled (function, argument): to be read only after `path` is set
  seconds: float
  memory_bytes: int
  caller: int


def run_in_child(
  function: Callable[[Argument], Result], argument: Argument, *, seconds: float, memory_bytes: int
) -> Result:
  """`function(argument)`, run in a fresh process, from which nothing remains afterwards.

  Args:
    function: of a module that can be imported; what it takes can be pickled, what it returns are
      plain values (numbers, texts, bytes and builtin containers).
    argument: its only argument.
    seconds: wall-clock time it may take, the start of the process (about 0.1 s) included.
    memory_bytes: RSS that it and its descendants may reach.
  Raises:
    ChildFailed: it was killed, or crashed.
    Refused, BadInput: as the function raised them.
    OSError: likewise, if it is one of `FULL`.
  """
  path = [str(Path(entry).absolute()) for entry in sys.path]
  job = Job(path, pickle.dumps((function, argument)), seconds, memory_bytes, os.getpid())
  keeper = subprocess.Popen(
    [sys.executable, "-c", _KEEP.format(_ROOT)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    start_new_session=True,
    env=os.environ | _ONE_THREAD,
  )
  try:
    answer, _ = keeper.communicate(pickle.dumps(job), timeout=seconds + _GRACE_SECONDS)
  except subprocess.TimeoutExpired:
    raise ChildFailed("timeout", f"the keeper did not answer after {seconds:g} s") from None
  finally:
    _dismiss(keeper)
  return _opened(answer)


def _dismiss(keeper: subprocess.Popen) -> None:
  """Ends the keeper, which ends the others first."""
  if keeper.poll() is None:
    keeper.terminate()
    try:
      keeper.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
      keeper.kill()
      keeper.wait()
  for pipe in (keeper.stdin, keeper.stdout):
    if pipe:
      pipe.close()


class _Answers(pickle.Unpickler):
  """Reads plain values and our exceptions: a worker that hostile media took over calls nothing."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _KNOWN:
      raise ChildFailed("crashed", f"its answer names {module}.{name}")
    return super().find_class(module, name)


def _opened(answer: bytes) -> Any:
  """The result in an answer: one letter of its kind, and a pickle."""
  if not answer:
    raise ChildFailed("crashed", "the keeper was killed")
  kind = answer[:1]
  try:
    content = _Answers(io.BytesIO(answer[1:])).load()
  except ChildFailed:
    raise
  except Exception as error:
    raise ChildFailed("crashed", f"its answer cannot be read ({error!r})") from error
  if kind == b"R":
    return content
  raise content if isinstance(content, Exception) else ChildFailed("crashed", "its answer is odd")

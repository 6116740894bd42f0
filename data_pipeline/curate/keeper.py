"""The keeper of `run_in_child`: watches the process that does the work, and kills what must end.

It starts with this module alone and forks the worker before anything heavy is imported. The rules
and bounds are in `child`.
"""

import ctypes
import faulthandler
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from data_pipeline.curate.child import ANSWER_BYTES, FULL, SLACK_BYTES, ChildFailed, Job
from data_pipeline.curate.types import Refused
from data_pipeline.errors import BadInput

_GRACE_SECONDS = 5.0
_LOOK_SECONDS = 0.05
_TAIL_BYTES = 4000  # of what the worker printed, for the detail
_LINUX = sys.platform == "linux"
_PARENT_DEATH_SIGNAL, _SUBREAPER = 1, 36  # linux/prctl.h


def keep() -> None:
  """The keeper's whole life: reads a job, watches its worker, answers."""
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
  job = Job(*pickle.load(sys.stdin.buffer))
  _prctl(_SUBREAPER, 1)
  answer = b""
  try:
    answer = _watch(job)
  finally:
    _kill_descendants()
    with suppress(BrokenPipeError):  # the caller is gone
      sys.stdout.buffer.write(answer)
      sys.stdout.buffer.flush()
    os._exit(0)


def _watch(job: Job) -> bytes:
  """Starts the worker, and waits until it has ended, or for a reason to stop it."""
  deadline = time.monotonic() + job.seconds
  worker, answers, prints = _start(job)
  heard = {answers: bytearray(), prints: bytearray()}
  waiting, ended, status, ready = {answers, prints}, 0, 0, []
  while not ended or ready:  # once it has ended, what is in the pipes is all; others may hold them
    if not ended:
      ended, status = os.waitpid(worker, os.WNOHANG)
    ready, _, _ = select.select(list(waiting), [], [], _pause(ended, answers in waiting))
    for pipe in ready:
      heard[pipe] += (data := os.read(pipe, 1 << 16))
      waiting -= set() if data else {pipe}
    del heard[prints][:-_TAIL_BYTES]
    if fault := _fault(job, deadline, len(heard[answers])):
      return _packed(fault)
  if status == 0 and heard[answers]:
    return bytes(heard[answers])
  return _packed(_cause(status, bytes(heard[prints])))


def _pause(ended: int, is_answering: bool) -> float:
  """Seconds to wait for the pipes: no more than it takes to end, once the answer is there."""
  return 0 if ended else _LOOK_SECONDS if is_answering else 0.001


def _fault(job: Job, deadline: float, answer_bytes: int) -> ChildFailed | None:
  """Why the worker has to be stopped now, if it has to."""
  if os.getppid() != job.caller:
    return ChildFailed("crashed", "the caller is gone")
  if time.monotonic() > deadline:
    return ChildFailed("timeout", f"took more than {job.seconds:g} s")
  if answer_bytes > ANSWER_BYTES:
    return ChildFailed("crashed", f"its answer is longer than {ANSWER_BYTES} bytes")
  if (held := sum(family(os.getpid()).values())) > job.memory_bytes:
    return ChildFailed("memory", f"held {held >> 20} MiB, more than {job.memory_bytes >> 20} MiB")
  return None


def _cause(status: int, printed: bytes) -> ChildFailed:
  """Why the worker ended without an answer, from its status and the end of what it printed."""
  text = printed.decode(errors="replace").strip()
  if any(word in text for word in ("bad_alloc", "Cannot allocate memory", "MemoryError")):
    return ChildFailed("memory", "an allocation failed")
  code = os.waitstatus_to_exitcode(status)
  detail = f"signal {-code}" if code < 0 else f"left with code {code}"
  return ChildFailed("crashed", f"{detail}: {_innermost(text)}" if text else detail)


def _innermost(text: str) -> str:
  """Where it crashed, by the stack that faulthandler printed, or else the last line printed."""
  lines = [line.strip() for line in text.splitlines()]
  places = [line for line in lines if line.startswith("File ")]
  return places[0] if places and "Fatal Python error" in text else lines[-1]


def _packed(failure: Exception) -> bytes:
  return b"E" + pickle.dumps(failure)


def _start(job: Job) -> tuple[int, int, int]:
  """Forks the worker: its process id, and the pipes of its answer and of what it prints."""
  answers, answer = os.pipe()
  prints, print_to = os.pipe()
  worker = os.fork()
  if worker == 0:
    os.close(answers)
    _work(job, answer, print_to)
  os.close(answer)
  os.close(print_to)
  return worker, answers, prints


def _kill_descendants() -> None:
  """Kills until there is none left: a killed one's children become this process's own."""
  give_up = time.monotonic() + _GRACE_SECONDS
  while time.monotonic() < give_up:
    for pid in family(os.getpid()):
      _signal(pid, signal.SIGKILL)
    try:
      while os.waitpid(-1, os.WNOHANG)[0]:
        pass
    except ChildProcessError:
      return
    time.sleep(0.001)


def _signal(pid: int, number: int) -> None:
  try:
    os.kill(pid, number)
  except ProcessLookupError:
    pass


def family(pid: int) -> dict[int, int]:
  """RSS in bytes of every descendant of a process, by process id."""
  if not _LINUX:
    return _family_by_ps(pid)
  found, new = {}, _children(pid)
  while new:
    found |= {child: _resident_bytes(child) for child in new}
    new = [grandchild for child in new for grandchild in _children(child)]
  return found


def _children(pid: int) -> list[int]:
  try:
    tasks = os.listdir(f"/proc/{pid}/task")
    lists = [Path(f"/proc/{pid}/task/{task}/children").read_text() for task in tasks]
  except (FileNotFoundError, ProcessLookupError):
    return []  # it has ended, or a thread of it has: the next look sees what is left
  return [int(child) for text in lists for child in text.split()]


def _resident_bytes(pid: int) -> int:
  try:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
  except (FileNotFoundError, ProcessLookupError):
    return 0


def _family_by_ps(pid: int) -> dict[int, int]:
  with subprocess.Popen(["ps", "-axo", "pid=,ppid=,rss="], stdout=subprocess.PIPE) as ps:
    rows = [[int(cell) for cell in row.split()] for row in ps.communicate()[0].splitlines()]
  found, parents = {}, {pid}
  while parents:
    new = {row[0]: row[2] << 10 for row in rows if row[1] in parents and row[0] != ps.pid}
    found |= new
    parents = set(new)
  return found


def _prctl(option: int, value: int) -> None:
  if _LINUX and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
    raise OSError(ctypes.get_errno(), "prctl")


def _work(job: Job, answer: int, print_to: int) -> NoReturn:
  """The worker's whole life: runs the function, sends its result or why there is none."""
  try:
    _settle(job, print_to)
    data = _called(job)
    with os.fdopen(answer, "wb") as pipe:
      pipe.write(data)
  except BaseException:
    traceback.print_exc()  # before its output is a pipe, the caller's own
  finally:
    sys.stderr.flush()
    os._exit(0)


def _settle(job: Job, print_to: int) -> None:
  """Dies with the keeper; has no input, a bounded heap, no core file; prints into a pipe."""
  _prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  most = job.memory_bytes + SLACK_BYTES
  resource.setrlimit(resource.RLIMIT_DATA, (most, most))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  with open(os.devnull) as nothing:
    os.dup2(nothing.fileno(), 0)
  os.dup2(print_to, 1)
  os.dup2(print_to, 2)
  sys.path[:] = job.path
  faulthandler.enable()


def _called(job: Job) -> bytes:
  """The answer: "R" and the result, or "E" and the exception to raise."""
  try:
    function, argument = pickle.loads(job.call)
    return b"R" + pickle.dumps(function(argument))
  except (Refused, BadInput) as error:
    return _packed(error)
  except MemoryError:
    return _packed(ChildFailed("memory", "an allocation failed"))
  except BaseException as error:
    if isinstance(error, OSError) and error.errno in FULL:
      return _packed(OSError(error.errno, error.strerror))
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
    return _packed(ChildFailed("crashed", text))

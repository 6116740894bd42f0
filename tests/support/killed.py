"""Kills a job at every step it takes on the file system, and looks at what is left each time."""

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

STEPS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "open"}


def kill_at_every_step(
  folder: Path, prepare: Callable, job: Callable, recover: Callable, every: int = 1
) -> int:
  """Runs `job` again and again, killed before its first step, its second, … until it ends.

  Each call is a forked process of its own, so the caller must have no threads yet.

  Args:
    folder: emptied before each.
    prepare: makes what the job finds; once, its result is copied.
    job: killed. The steps are those of `STEPS` below the folder.
    recover: looks at what is left and goes on; raises if something is lost.
    every: how many steps lie between two kills.
  Returns:
    Steps of the whole job.
  """
  ready = folder.with_name(f"{folder.name}-ready")
  ready.mkdir(parents=True)
  assert _in_child(lambda: prepare(ready)) == 0
  step, code = 0, 9
  while code == 9:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ready, folder)
    code = _in_child(lambda: job(folder), dies_at=step, below=str(folder))
    assert code in (0, 9), f"the job failed with {code} at step {step}"
    assert _in_child(lambda: recover(folder)) == 0, f"killed at step {step}"
    step += every
  return step - every


def _in_child(call: Callable, *, dies_at: int | None = None, below: str = "") -> int:
  child = os.fork()
  if child:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  code = 1
  try:
    if dies_at is not None:
      sys.addaudithook(_killer(dies_at, below))
    call()
    code = 0
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stderr.flush()
    os._exit(code)


def _killer(dies_at: int, below: str) -> Callable:
  seen = -1

  def hook(event: str, arguments: tuple) -> None:
    nonlocal seen
    if event in STEPS and _changes(event, arguments, below):
      seen += 1
      if seen == dies_at:
        os._exit(9)

  return hook


def _changes(event: str, arguments: tuple, below: str) -> bool:
  """Whether an event is one below the folder; `shutil.rmtree` names files within a folder only."""
  if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
    return False
  names = [os.fsdecode(name) for name in arguments if isinstance(name, (str, bytes, Path))]
  return any(below in name for name in names) or (event != "open" and not names[0].startswith("/"))

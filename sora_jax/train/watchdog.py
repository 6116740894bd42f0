"""A run that stands still is ended: every process says where it stands, and who is missing.

A thread beside the loop compares the time since the last sign of progress with the bound of what is
being done, and tells the other processes, and a supervisor, where this one is.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from sora_jax.parallel import heartbeat, hosts
from sora_jax.train.workdir import send_file, url_of

STACKS = "stacks"  # folder of the workdir
_ANSWER_SECONDS = 10.0  # that the coordinator has to answer


class Place(NamedTuple):
  """Where a process is: what it does, in or after which step."""

  phase: str
  step: int

  def __str__(self):
    return f"{self.phase}, step {self.step}"


class Watchdog:
  """Ends the process when a phase takes longer than its bound.

      with Watchdog(workdir, {"start": 1800, "step": 600}) as at:
        at("step", 12)

  Args:
    workdir: `stacks/process-N.txt` is written there.
    bounds: seconds, by phase.
    end: called with the reason in place of ending the process.
  """

  def __init__(
    self,
    workdir: Path,
    bounds: dict[str, float],
    end: Callable[[str], None] | None = None,
  ):
    self._workdir, self._bounds, self._end = Path(workdir), bounds, end or _end
    self._place, self._waited = Place("start", 0), 0.0
    self._tick = min(2.0, max(0.05, min(bounds.values()) / 10))
    self._done = threading.Event()
    self._threads = [threading.Thread(target=self._watch, name="watchdog", daemon=True)]
    if hosts.count() > 1:  # apart: it stands still where the coordinator does
      self._threads.append(threading.Thread(target=self._tell, name="teller", daemon=True))

  def __call__(self, phase: str, step: int) -> None:
    """Progress: `phase` begins, in or after `step`."""
    self._place, self._waited = Place(phase, step), 0.0

  def __enter__(self):
    for thread in self._threads:
      thread.start()
    return self

  def __exit__(self, *_):
    self._done.set()
    self._threads[0].join()

  def _watch(self) -> None:
    last = time.monotonic()
    while not self._done.wait(self._tick):
      now = time.monotonic()
      # No more than it slept: a process that was stopped and goes on has not been idle meanwhile.
      self._waited += min(now - last, 2 * self._tick)
      last = now
      heartbeat.tell_place(str(self._place))
      if self._waited > self._bounds[self._place.phase]:
        self._end(self._report())
        return

  def _tell(self) -> None:
    beat = 0
    while not self._done.wait(self._tick):
      beat += 1
      try:
        hosts.say(f"alive/{hosts.index()}", [beat, *self._place])
      except Exception:  # the coordinator is gone: those who wait for it find out by themselves
        return

  def _report(self) -> str:
    """Writes the stacks of all threads; says where this process stands and who is missing."""
    place, waited = self._place, self._waited
    file = self._workdir / STACKS / f"process-{hosts.index()}.txt"
    with_stacks = ""
    try:
      file.parent.mkdir(parents=True, exist_ok=True)
      with file.open("a") as out:
        out.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {place}\n")
        faulthandler.dump_traceback(out, all_threads=True)
      send_file(self._workdir, file, _ANSWER_SECONDS)
      place_of_file = f"{url_of(self._workdir) or self._workdir}/{STACKS}/{file.name}"
      with_stacks = f" Stacks of all threads: {place_of_file}"
    except OSError:
      faulthandler.dump_traceback(sys.stderr, all_threads=True)
    return f"train: nothing moved for {waited:.0f} s ({place}).{self._missing()}{with_stacks}"

  def _missing(self) -> str:
    if hosts.count() == 1:
      return ""
    found: list[dict] = []

    def look():
      try:
        found.append(hosts.heard_from("alive"))
        time.sleep(max(1.0, 3 * self._tick))
        found.append(hosts.heard_from("alive"))
      except Exception:
        return

    asker = threading.Thread(target=look, daemon=True)
    asker.start()
    asker.join(_ANSWER_SECONDS)
    if len(found) < 2:
      return f" The coordinator does not answer: {hosts.name_first()} is missing."
    return describe_missing(found[0], found[1], hosts.count())


def describe_missing(before: dict, now: dict, processes: int) -> str:
  """Who shows no sign of life, else who is behind; of two looks at [beat, phase, step]."""
  silent = [i for i in range(processes) if now.get(i) is None or now[i] == before.get(i)]
  if silent:
    return f" No sign of life of {hosts.name_processes(silent)}."
  least = min(step for _, _, step in now.values())
  behind = [i for i, (_, _, step) in now.items() if step == least]
  if len(behind) < processes:
    doing = ", ".join(sorted({now[i][1] for i in behind}))
    return f" {hosts.name_processes(behind)} behind, at step {least} ({doing})."
  return " All processes are alive, and at the same step."


def _end(reason: str) -> NoReturn:
  print(reason, file=sys.stderr, flush=True)
  os._exit(1)  # the main thread does not come back from where it is

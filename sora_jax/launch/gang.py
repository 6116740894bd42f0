"""Processes of one run on this machine: started together, watched, ended together."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from sora_jax.parallel import heartbeat

_FIRST_BEAT = 60.0  # seconds that a process has for its first sign of life


class Devices(NamedTuple):
  """What each process of a gang has of the machine's devices; 0 leaves it to JAX.

  Attributes:
    cpus: CPU devices a process.
    gpus: GPUs a process, the first ones to process 0.
  """

  cpus: int = 0
  gpus: int = 0

  def variables(self, number: int) -> dict[str, str]:
    """Of a process, by its number."""
    found = {"JAX_NUM_CPU_DEVICES": str(self.cpus)} if self.cpus else {}
    if self.gpus:
      mine = range(number * self.gpus, (number + 1) * self.gpus)
      found["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, mine))
    return found


class Gang:
  """A context: leaving it kills what still runs.

  Args:
    words: command line of each process.
    count: of the processes.
    devices: of each.
  """

  def __init__(self, words: Sequence[str], count: int, devices: Devices):
    self._words, self._count, self._devices = list(words), count, devices
    self._folder = Path(tempfile.mkdtemp(prefix="sora-launch-"))
    self._processes: list[subprocess.Popen] = []
    self._threads: list[threading.Thread] = []
    self._beats: dict[int, tuple[int, float]] = {}
    self._begun = time.monotonic()

  def __enter__(self):
    address = f"127.0.0.1:{heartbeat.free_port()}"
    for number in range(self._count):
      variables = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(self._count),
        "JAX_PROCESS_ID": str(number),
        heartbeat.FOLDER: str(self._folder),
        heartbeat.SUPERVISOR: str(os.getpid()),
      }
      process = subprocess.Popen(
        self._words,
        env=os.environ | variables | self._devices.variables(number),
        stdin=subprocess.DEVNULL,
        stdout=None if number == 0 else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a terminal's Ctrl-C is for the supervisor
      )
      self._processes.append(process)
      copier = threading.Thread(target=_copy, args=(process.stderr, f"[{number}] "), daemon=True)
      copier.start()
      self._threads.append(copier)
    return self

  def __exit__(self, *_):
    self.kill()
    for thread in self._threads:
      thread.join(5)
    shutil.rmtree(self._folder, ignore_errors=True)

  @property
  def seconds(self) -> float:
    """Since the start."""
    return time.monotonic() - self._begun

  def codes(self) -> list[int | None]:
    """Exit codes by number, minus the signal where one ended it; None: it runs."""
    return [process.poll() for process in self._processes]

  def pids(self) -> list[int]:
    return [process.pid for process in self._processes]

  def silent(self, seconds: float) -> dict[int, str]:
    """Running processes without a sign of life for so long, and what they were doing."""
    found, now = {}, time.monotonic()
    for number, code in enumerate(self.codes()):
      if code is not None:
        continue
      file, place, beat = self._folder / f"process-{number}", "starting", 0
      if file.exists():
        beat, place = file.stat().st_mtime_ns, file.read_text()
      # By changes that this clock saw: the machine's own may be set, or have slept.
      if self._beats.get(number, (None, 0.0))[0] != beat:
        self._beats[number] = (beat, now if beat else now + _FIRST_BEAT)
      if now - self._beats[number][1] > seconds:
        found[number] = place
    return found

  def send(self, number: int) -> None:
    """Sends a signal to every process that runs."""
    for process in self._processes:
      if process.poll() is None:
        process.send_signal(number)

  def kill(self) -> None:
    """Ends all, and what they started: a hung process ignores anything less."""
    for process in self._processes:
      try:
        os.killpg(process.pid, signal.SIGKILL)
      except ProcessLookupError:
        pass
    for process in self._processes:
      process.wait()


def _copy(source: IO[bytes] | None, mark: str) -> None:
  """Passes a process's lines on, marked with its number; whether anybody reads them or not."""
  assert source is not None
  with source:
    for line in source:
      with contextlib.suppress(OSError, ValueError):  # nobody reads them, or there is no room
        sys.stderr.write(mark + line.decode(errors="replace"))
        sys.stderr.flush()

"""Signs of life for a supervisor on the same machine: the age of a file that a thread writes.

Nothing heavy is imported, so that a process shows them from its first second on.
"""

import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
from pathlib import Path

FOLDER = "SORA_HEARTBEATS"  # variable: the folder that a supervisor watches
SUPERVISOR = "SORA_SUPERVISOR"  # variable: its process, which this one does not outlive
_PARENT_DEATH_SIGNAL = 1  # linux/prctl.h
SECONDS = 1.0  # between two
DUMP = signal.SIGUSR1  # asks for the stacks of all threads, on stderr

_place = "starting"


def show_life(environment=os.environ) -> None:
  """Begins to, where a supervisor asks for it; once a process, from the main thread."""
  folder = environment.get(FOLDER)
  if not folder:
    return
  _die_with(int(environment.get(SUPERVISOR, "0")))
  faulthandler.register(DUMP, all_threads=True)
  file = Path(folder) / f"process-{environment.get('JAX_PROCESS_ID', '0')}"
  threading.Thread(target=_beat, args=(file,), name="heartbeat", daemon=True).start()


def _die_with(supervisor: int) -> None:
  """No process outlives a killed supervisor (Linux)."""
  if not supervisor or sys.platform != "linux":
    return
  ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
  if os.getppid() != supervisor:  # it was killed before
    os._exit(1)


def free_port() -> int:
  """A port of the loopback interface that nobody listens on."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def tell_place(place: str) -> None:
  """What the process is doing, for the supervisor to say."""
  global _place  # noqa: PLW0603 (one process, one place)
  _place = place


def _beat(file: Path) -> None:
  wait = threading.Event()
  while True:
    try:
      file.write_text(_place)
    except OSError:  # a full disk; or the supervisor is gone, and its folder with it
      if not file.parent.is_dir():
        return
      with contextlib.suppress(OSError):
        os.utime(file)
    wait.wait(SECONDS)

"""How long the command has been running: what a restart costs, imports and all."""

import os
import time
from pathlib import Path

_IMPORTED = time.monotonic()
_commands: list[float] = []  # when each command of this process began


def begin_command() -> None:
  """A command begins: the first of a process began with it, imports and all."""
  now = time.monotonic()
  _commands.append(now if _commands else now - _process_seconds())


def command_seconds() -> float:
  """Wall seconds since the command under way began; outside of one, since the process did."""
  return time.monotonic() - _commands[-1] if _commands else _process_seconds()


def _process_seconds() -> float:
  """Since the process began; without /proc, since this module was imported."""
  try:
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return uptime - int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22, of proc(5)
  except (OSError, ValueError, IndexError):
    return time.monotonic() - _IMPORTED

"""How long this process has been running: what a restart costs, imports and all."""

import os
import time
from pathlib import Path

_IMPORTED = time.monotonic()


def process_seconds() -> float:
  """Wall seconds since the process began; without /proc, since this module was imported."""
  try:
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return uptime - int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22, of proc(5)
  except (OSError, ValueError, IndexError):
    return time.monotonic() - _IMPORTED

"""`events.jsonl`: what happened to a run, and when, over all its restarts."""

import os
import time
from pathlib import Path

from sora_jax.parallel import hosts
from sora_jax.train.age import command_seconds
from sora_jax.train.lines import Lines
from sora_jax.train.stop import DiskFull


class Events:
  """Appends one JSON object per event: `event`, `time` (Unix seconds) and what the caller adds.

  As a context it writes `start` (with the age of its command) and `stop` (with the reason) around a
  session. Of several processes the first one writes. `goodput.py` reads them.
  """

  def __init__(self, workdir):
    self._lines = Lines(Path(workdir) / "events.jsonl") if hosts.is_first() else None

  def __call__(self, event: str, **facts) -> None:
    if self._lines:
      self._lines.write({"event": event, "time": round(time.time(), 3), **facts})

  def __enter__(self):
    self("start", pid=os.getpid(), processes=hosts.count(), age=round(command_seconds(), 3))
    return self

  def __exit__(self, kind, error, _):
    try:
      self("stop", reason="done" if kind is None else kind.__name__)
    except DiskFull:
      if kind is None:  # else what ends the session says more
        raise
    finally:
      if self._lines:
        self._lines.close()

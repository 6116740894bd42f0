"""TensorBoard's files, written at once: a full disk stops the caller, not a thread of its own."""

import os
import time
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

from sora_jax.train.stop import naming_full_disk

# Generated modules, whose names a type checker does not see.
Event: Any = getattr(event_pb2, "Event")  # noqa: B009
SessionLog: Any = getattr(event_pb2, "SessionLog")  # noqa: B009
Summary: Any = getattr(summary_pb2, "Summary")  # noqa: B009


class Board:
  """Writes scalars for TensorBoard.

  Args:
    folder: made if it is not there.
    first_step: of this session; TensorBoard drops what an earlier one wrote from it on.
  """

  def __init__(self, folder: Path, first_step: int):
    folder.mkdir(parents=True, exist_ok=True)
    self._folder = folder
    with naming_full_disk(folder):
      # Two sessions may begin in one second, which is all that the name has of the time.
      self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
    start = SessionLog(status=SessionLog.START)
    self._write(Event(wall_time=time.time(), step=first_step, session_log=start))

  def add(self, step: int, scalars: dict[str, float]) -> None:
    """Scalars of a step, by tag. Raises DiskFull."""
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

  def _write(self, event) -> None:
    with naming_full_disk(self._folder):
      self._writer.write_event(event)
      self._writer.flush()

  def close(self) -> None:
    with naming_full_disk(self._folder):
      self._writer.close()

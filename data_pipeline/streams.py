"""Standard streams that cannot end a process: what a reader, terminal or disk refuses is dropped.

A pipe to `head`, a terminal that was closed and a log on a full disk raise OSError in whoever says
a line, at any place of a job. A disk may have room again, so later lines are tried all the same.
"""

import contextlib
import errno
import io
import os
import select
import sys
from typing import TextIO

_PATIENCE = 1.0  # seconds that a reader has to make room in a pipe that does not wait
_GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET)  # the reader: there is nobody to tell it to


class _Lossy(io.FileIO):
  """A file descriptor that takes all bytes, written or not.

  Attributes:
    failure: why the last bytes that were lost could not be written.
  """

  failure: OSError | None = None

  def write(self, data) -> int:
    try:
      done = super().write(data)
      if done is None:  # a pipe that does not wait, and is full
        select.select([], [self.fileno()], [], _PATIENCE)
        done = super().write(data)
      return len(memoryview(data)) if done is None else done
    except OSError as error:
      self.failure = error
      return len(memoryview(data))


def guard() -> None:
  """Makes stdout and stderr of this process such streams, and opens those that it has not."""
  for number in (0, 1, 2):
    _open_missing(number)
  for number, name in ((1, "stdout"), (2, "stderr")):
    stream = getattr(sys, name)
    with contextlib.suppress(AttributeError, OSError, ValueError):  # None where it was closed
      stream.flush()
    guarded = _wrap(number, stream)
    setattr(sys, name, guarded)
    setattr(sys, f"__{name}__", guarded)


def _open_missing(number: int) -> None:
  """A descriptor that is closed would be that of the next file: a log would go into a dataset."""
  try:
    os.fstat(number)
  except OSError:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
      os.dup2(null, number)
      os.close(null)


def _wrap(number: int, stream: TextIO | None) -> io.TextIOWrapper:
  raw = _Lossy(number, "w", closefd=False)
  by_lines = number == 2 or raw.isatty() or getattr(stream, "write_through", False)
  encoding = getattr(stream, "encoding", None) or "utf-8"
  # A line with its end in one piece: those of other processes do not come in between.
  return io.TextIOWrapper(
    io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=by_lines
  )


def lost_result() -> OSError | None:
  """Why stdout lost something that its reader waits for; None where it is whole or nobody reads."""
  sys.stdout.flush()
  raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
  failure = getattr(raw, "failure", None)
  return None if failure is None or failure.errno in _GONE else failure

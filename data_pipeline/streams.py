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
from typing import Any

_PATIENCE = 1.0  # seconds that a reader has to make room in a pipe that does not wait
_GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET)  # the reader: there is nobody to tell it to


class Stream:
  """A text stream as those of `sys`, whose `write` and `flush` raise no OSError.

  All in C beneath: a signal that raises in the middle of a line leaves it written once.

  Attributes:
    failure: why the last text that was lost could not be written.
  """

  def __init__(self, number: int, like: Any):
    """Args: number: the descriptor. like: the stream that is replaced; None for none."""
    self._number = number
    self._encoding = getattr(like, "encoding", None) or "utf-8"
    self._by_lines = number == 2 or getattr(like, "write_through", False)
    self.failure: OSError | None = None
    self._inner = self._open()

  def _open(self) -> io.TextIOWrapper:
    raw = io.FileIO(self._number, "w", closefd=False)
    # A line with its end in one piece: those of other processes do not come in between.
    return io.TextIOWrapper(
      io.BufferedWriter(raw), self._encoding, errors="backslashreplace",
      line_buffering=self._by_lines or raw.isatty(),
    )  # fmt: skip

  def write(self, text: str) -> int:
    self._try(lambda: self._inner.write(text))
    return len(text)

  def flush(self) -> None:
    self._try(self._inner.flush)

  def _try(self, act) -> None:
    try:
      try:
        act()
      except BlockingIOError:  # a pipe that does not wait, and is full
        select.select([], [self._number], [], _PATIENCE)
        self._inner.flush()
    except OSError as error:
      self.failure = error
      self._inner = self._open()  # without what is left in the buffers

  def __getattr__(self, name: str) -> Any:
    return getattr(self._inner, name)


def guard() -> None:
  """Makes stdout and stderr of this process such streams, and opens those that it has not."""
  for number in (0, 1, 2):
    _open_missing(number)
  for number, name in ((1, "stdout"), (2, "stderr")):
    found = getattr(sys, name)
    with contextlib.suppress(AttributeError, OSError, ValueError):  # None where it was closed
      found.flush()
    stream = Stream(number, found)
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def _open_missing(number: int) -> None:
  """A descriptor that is closed would be that of the next file: a log would go into a dataset."""
  try:
    os.fstat(number)
  except OSError:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
      os.dup2(null, number)
      os.close(null)


def lost_result() -> OSError | None:
  """Why stdout lost something that its reader waits for; None where it is whole or nobody reads."""
  sys.stdout.flush()
  failure = getattr(sys.stdout, "failure", None)
  return None if failure is None or failure.errno in _GONE else failure

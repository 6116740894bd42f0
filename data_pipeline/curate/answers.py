"""Answers kept under the hash of their question, and the locks that keep a question from being
asked twice and too many from being asked at once. For all processes of a machine.

    FOLDER/ab/KEY.json   an answer, whole or not there
    FOLDER/ab/KEY.part   held while it is asked for; what a killed process left means nothing
    FOLDER/turns/N       held during a request: as many as may be in flight

The locks are advisory (flock): they end with the process that holds them, however it ends.
"""

import fcntl
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data_pipeline.errors import BadInput

_LOOK_SECONDS = 0.03  # between two looks for a free turn


class Answers:
  """JSON objects by key, each made once.

  Args:
    folder: made if absent; may be shared by threads, processes and jobs.
  Raises:
    BadInput: the folder cannot be made.
  """

  def __init__(self, folder: str | os.PathLike):
    self._folder = Path(folder)
    _make(self._folder)

  def get(self, key: str, make: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], bool]:
    """The answer of a key, and whether it was there; else it is made, and written.

    Whoever asks for the same key meanwhile waits. What `make` raises is passed on, and kept by
    nobody.

    Args:
      key: letters and digits, at least three.
      make: gives the answer, JSON-able.
    Raises:
      BadInput: the file of the answer is damaged.
    """
    path = self._folder / key[:2] / f"{key}.json"
    if (kept := _read(path)) is not None:
      return kept, True
    _make(path.parent)
    with _claim(path.with_suffix(".part")) as file:
      if (kept := _read(path)) is not None:  # another one asked, while this one waited
        return kept, True
      answer = make()
      file.write(json.dumps(answer).encode())
      file.flush()
      os.fsync(file.fileno())
      os.rename(file.name, path)
      return answer, False


class Turns:
  """Lets at most `count` holders in at a time, in all threads and processes of a machine."""

  def __init__(self, folder: str | os.PathLike, count: int):
    self._places = [Path(folder) / "turns" / str(n) for n in range(count)]
    _make(self._places[0].parent)

  @contextmanager
  def take(self) -> Iterator[None]:
    """Waits for a turn, and holds it within the block."""
    while True:
      for place in random.sample(self._places, len(self._places)):
        with place.open("wb") as file:
          if _try_lock(file):
            yield
            return
      time.sleep(_LOOK_SECONDS)


def _make(folder: Path) -> None:
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise BadInput(
      f"captions: cache={folder} cannot be made ({error.strerror}). Name another folder."
    ) from error


def _read(path: Path) -> dict[str, Any] | None:
  try:
    answer = json.loads(path.read_bytes())
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise BadInput(f"captions: {path} is damaged ({error}). Remove it, to ask anew.") from error
  return answer


@contextmanager
def _claim(path: Path) -> Iterator[IO[bytes]]:
  """Makes an empty file that one holder writes at a time. It is gone afterwards, or renamed."""
  while True:
    with path.open("ab") as file:
      fcntl.flock(file, fcntl.LOCK_EX)
      if not _is_at(path, file):
        continue  # its last holder renamed or removed it: this one waited for nothing
      try:
        file.truncate(0)
        yield file
      finally:
        path.unlink(missing_ok=True)
      return


def _is_at(path: Path, file: IO[bytes]) -> bool:
  try:
    return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
  except FileNotFoundError:
    return False


def _try_lock(file: IO[bytes]) -> bool:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True

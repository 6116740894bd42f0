"""Another user's eyes: what a test sees whom no mode lets through."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

NOBODY = 65534


@contextlib.contextmanager
def as_colleague() -> Iterator[None]:
  """A user who owns nothing; where tests run as somebody else than root, that user."""
  if os.geteuid():
    yield
    return
  os.seteuid(NOBODY)
  try:
    yield
  finally:
    os.seteuid(0)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
  """A folder that everybody may enter, unlike those of pytest."""
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o777)
    yield Path(folder)


@contextlib.contextmanager
def masked(mask: int) -> Iterator[None]:
  """What is made in the block has modes under a umask."""
  found = os.umask(mask)
  try:
    yield
  finally:
    os.umask(found)


def odd_modes(folder: Path, mask: int) -> dict[str, str]:
  """Files and folders below one whose modes are not those that `open` and `mkdir` give."""
  found = {}
  for path in sorted(folder.rglob("*")):
    wanted = (0o777 if path.is_dir() else 0o666) & ~mask
    if (mode := path.stat().st_mode & 0o777) != wanted:
      found[str(path.relative_to(folder))] = f"{mode:o}"
  return found

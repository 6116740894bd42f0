"""Files that others read too: made as readable as their neighbours, or refused by what ails them.

A file that may not be read is not one that is absent: who is told so looks for what is there.
"""

import os
import secrets
import shutil
import stat
from pathlib import Path

from data_pipeline.errors import BadInput


def forbidden(where: str, path: str | os.PathLike, error: OSError) -> BadInput:
  """What to say of a file, or of a folder above it, that this user may not read."""
  return BadInput(
    f"{where}: {os.fspath(path)} may not be read by this user ({error.strerror}). Ask its owner for"
    " the right to (chmod -R a+rX), or copy it as a user who has it."
  )


def check_file(path: Path, where: str, absent: str) -> None:
  """Opens a file and closes it again.

  Args:
    where, absent: of the complaint: who needs it, and what to say where it is not there.
  Raises:
    BadInput: it is not there, or may not be read.
  """
  try:
    with path.open("rb"):
      return
  except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
    raise BadInput(absent) from error
  except PermissionError as error:
    raise forbidden(where, path, error) from error


def is_folder(path: str | os.PathLike, where: str) -> bool:
  """Whether a folder of this machine is there and may be listed.

  Raises:
    BadInput: it, or one above it, may not be read.
  """
  try:
    if not stat.S_ISDIR(os.stat(path).st_mode):
      return False
    with os.scandir(path):
      return True
  except (FileNotFoundError, NotADirectoryError):
    return False
  except PermissionError as error:
    raise forbidden(where, path, error) from error


def check_all(folder: Path, where: str) -> None:
  """Looks at every file below a folder, for a reader that takes what is forbidden for absent.

  Raises:
    BadInput: one may not be read.
  """

  def refuse(error: OSError) -> None:
    if isinstance(error, PermissionError):
      raise forbidden(where, error.filename, error) from error

  for root, _, names in os.walk(folder, onerror=refuse):
    for name in names:
      try:
        with open(os.path.join(root, name), "rb"):
          continue
      except OSError as error:
        refuse(error)


def make_room(parent: Path, prefix: str) -> Path:
  """Makes a folder of a new name, as readable as `mkdir` has it: `tempfile` makes private ones."""
  while True:
    room = parent / f"{prefix}{secrets.token_hex(8)}"
    try:
      room.mkdir()
      return room
    except FileExistsError:
      continue


def copy_folder(source: Path, target: Path) -> None:
  """Copies files and folders, but not their modes: a copy belongs to who makes it."""
  target.mkdir(parents=True)
  for root, folders, names in os.walk(source):
    place = target / Path(root).relative_to(source)
    for name in folders:
      (place / name).mkdir()
    for name in names:
      shutil.copyfile(Path(root) / name, place / name)

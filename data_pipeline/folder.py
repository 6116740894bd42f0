"""The folder of a dataset on its file system: names, who may write it, and how it is replaced.

A dataset at `path` has neighbours while it is written, all of them hidden and in the same folder:

.NAME.lock         held by the one process that writes it, from beginning to end
.NAME.partial      what a `DatasetWriter` writes
.NAME.parts        what `Parts` have written so far, and stays until the dataset is finished
.NAME.replacement  what `data_pipeline.change` makes out of it
.NAME.replaced     the dataset that was replaced, between two renames
.NAME.trash        about to be removed
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.errors import BadInput

_REMOTE = re.compile(r"^[a-z0-9]+://", re.IGNORECASE)


def check_local(path: str | os.PathLike, where: str) -> Path:
  """A path that plain file calls reach. Raises BadInput for gs://, s3:// and the like."""
  if _REMOTE.match(os.fspath(path)):
    raise BadInput(
      f"{where}: path={path} is not a folder of this machine (remote shards read as empty). "
      "Mount the bucket, and give the path below the mount."
    )
  return Path(path)


def absolute(path: str | os.PathLike) -> Path:
  """The path of a dataset that is written or changed, without links. Raises as `check_local`."""
  return Path(os.path.realpath(check_local(path, "dataset")))


def shard_name(name: str, split: str, shard: int, shards: int) -> str:
  """File name of a shard, as TFDS has it."""
  return f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"


def neighbour(path: Path, what: str) -> Path:
  """A hidden neighbour of a dataset: `what` is lock, partial, parts, replacement, …"""
  return path.with_name(f".{path.name}.{what}")


def check_free(path: Path) -> None:
  """Raises BadInput: something is at `path`."""
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise BadInput(
      f"dataset: {path} is not empty. Give another path, or remove what is there first."
    )


@contextmanager
def writable(path: Path) -> Iterator[None]:
  """Makes the folder that will hold `path`; an OSError in the block is BadInput: another path."""
  try:
    if not path.parent.exists():
      path.parent.mkdir(parents=True, exist_ok=True)
    yield
  except OSError as error:
    raise BadInput(
      f"dataset: {path} cannot be written ({error.strerror}). Give another path."
    ) from error


class Claim:
  """The right to write a dataset: its lock file, held from the making of this until `release`.

  The lock goes with the process, however it ends. Children that were forked keep it as well.

  Raises:
    BadInput: another process holds it. OSError: the lock file cannot be made.
  """

  def __init__(self, path: Path, *, wait: bool = False):
    self._path = neighbour(path, "lock")
    self._file: int | None = None
    self._process = os.getpid()
    while self._file is None:
      file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
      try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if self._is_current(file):
          self._file, file = file, -1
      except BlockingIOError:
        raise BadInput(
          f"dataset: {path} is being written by another process. Wait for it to end."
        ) from None
      finally:
        if file >= 0:
          os.close(file)

  def _is_current(self, file: int) -> bool:
    """Whether the file still has its name: its holder may have removed it between our two calls."""
    try:
      return os.path.samestat(os.fstat(file), os.stat(self._path))
    except FileNotFoundError:
      return False

  def release(self) -> None:
    """Removes the lock file while it is held, so that nobody can hold a removed one."""
    file, self._file = self._file, None
    if file is not None:
      if os.getpid() == self._process:  # and not a copy in a forked child
        self._path.unlink(missing_ok=True)
      os.close(file)

  def __enter__(self) -> "Claim":
    return self

  def __exit__(self, *error) -> None:
    self.release()

  def __del__(self):
    self.release()


def discard(folder: Path, *, path: Path) -> None:
  """Removes a folder: at once under its name, then what is in it.

  Args:
    folder: to remove, or nothing.
    path: of the dataset whose neighbour it is, claimed.
  """
  trash = neighbour(path, "trash")
  if trash.exists():
    shutil.rmtree(trash)
  if folder.exists():
    folder.rename(trash)
    shutil.rmtree(trash)


def sync(folder: Path) -> None:
  """Waits until a folder and all that is in it lie on the disk, so that a rename is the last."""
  for root, _, names in os.walk(folder):
    for path in (Path(root) / name for name in [*names, "."]):
      if not path.is_symlink():
        sync_file(path)


def sync_file(path: Path) -> None:
  """Waits until a file, or the entries of a folder, lie on the disk."""
  file = os.open(path, os.O_RDONLY)
  try:
    os.fsync(file)
  finally:
    os.close(file)


def replace(path: Path) -> None:
  """Puts `.NAME.replacement`, whole and claimed, in the place of the dataset at `path`.

  A kill between the two renames leaves no dataset at `path`, but both beside it; `mend` goes on.
  """
  sync(neighbour(path, "replacement"))
  path.rename(neighbour(path, "replaced"))
  neighbour(path, "replacement").rename(path)
  sync_file(path.parent)
  discard(neighbour(path, "replaced"), path=path)


def mend(path: Path) -> None:
  """Ends what a killed `replace` began: the new dataset gets its place, the old one is removed.

  Costs a look at two names where nothing was left. While another process holds the claim, it waits
  if there is no dataset, for that is between two renames, and otherwise leaves the rest to it.

  Raises:
    BadInput: there is no dataset at `path`, and its folder cannot be changed.
  """
  old = neighbour(path, "replaced")
  if old.exists() or neighbour(path, "trash").exists():
    is_lost = old.exists() and not path.exists()
    try:
      with Claim(path, wait=is_lost):
        settle(path)
    except (BadInput, OSError) as error:
      if is_lost:
        raise BadInput(
          f"dataset: {path} was being replaced when that was killed, and cannot be mended "
          f"({error}). Rename {neighbour(path, 'replacement')} to it."
        ) from error


def settle(path: Path) -> None:
  """What `mend` does, for who has the claim; what an unfinished change wrote goes too."""
  old, new = neighbour(path, "replaced"), neighbour(path, "replacement")
  if old.exists() and new.exists() and not path.exists():
    new.rename(path)  # it was whole: the old one is moved away last
  if path.exists():
    discard(old, path=path)
  discard(new, path=path)

"""A run's folder by name: a path, or a URL of a store of objects.

Of a URL, the small files (config, metrics, events, frozen parts) have a copy on this machine, in
`$XDG_CACHE_HOME/sora_jax/runs`; the checkpoints are read and written at the URL itself, by every
process. Process 0 brings what it changed in the copy back.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
from etils import epath

from data_pipeline.access import is_folder
from data_pipeline.errors import BadInput
from data_pipeline.paths import cache_folder, is_url
from sora_jax.train.lease import Lease, LostLease
from sora_jax.train.object_store import prepare

INDEX = ".of-url.json"  # in a copy: the URL, and what was last seen there
PULL_LOCK = ".pull.lock"
KEPT_AWAY = ("checkpoints", "data", "damaged", "lock", INDEX, PULL_LOCK)  # of no copy
TRIES, PAUSE = 4, 2.0  # of a push, and the seconds between the first two
UNFINISHED = (".pulled", ".partial", ".short")  # files that are renamed when they are whole
SECONDS = 30.0  # between two looks at what changed


def copy_folder(url: str) -> Path:
  """Where the copy of a URL's small files lies on this machine."""
  digest = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
  return cache_folder() / "runs" / digest


def open_workdir(name: str, *, fresh: bool = True) -> Path:
  """The folder of a run on this machine.

  Args:
    name: a path, or a URL.
    fresh: of a URL, whether the copy is brought up to date; else it may be empty.
  Raises:
    BadInput: a URL that cannot be opened.
  """
  if not is_url(name):
    return Path(name)
  prepare(name)
  folder = copy_folder(name)
  folder.mkdir(parents=True, exist_ok=True)
  copy = Copy(name, folder)
  if fresh:
    copy.pull()
  return folder


def open_run_folder(name: str) -> Path:
  """The folder of a run that is read, see `open_workdir`; it need not hold one.

  Raises:
    BadInput: there is no such folder, but a run that is named so up to "@" and has this step: steps
      were once written that way.
  """
  folder = open_workdir(name)
  run, _, step = name.rpartition("@")
  if not run or not step.isdecimal():
    return folder
  if checkpoints_of(folder).is_dir() if is_url(name) else folder.exists():
    return folder
  if (checkpoints_of(open_workdir(run)) / step).is_dir():
    raise BadInput(
      f"run: {name} is none, but {run} has a step {step}. A step is said apart from its run:"
      f" --step={step}, or init_step={step} in a config."
    )
  return folder


def _is_trained(folder: Path) -> bool:
  """Whether a process of this machine trains there; see `run_folder.lock`."""
  with (folder / "lock").open("a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
  return False


@contextlib.contextmanager
def _pulling(folder: Path) -> Iterator[None]:
  """One process of this machine at a time."""
  with (folder / PULL_LOCK).open("a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def url_of(workdir: Path) -> str:
  """The URL that a folder is a copy of, "" for none; other hosts do not see what is in a copy."""
  index = workdir / INDEX
  return json.loads(index.read_text(encoding="utf-8"))["url"] if index.is_file() else ""


def checkpoints_of(workdir) -> epath.Path:
  """Where the checkpoints of a run are: in its folder; of a copy, at the URL that it is of."""
  if url := url_of(Path(workdir)):
    prepare(url)
    return epath.Path(url) / "checkpoints"
  return epath.Path(workdir) / "checkpoints"


def find_checkpoints(workdir) -> epath.Path | None:
  """Where the checkpoints of a run are; None where it has none.

  Raises:
    BadInput: this user may not look.
  """
  folder = checkpoints_of(workdir)
  found = folder.is_dir() if is_url(folder) else is_folder(folder, "checkpoint")
  return folder if found else None


def send_file(workdir: Path, file: Path, seconds: float) -> None:
  """Brings one file of a copy to its URL, from any process; gives up after `seconds`."""

  def send() -> None:
    with contextlib.suppress(Exception):  # the process ends in any case
      store, root = fsspec.core.url_to_fs(url)
      store.put_file(str(file), f"{root}/{file.relative_to(workdir).as_posix()}")

  if url := url_of(workdir):
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    sender.join(seconds)


class Copy:
  """The small files of a URL in a folder of this machine.

  Args:
    url: of the run.
    folder: of the copy; other processes of this machine may have made it.
  """

  def __init__(self, url: str, folder: Path):
    self._fs, self._root = fsspec.core.url_to_fs(url.rstrip("/"))
    self._url, self._folder, self._lock = url.rstrip("/"), folder, threading.Lock()
    with _pulling(folder):
      if not self._read_index():
        self._keep_index()

  def pull(self, *, trains: bool = False) -> None:
    """Brings what changed at the URL; files of the copy that changed here only stay, those that
    were at both and are gone at the URL go.

    While a process of this machine trains there, nothing is pulled: it has the files open, and they
    are newer than those at the URL. `trains`: this one does.
    """
    with self._lock, _pulling(self._folder):
      if not trains and _is_trained(self._folder):
        return
      self._read_index()
      remote = self._remote()
      for name in self._files.keys() - remote.keys():  # the run there was removed, or this part
        (self._folder / name).unlink(missing_ok=True)
        del self._files[name]
      for name, mark in remote.items():
        target, seen = self._folder / name, self._files.get(name, {})
        if seen.get("there") == mark and target.is_file():
          continue
        partial = target.with_name(f"{target.name}.pulled")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._fs.get_file(f"{self._root}/{name}", str(partial))
        partial.replace(target)
        self._files[name] = {"there": mark, "here": _here(target)}
      self._keep_index()

  def push(self) -> list[str]:
    """Brings what changed in the copy to the URL, whole files each; returns their names."""
    with self._lock:
      changed = []
      for path in sorted(p for p in self._folder.rglob("*") if p.is_file()):
        name = path.relative_to(self._folder).as_posix()
        parts = name.split("/")
        if parts[0] in KEPT_AWAY or any(part.endswith(UNFINISHED) for part in parts):
          continue
        here = _here(path)
        if self._files.get(name, {}).get("here") != here:
          self._fs.put_file(str(path), f"{self._root}/{name}")
          changed.append(name)
          self._files[name] = {"here": here}
      if changed:
        there = self._remote()
        for name in changed:
          self._files[name]["there"] = there.get(name)
        self._keep_index()
      return changed

  def _remote(self) -> dict[str, str]:
    """Of each small file at the URL, a mark that changes with it."""
    found = {}
    folders = [self._root]
    while folders:
      try:
        entries = self._fs.ls(folders.pop(), detail=True)
      except FileNotFoundError:
        continue
      for entry in entries:
        name = entry["name"].removeprefix(self._root).strip("/")
        if not name or name.split("/")[0] in KEPT_AWAY:
          continue
        if entry["type"] == "directory":
          folders.append(entry["name"])
        else:
          _check_inside(name)
          mark = entry.get("ETag") or entry.get("etag") or entry.get("md5Hash")
          found[name] = f"{entry['size']} {mark}"
    return found

  def _read_index(self) -> bool:
    """Of each file: what the store said, and size and time of the copy, when both were alike."""
    path = self._folder / INDEX
    self._files: dict[str, dict] = {}
    if path.is_file():
      self._files = json.loads(path.read_text(encoding="utf-8"))["files"]
    return path.is_file()

  def _keep_index(self) -> None:
    partial = self._folder / f"{INDEX}.{os.getpid()}.partial"
    partial.write_text(json.dumps({"url": self._url, "files": self._files}), encoding="utf-8")
    partial.replace(self._folder / INDEX)


def _here(path: Path) -> list[int]:
  stat = path.stat()
  return [stat.st_size, stat.st_mtime_ns]


def _check_inside(name: str) -> None:
  """An object's name is any text: none may lead out of the copy."""
  if ".." in name.split("/") or name.startswith("/"):
    raise ValueError(f"storage: an object is named {name!r}")


class Mirror:
  """A context: brings a copy up to date, then its URL, and keeps others from training there.

      with Mirror(folder) as mirror:
        ...
        mirror.push()      # what a checkpoint that is saved now goes with

  Args:
    workdir: `lock`ed; see `open_workdir`. Of one that is no copy, nothing is done.
  Raises:
    LostLease: another machine trains there.
  """

  def __init__(self, workdir: Path):
    url = url_of(workdir)
    self._copy = Copy(url, workdir) if url else None
    self._lease = Lease(url, workdir) if url else None
    self._done = threading.Event()
    self._thread = threading.Thread(target=self._keep, name="mirror", daemon=True)

  def push(self) -> None:
    """Brings what changed to the URL, in several tries.

    Raises:
      LostLease: another machine may train there.
      whatever the store raises in the last of the tries.
    """
    if not (self._copy and self._lease):
      return
    self._lease.check()
    for left in reversed(range(TRIES)):
      try:
        self._copy.push()
        return
      except Exception as error:
        if not left:
          raise
        print(f"train: {type(error).__name__} at the workdir's URL: {error}", file=sys.stderr)
        time.sleep(PAUSE * 2 ** (TRIES - 1 - left))

  def _keep(self) -> None:
    assert self._copy and self._lease
    while not self._done.wait(SECONDS):
      try:
        self._lease.check()
        self._copy.push()
      except LostLease as error:  # not a line, nor a checkpoint under way, into another's run
        print(error, file=sys.stderr, flush=True)
        os._exit(1)
      except Exception as error:  # a store that is away for a while does not end a run
        print(f"train: {type(error).__name__} at the workdir's URL: {error}", file=sys.stderr)

  def __enter__(self) -> "Mirror":
    if self._lease and self._copy:
      self._lease.take()
      self._copy.pull(trains=True)
      self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    if self._lease:
      self._done.set()
      self._thread.join()
      try:
        self.push()
      finally:
        self._lease.release()

"""A run's folder by name: a path, or a URL of a store of objects.

Of a URL, the small files (config, metrics, events, frozen parts) have a copy on this machine, in
`$XDG_CACHE_HOME/sora_jax/runs`; the checkpoints are read and written at the URL itself, by every
process. Process 0 brings what it changed in the copy back.
"""

import fcntl
import hashlib
import json
import os
import sys
import threading
from pathlib import Path

import fsspec
from etils import epath

from sora_jax.train.lease import Lease
from sora_jax.train.object_store import is_url, prepare

INDEX = ".of-url.json"  # in a copy: the URL, and what was last seen there
KEPT_AWAY = ("checkpoints", "data", "damaged", "lock", INDEX)  # of no copy
SECONDS = 30.0  # between two looks at what changed


def copy_folder(url: str) -> Path:
  """Where the copy of a URL's small files lies on this machine."""
  home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  digest = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
  return Path(home) / "sora_jax" / "runs" / digest


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
  if fresh and not _is_trained(folder):  # else its files are open, and newer than those there
    copy.pull()
  return folder


def _is_trained(folder: Path) -> bool:
  """Whether a process of this machine trains there; see `session.lock`."""
  with (folder / "lock").open("a") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
  return False


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


class Copy:
  """The small files of a URL in a folder of this machine.

  Args:
    url: of the run.
    folder: of the copy; other processes of this machine may have made it.
  """

  def __init__(self, url: str, folder: Path):
    self._fs, self._root = fsspec.core.url_to_fs(url.rstrip("/"))
    self._folder, self._lock = folder, threading.Lock()
    path = folder / INDEX
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    # Of each file: what the store said of it, and size and time of the copy, when both were alike.
    self._index = {"url": url.rstrip("/"), "files": {}} | known
    if not known:
      self._keep_index()

  def pull(self) -> None:
    """Brings what changed at the URL; files of the copy that changed here only stay."""
    with self._lock:
      for name, mark in self._remote().items():
        target, seen = self._folder / name, self._index["files"].get(name, {})
        if seen.get("there") == mark and target.is_file():
          continue
        partial = target.with_name(f"{target.name}.pulled")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._fs.get_file(f"{self._root}/{name}", str(partial))
        partial.replace(target)
        self._index["files"][name] = {"there": mark, "here": _here(target)}
      self._keep_index()

  def push(self) -> list[str]:
    """Brings what changed in the copy to the URL, whole files each; returns their names."""
    with self._lock:
      changed = []
      for path in sorted(p for p in self._folder.rglob("*") if p.is_file()):
        name, here = path.relative_to(self._folder).as_posix(), _here(path)
        parts = name.split("/")
        unfinished = any(part.endswith((".pulled", ".partial")) for part in parts)
        known = self._index["files"].get(name, {}).get("here") == here
        if not (known or unfinished or parts[0] in KEPT_AWAY):
          self._fs.put_file(str(path), f"{self._root}/{name}")
          changed.append(name)
          self._index["files"][name] = {"here": here}
      if changed:
        there = self._remote()
        for name in changed:
          self._index["files"][name]["there"] = there.get(name)
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

  def _keep_index(self) -> None:
    partial = self._folder / f"{INDEX}.{os.getpid()}.partial"
    partial.write_text(json.dumps(self._index), encoding="utf-8")
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
    BadInput: another machine trains there.
  """

  def __init__(self, workdir: Path):
    url = url_of(workdir)
    self._copy = Copy(url, workdir) if url else None
    self._lease = Lease(url) if url else None
    self._done = threading.Event()
    self._thread = threading.Thread(target=self._keep, name="mirror", daemon=True)

  def push(self) -> None:
    """Brings what changed to the URL. Raises what the store raises."""
    if self._copy:
      self._copy.push()

  def _keep(self) -> None:
    assert self._lease
    while not self._done.wait(SECONDS):
      try:
        self._lease.renew()
        self.push()
      except Exception as error:  # a store that is away for a while does not end a run
        print(f"train: {type(error).__name__} at the workdir's URL: {error}", file=sys.stderr)

  def __enter__(self) -> "Mirror":
    if self._lease and self._copy:
      self._lease.take()
      self._copy.pull()
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

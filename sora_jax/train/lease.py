"""Keeps two runs from one URL: stores of objects have no locks, so a word is renewed there."""

import json
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path

import fsspec

from sora_jax.train.stop import Stop

SECONDS = 90.0  # without a renewal after which a lease is nobody's
RENEW = 15.0
LOOK = 3.0  # longer than a small write takes


class LostLease(Stop):
  """Another machine trains at the URL now, or it could not be said in time that this one does."""


def name_machine(folder: Path) -> str:
  """This machine since it was started, and a folder of it: whoever has both has its locks, too."""
  boot = Path("/proc/sys/kernel/random/boot_id")
  mark = boot.read_text().strip() if boot.is_file() else ""
  return f"{socket.gethostname()} {mark} {os.getuid()} {folder}"


class Lease:
  """The right to train at a URL. A thread renews it from `take` to `release`.

  Args:
    url: of the run.
    folder: of its copy. Who holds the lock of the same folder on the same machine need not wait.
  """

  def __init__(self, url: str, folder: Path):
    self._fs, root = fsspec.core.url_to_fs(url.rstrip("/"))
    self._url, self._path = url, f"{root}/lock"
    self._word = {"host": socket.gethostname(), "machine": name_machine(folder)}
    self._word["key"] = secrets.token_hex(8)
    self._renewed, self._lost = 0.0, False
    self._done = threading.Event()
    self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

  def take(self) -> None:
    """Waits for one that is not renewed any more.

    Raises:
      LostLease: another machine renews its own, or was faster.
    """
    first, begin = self._read(), time.monotonic()
    if first and first["machine"] != self._word["machine"]:
      print(
        f"train: {self._url} was last trained by {first['host']}, which did not give it back;"
        f" waits up to {SECONDS:.0f} s to see whether it still does",
        file=sys.stderr,
      )
      while time.monotonic() - begin < SECONDS and (now := self._read()):
        if now != first:
          self._refuse(now)
        time.sleep(LOOK)
    self._write()
    time.sleep(LOOK)  # whoever read before this was written has written by now
    now = self._read()
    if now is None or now["key"] != self._word["key"]:
      self._refuse(now or {})
    self._thread.start()

  def renew(self) -> None:
    """Says once more that it is held, unless it is not any more."""
    now = self._read()
    if now is None or now["key"] != self._word["key"]:
      self._lost = True
    else:
      self._write()

  def check(self) -> None:
    """Raises LostLease: it is not held any more, or nobody knows."""
    if not self._lost and time.monotonic() - self._renewed < SECONDS:
      return
    raise LostLease(
      f"train: {self._url} could not be kept from other machines for {SECONDS:.0f} s, or one trains"
      " there now. Nothing more is saved; look who does, and start again."
    )

  def release(self) -> None:
    """Gives it back, if it is ours."""
    self._done.set()
    if self._thread.is_alive():
      self._thread.join()
    now = self._read()
    if now and now["key"] == self._word["key"]:
      self._fs.rm_file(self._path)

  def _keep(self) -> None:
    while not self._lost and not self._done.wait(RENEW):
      try:
        self.renew()
      except Exception as error:  # a store that is away for a while does not end a run
        print(f"train: {type(error).__name__} at {self._url}: {error}", file=sys.stderr)

  def _write(self) -> None:
    begin = time.monotonic()
    self._fs.pipe_file(self._path, json.dumps(self._word | {"time": time.time()}).encode())
    self._renewed = begin

  def _refuse(self, other: dict) -> None:
    raise LostLease(
      f"train: --workdir={self._url} is being trained by {other.get('host', 'another machine')}."
      " Wait for it, or use another --workdir."
    )

  def _read(self) -> dict | None:
    try:
      return json.loads(self._fs.cat_file(self._path))
    except FileNotFoundError:
      return None

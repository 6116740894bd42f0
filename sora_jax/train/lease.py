"""Keeps two runs from one URL: stores of objects have no locks, so a word is renewed there."""

import json
import os
import secrets
import socket
import sys
import time

import fsspec

from data_pipeline.errors import BadInput

SECONDS = 90.0  # without a renewal after which a lease is nobody's
LOOK = 3.0


class Lease:
  """The right to train at a URL.

  Whoever has the folder's copy on the same host has it at once: a lock on that machine is stronger.

  Args:
    url: of the run.
  """

  def __init__(self, url: str):
    self._fs, root = fsspec.core.url_to_fs(url.rstrip("/"))
    self._url, self._path = url, f"{root}/lock"
    self._word = {"host": socket.gethostname(), "pid": os.getpid(), "key": secrets.token_hex(8)}

  def take(self) -> None:
    """Waits for one that is not renewed any more.

    Raises:
      BadInput: another host renews its own, or was faster.
    """
    first, begin = self._read(), time.monotonic()
    if first and first["host"] != self._word["host"]:
      print(
        f"train: {self._url} was last trained by {first['host']}, which did not give it back;"
        f" waits up to {SECONDS:.0f} s to see whether it still does",
        file=sys.stderr,
      )
      while time.monotonic() - begin < SECONDS and (now := self._read()):
        if now != first:
          self._refuse(now)
        time.sleep(LOOK)
    self.renew()
    now = self._read()
    if now is None or now["key"] != self._word["key"]:
      self._refuse(now or {})

  def renew(self) -> None:
    """Says once more that it is held."""
    word = self._word | {"time": time.time()}
    self._fs.pipe_file(self._path, json.dumps(word).encode())

  def release(self) -> None:
    """Gives it back, if it is ours."""
    now = self._read()
    if now and now["key"] == self._word["key"]:
      self._fs.rm_file(self._path)

  def _refuse(self, other: dict) -> None:
    raise BadInput(
      f"train: --workdir={self._url} is being trained by {other.get('host', 'another host')}."
      " Wait for it, or use another --workdir."
    )

  def _read(self) -> dict | None:
    try:
      return json.loads(self._fs.cat_file(self._path))
    except FileNotFoundError:
      return None

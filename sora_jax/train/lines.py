"""Files of one JSON object a line that a kill or a full disk cannot tear."""

import errno
import json
from pathlib import Path

from sora_jax.train.stop import naming_full_disk


class Lines:
  """Appends lines to a file, each whole or not at all; a last one that a kill cut off is ended."""

  def __init__(self, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    self._path = path
    # Without a buffer: a line that found no room must not come later.
    self._file = path.open("ab", buffering=0)
    if not whole:
      self._append(b"\n")

  def write(self, line: dict) -> None:
    """Appends an object. Raises DiskFull: no room; the file is as it was."""
    self._append(json.dumps(line).encode() + b"\n")

  def _append(self, data: bytes) -> None:
    with naming_full_disk(self._path):
      written = self._file.write(data)
      if written != len(data):  # the last block had room for a part
        self._file.truncate(self._path.stat().st_size - (written or 0))
        raise OSError(errno.ENOSPC, "no room for a whole line", str(self._path))

  def close(self) -> None:
    self._file.close()

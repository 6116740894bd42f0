"""Which datasets were made of a dataset: `derived.json` beside its shards, a list of paths.

Take-downs find there the latents of a clip dataset. Paths are relative to the dataset's folder, so
that both may move together. The file is no part of the dataset's fingerprint.
"""

import fcntl
import json
import logging
import os
from pathlib import Path

from data_pipeline.errors import BadInput

NAME = "derived.json"
_log = logging.getLogger(__name__)


def read_derived(path: str | os.PathLike) -> list[Path]:
  """Absolute paths of the datasets made of the one in the folder `path`; some may be gone.

  Raises:
    BadInput: the list is damaged.
  """
  folder = Path(os.path.realpath(path))
  return [Path(os.path.normpath(folder / name)) for name in _read(folder)]


def register_derived(path: str | os.PathLike, derived: str | os.PathLike) -> None:
  """Adds the dataset in `derived` to the list of the one in `path`, once.

  A folder that cannot be written is left as it is, with a warning.
  """
  folder = Path(os.path.realpath(path))
  name = os.path.relpath(os.path.realpath(derived), folder)
  try:
    handle = os.open(folder, os.O_RDONLY)
    try:
      fcntl.flock(handle, fcntl.LOCK_EX)  # of the folder: two jobs may end at once
      names = _read(folder)
      if name not in names:
        _replace(folder / NAME, sorted([*names, name]))
    finally:
      os.close(handle)
  except OSError as error:
    _log.warning(
      "%s cannot be written (%s): take-downs of %s will not find %s by themselves",
      *(folder / NAME, error.strerror, folder, derived),
    )


def _replace(path: Path, names: list[str]) -> None:
  partial = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    partial.write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def _read(folder: Path) -> list[str]:
  path = folder / NAME
  if not path.exists():
    return []
  try:
    names = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise BadInput(f"derived: {path} is damaged ({error}). Remove it.") from error
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise BadInput(f"derived: {path} is damaged (not a list of paths). Remove it.")
  return names

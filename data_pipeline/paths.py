"""Paths as people write them: `~` for a home, and where caches lie."""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from data_pipeline.errors import BadInput

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(path: str | os.PathLike) -> bool:
  """Whether a name is a URL, such as gs://bucket/run, and no path of this machine."""
  return _URL.match(os.fspath(path)) is not None


def expand_home(path: str) -> str:
  """Replaces `~` or `~USER` at the beginning of a path by that home; URLs stay what they are.

  A folder that is named like that is written as ./~ instead.

  Raises:
    BadInput: nobody knows that home; the path would be a folder named ~.
  """
  if not path.startswith("~"):
    return path
  found = os.path.expanduser(path)
  if found == path:
    user = path.partition("/")[0]
    raise BadInput(
      f"paths: {path} begins with a home that this machine does not know ({user}). Write the whole"
      f" path, or ./{path} for a folder of that name."
    )
  return found


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
  """The folder for what may be made again, of this user: `$XDG_CACHE_HOME/sora_jax` or `~/.cache`.

  Where neither is known (no HOME, and a user without an entry), a folder of temporary files that is
  named after the user's number.
  """
  if named := environment.get("XDG_CACHE_HOME"):
    return Path(os.path.expanduser(named)) / "sora_jax"
  home = environment.get("HOME") or os.path.expanduser("~")
  if home and home != "~":
    return Path(home) / ".cache" / "sora_jax"
  return Path(tempfile.gettempdir()) / f"sora_jax-{os.getuid()}"

"""Files and folders that options and configs name: where `~` is expanded, and nowhere below."""

import argparse
import os
import re
from typing import Any

from ml_collections import ConfigDict

from data_pipeline.errors import BadInput
from data_pipeline.paths import expand_home

# Settings that name files or folders; of data.path several, apart by commas.
SETTINGS = (
  "data.path",
  "init_from",
  "film.captions",
  "curate.scores.aesthetic.encoder",
  "curate.scores.aesthetic.head",
)
_EACH = re.compile(r"(^|,)(\s*)(~[^,]*)")  # a path apart by commas that begins with a home


def path_option(text: str) -> str:
  """Reads an option that names a file, a folder or a URL: `~` is expanded, nothing else changed.

  Raises:
    ArgumentTypeError: it is empty, as of a shell variable that is not set, or a home is not known.
  """
  if not text:
    raise argparse.ArgumentTypeError("it is empty, and names nothing")
  try:
    return expand_home(text)
  except BadInput as error:
    raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error


def expand_settings(config: ConfigDict) -> None:
  """Expands `~` in the settings of a config that name files or folders, in place.

  Raises:
    BadInput: a home is not known.
  """
  for name in SETTINGS:
    *groups, key = name.split(".")
    group: Any = config
    for each in groups:
      group = group[each] if each in group else {}
    value = group[key] if isinstance(group, ConfigDict) and key in group else None
    if isinstance(value, str):
      group[key] = _EACH.sub(lambda part: part[1] + part[2] + expand_home(part[3]), value)


def dataset_paths(given: str) -> list[str]:
  """Splits `data.path`: several folders apart by commas, or one whose name has all of it.

  Raises:
    BadInput: there is nothing between two commas.
  """
  if os.path.isdir(given):
    return [given]
  paths = [path.strip() for path in given.split(",")]
  if not all(paths):
    raise BadInput(
      f"data: data.path={given!r} has nothing between two commas, which part datasets, and is no"
      " folder itself. Correct it."
    )
  return paths

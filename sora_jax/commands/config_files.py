"""Names of config files: a path, or a shipped experiment by its name."""

import difflib
import os
from pathlib import Path

from data_pipeline.errors import BadInput
from data_pipeline.paths import expand_home

PACKAGE = "experiments"
INSTALLED = Path(__file__).resolve().parents[2]  # holds the packages, and the experiments with them


def resolve_config(text: str) -> str:
  """Finds the file of a config, and hands its argument on.

  Args:
    text: "FILE.py" or "FILE.py:ARG", a file of the user's; or "NAME" or "NAME:ARG", a shipped
      experiment, which may be written as a module too ("experiments.NAME"). A file that is there
      comes first.
  Returns:
    "PATH" or "PATH:ARG", where PATH is a file that exists; as given, but for `~`, where it is the
    user's own.
  Raises:
    BadInput: there is no such file, and no experiment of that name.
  """
  name, colon, arg = expand_home(text).partition(":")
  if os.path.isfile(name):
    return f"{name}{colon}{arg}"
  if os.path.isfile(text) or os.path.isfile(text.rpartition(":")[0]):
    raise BadInput(f"config: {text!r} has a colon in its path: ARG begins there. Rename it.")
  known = shipped_configs()
  short = name.removeprefix(f"{PACKAGE}.")
  if short in known:
    return f"{known[short]}{colon}{arg}"
  raise BadInput(f"config: no file {name!r}. {_advise(name, colon + arg, known)}")


def shipped_configs() -> dict[str, Path]:
  """Files of the experiments that came with the packages, by name; those that have a config."""
  files = sorted((INSTALLED / PACKAGE).glob("*.py"))
  found = {f.stem: f for f in files if "def get_config(" in f.read_text(encoding="utf-8")}
  return found


def _advise(name: str, arg: str, known: dict[str, Path]) -> str:
  """Names what the user may have meant."""
  stem = Path(name).stem if name.endswith(".py") else name.rpartition(".")[2]
  near = difflib.get_close_matches(stem, known, 1)
  give = f"Give --config=FILE.py[:ARG], or one of {', '.join(known)}."
  return f"Did you mean --config={near[0]}{arg}? {give}" if near else give


def shipped_file(path: str) -> str:
  """A file that a config names: as it is where it exists, else that of the installed experiments.

  "experiments/film_captions.jsonl" is thus found from any folder.
  """
  path = expand_home(path)
  installed = INSTALLED / path
  is_ours = Path(path).parts[:1] == (PACKAGE,) and not os.path.exists(path)
  return str(installed) if is_ours and installed.is_file() else path

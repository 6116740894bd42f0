"""Command-line options that commands share: an argparse parser with an example, and `--config`."""

import argparse
import difflib
import os
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from data_pipeline.errors import BadInput
from data_pipeline.kinds import MANY, Kind, real, whole
from sora_jax.commands.config_files import resolve_config
from sora_jax.commands.config_imports import ORDER, importing_beside
from sora_jax.commands.paths import expand_settings


def make_parser(command: str, does: str, example: str, *, config: bool = False, beam: bool = False):
  """An argparse parser whose help ends in an example.

  Args:
    command, does, example: for the help.
    config: takes `--config` as well.
    beam: `--config` may be absent, and options that are not ours are left in `others`.
  """
  parser = (BeamParser if beam else ConfigParser if config else Parser)(
    prog=f"sora {command}",
    description=does,
    epilog="example:\n" + textwrap.indent(textwrap.dedent(example).strip(), "  "),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--json",
    action="store_true",
    help="leave out the table for people; the last line on stdout is always the result as JSON",
  )
  add_verbose(parser)
  if config or beam:
    parser.add_argument(
      "--config",
      required=not beam,
      metavar="FILE.py[:ARG]",
      help="experiment: a file, or a shipped one by name (demo:dit); --config.a.b=value overrides. "
      f"A file's imports are looked for in {ORDER}",
    )
  return parser


def add_verbose(parser: argparse.ArgumentParser) -> None:
  """Adds -v, which `entry.begin_messages` looks for before anything else is read."""
  parser.add_argument(
    "-v",
    "--verbose",
    action="store_true",
    default=argparse.SUPPRESS,
    help="also show what the libraries log",
  )


def whole_option(least: int = 0, most: int = MANY) -> Callable[[str], int]:
  """The type of an option that is a whole number in [least, most]."""
  return _number_option(int, whole(least, most))


def real_option(least: float, most: float, *, above: bool = False) -> Callable[[str], float]:
  """The type of an option that is a number in [least, most], or above `least`."""
  return _number_option(float, real(least, most, above=above))


def _number_option(read: Callable, kind: Kind) -> Callable:
  def parse(text: str):
    try:
      value = read(text)
    except ValueError:
      value = None
    if not kind.fits(value):
      raise argparse.ArgumentTypeError(f"{text} must be {kind.what}")
    return value

  return parse


class Parser(argparse.ArgumentParser):
  """An argparse parser whose complaint is one line, like every other."""

  def error(self, message):
    raise BadInput(f"{message}. See {self.prog} --help.")


class ConfigParser(Parser):
  """Leaves `--config.a.b=value` to ml_collections; adds the loaded `config`."""

  def parse_args(self, args=None, namespace=None):
    words, rest = _split_config(sys.argv[1:] if args is None else list(args))
    path = next((w.split("=", 1)[1] for w in words if w.startswith("--config=")), None)
    parsed = super().parse_args(rest + ([f"--config={path}"] if path else []), namespace)
    parsed.config, parsed.config_file = load_config(words), path
    return parsed


class BeamParser(ConfigParser):
  """Hands options of Beam and its runners on as `others`; without `--config`, `config` is None."""

  def parse_args(self, args=None, namespace=None):
    words, rest = _split_config(sys.argv[1:] if args is None else list(args))
    parsed, others = self.parse_known_args(rest, namespace)
    if words and not any(word.startswith("--config=") for word in words):
      raise BadInput(f"config: {words[0]} changes a config that is not there. Give --config too.")
    parsed.config = load_config(words) if words else None
    parsed.others = others
    return parsed


def _split_config(argv: list[str]) -> tuple[list[str], list[str]]:
  """(`--config…` words, each joined with its value by "="; all other words)."""
  words, rest, i = [], [], 0
  while i < len(argv):
    word = argv[i]
    if word.split("=")[0] == "--config" or word.startswith("--config."):
      takes_next = "=" not in word and i + 1 < len(argv)
      words.append(f"{word}={argv[i + 1]}" if takes_next else word)
      i += takes_next
    else:
      rest.append(word)
    i += 1
  return words, rest


def load_config(words: list[str]):
  """Loads a locked ConfigDict from `--config=FILE.py[:arg]`, or a name, and its overrides.

  Its imports come from where `config_imports` says.

  Raises:
    BadInput: no such file, misspelt key, or value of another type.
  """
  given = next(w for w in words if w.startswith("--config="))
  path = resolve_config(given.partition("=")[2])
  words = [f"--config={path}" if word is given else word for word in words]
  with importing_beside(path.partition(":")[0]):
    return _load(words, path)


def _load(words: list[str], path: str):
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
    "config", flag_values=values, lock_config=True, sys_argv=["sora", *words]
  )
  try:
    values(["sora", *words])
    expand_settings(holder.value)
    return holder.value
  except BadInput:
    raise
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
    raise BadInput(f"config: {_explain(error, words, path)}") from error
  except ImportError as error:
    raise BadInput(
      f"config: {path} does not load ({error}). Its imports are looked for in {ORDER}."
    ) from error
  except Exception as error:  # of the user's own file
    raise BadInput(
      f"config: {path} does not load ({type(error).__name__}: {error}). Correct that file."
    ) from error


def _explain(error, words, path):
  """One line on a refused config: the key nearest to a misspelt one, the type a value lacks."""
  text = str(error).strip()
  if "Error whilst parsing config file" in text:  # the file's own complaint, at the traceback's end
    return f"{text.splitlines()[-1].removeprefix('ValueError: ')} (--config={path})."
  known = _known_keys(path)
  for key in _overridden(words):
    if known and key not in known:
      near = difflib.get_close_matches(key, known, 1)
      return f"{key} is not a setting of {path}. " + (f"Did you mean {near[0]}?" if near else "")
  refused = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
  if refused and refused[1] in known:
    key, default = refused[1], known[refused[1]]
    if isinstance(default, dict):
      return f"{key} is a group of settings. Set one of them, such as {key}.{next(iter(default))}."
    return f"{key}={refused[2]} is not of type {type(default).__name__} ({path} has {default!r})."
  return f"{text.splitlines()[0]} ({path})."


def _overridden(words):
  """Dotted names of the settings that a command line changes."""
  return [w[len("--config.") :].partition("=")[0] for w in words if w.startswith("--config.")]


def _known_keys(path):
  """Dotted names of every setting of a config file, or nothing when it does not load."""
  values = flags.FlagValues()
  argv = ["sora", f"--config={path}"]
  holder = config_flags.DEFINE_config_file(
    "config", flag_values=values, lock_config=True, sys_argv=argv
  )
  try:
    values(argv)
    return flatten(holder.value.to_dict())
  except Exception:  # the first error is the one to report
    return {}


def flatten(tree: dict, prefix: str = "") -> dict:
  """{"a": {"b": 1}} -> {"a.b": 1}, groups included so that both levels are known names."""
  flat = {}
  for key, value in tree.items():
    flat[prefix + key] = value
    if isinstance(value, dict):
      flat.update(flatten(value, f"{prefix}{key}."))
  return flat


def make_folder(option: str, folder: Path) -> Path:
  """Makes a folder to write in.

  Raises:
    BadInput: it cannot be written.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe.{os.getpid()}"
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise BadInput(
      f"{option}={folder} cannot be written ({error.strerror}). Name another."
    ) from error
  return folder

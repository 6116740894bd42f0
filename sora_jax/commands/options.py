"""Command-line options that commands share: an argparse parser with an example, and `--config`."""

import argparse
import difflib
import os
import sys
import textwrap

from absl import flags
from ml_collections import config_flags

from data_pipeline.errors import BadInput


def make_parser(command: str, does: str, example: str, *, config: bool = False):
  """An argparse parser whose help ends in an example; with `config`, takes `--config` as well."""
  parser = (ConfigParser if config else argparse.ArgumentParser)(
    prog=f"sora {command}",
    description=does,
    epilog="example:\n" + textwrap.indent(textwrap.dedent(example).strip(), "  "),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--json", action="store_true", help="only the result, as JSON on stdout")
  if config:
    parser.add_argument(
      "--config",
      required=True,
      metavar="FILE.py[:ARG]",
      help="experiment; --config.a.b=value overrides",
    )
  return parser


class ConfigParser(argparse.ArgumentParser):
  """Leaves `--config.a.b=value` to ml_collections; adds `config_path` and the loaded `config`."""

  def parse_args(self, args=None, namespace=None):
    words, rest = _split_config(sys.argv[1:] if args is None else list(args))
    path = next((w.split("=", 1)[1] for w in words if w.startswith("--config=")), None)
    parsed = super().parse_args(rest + ([f"--config={path}"] if path else []), namespace)
    parsed.config_path, parsed.config = path, load_config(words)
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
  """Loads a locked ConfigDict from `--config=FILE.py[:arg]` and its overrides.

  Raises:
    BadInput: no such file, misspelt key, or value of another type.
  """
  values = flags.FlagValues()
  path = next(w.split("=", 1)[1] for w in words if w.startswith("--config="))
  if not os.path.isfile(path.partition(":")[0]):
    raise BadInput(f"config: no file {path.partition(':')[0]!r}. Give --config=FILE.py[:arg].")
  holder = config_flags.DEFINE_config_file(
    "config", flag_values=values, lock_config=True, sys_argv=["sora", *words]
  )
  folder = os.getcwd()
  if folder not in sys.path:  # an experiment imports experiments.common
    sys.path.insert(0, folder)
  try:
    values(["sora", *words])
    return holder.value
  except BadInput:
    raise
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
    raise BadInput(f"config: {_explain(error, words, path)}") from error


def _explain(error, words, path):
  """One line on a refused config, with the nearest key when a key is misspelt."""
  text = str(error).strip("'\"").splitlines()[0]
  known = _known_keys(path)
  for word in words:
    key = word.removeprefix("--config.").partition("=")[0]
    if word.startswith("--config.") and known and key not in known:
      near = difflib.get_close_matches(key, known, 1)
      return f"{key} is not a setting of {path}. " + (f"Did you mean {near[0]}?" if near else "")
  return f"{text} ({path})."


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

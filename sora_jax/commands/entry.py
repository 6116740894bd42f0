"""Finds the command, runs it, and turns what went wrong into one line and an exit code.

0 done; 2 bad input (what, where, what to do); 42 preempted and saved; 1 anything else.
"""

import difflib
import importlib
import itertools
import json
import os
import sys
import threading
import traceback
from collections.abc import MutableMapping
from typing import NoReturn

from data_pipeline import messages, streams
from data_pipeline.errors import BadInput
from sora_jax import __version__
from sora_jax.commands.compiled import keep_compiled
from sora_jax.parallel.heartbeat import show_life
from sora_jax.train.age import begin_command

NO_DEVICE = "Unable to initialize backend"  # how JAX begins to say so
PARTING = {2: 5.0, 42: 30.0}  # seconds that processes wait for others that end with the same code
LASTING = ("train", "launch")  # what they do is done, whoever reads of it
# Command -> one line of help. Its module, of the same name, has `parser()` and `run(args)`.
COMMANDS = {
  "data": "build an embedded dataset as clip records",
  "curate": "raw videos to clip records; takes clips down",
  "encode": "clip records to latent records",
  "train": "train a VAE or a DiT; resumes by itself",
  "sample": "make video from prompts",
  "eval": "score a run: do its samples follow their captions?",
  "plan": "compile a run for a pod that is not there: fits? how fast? what cost?",
  "launch": "run a command on many processes or hosts, and keep it running",
  "inspect": "show what is in a run or a dataset",
  "demo": "all of it, from nothing to a measured video",
}


def usage() -> str:
  lines = [f"  {name:9}{text}" for name, text in COMMANDS.items()]
  how = "usage: sora COMMAND [options]    (sora COMMAND --help; -v tells more)"
  return "\n".join([how, "", *lines])


def main(argv: list[str] | None = None) -> int:
  """Runs one command line (without the program's name). Returns the exit code."""
  argv = sys.argv[1:] if argv is None else argv
  if not argv or argv[0] in ("-h", "--help"):
    print(usage())
    return 0 if argv else 2
  if argv[0] == "--version":
    print(f"sora_jax {__version__}")
    return 0
  if argv[0] not in COMMANDS:
    near = difflib.get_close_matches(argv[0], COMMANDS, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    print(f"sora: {argv[0]!r} is not a command.{hint} See sora --help.", file=sys.stderr)
    return 2
  try:
    result = run_command(argv[0], argv[1:])
  except SystemExit as stop:  # argparse, after --help
    return int(stop.code or 0)
  except BaseException as error:
    return report_error(argv[0], error)
  if result is not None:  # of several processes one answers
    print(json.dumps(result))
  return 0


def program() -> NoReturn:
  """`main` as a process. After a failure no destructor runs: those of XLA may crash, or wait."""
  streams.guard()
  begin_messages(sys.argv[1:])
  keep_compiled()
  show_life()
  code = main()
  if lost := streams.lost_result():
    print(f"sora: the result could not be written to stdout ({lost.strerror})", file=sys.stderr)
    code = code or int(not {*LASTING} & {*sys.argv[1:2]})
  sys.stderr.flush()
  if code:
    leave(code)
  sys.exit(code)


def begin_messages(argv: list[str], environment: MutableMapping[str, str] = os.environ) -> None:
  """Makes the process quiet, unless -v is among its own options. Comes before heavy imports."""
  own = list(itertools.takewhile(lambda word: word != "--", argv))
  if not {"-v", "--verbose"}.isdisjoint(own):
    environment[messages.VERBOSE] = "1"
  messages.begin(environment)
  if own[:1] != ["launch"]:  # what it starts may run elsewhere
    messages.hide_absent_tpu(environment)


def leave(code: int) -> NoReturn:
  """Ends the process; of several, those that leave alike first wait for each other, not long."""
  hosts = sys.modules.get("sora_jax.parallel.hosts")
  if hosts and hosts.is_joined():
    parting = threading.Thread(target=hosts.part, args=(code,), daemon=True)
    parting.start()
    parting.join(PARTING.get(code, 1.0))
  os._exit(code)


def run_command(name: str, argv: list[str]) -> dict | None:
  """Runs a command in this process and returns its result. Raises what went wrong."""
  begin_command()
  module = importlib.import_module(f"sora_jax.commands.{name}")
  return module.run(module.parser().parse_args(argv))


def describe_absent(text: str) -> str:
  """One line on a backend that JAX was told to use and that is not here."""
  asked = os.environ.get("JAX_PLATFORMS")
  why = " ".join(text.split(" (set JAX_PLATFORMS")[0].split())
  return (
    f"JAX_PLATFORMS={asked} asks for devices that are not here{f' ({why})' if why else ''}. Unset"
    " it, or set JAX_PLATFORMS=cpu."
  )


def lacks_device(error: BaseException) -> bool:
  """Whether JAX found no devices of the kind that JAX_PLATFORMS names.

  Of a platform whose plugin is not installed it says so by an assertion without any text.
  """
  if not os.environ.get("JAX_PLATFORMS"):
    return False
  if isinstance(error, RuntimeError):
    return str(error).startswith(NO_DEVICE)
  frames = traceback.extract_tb(error.__traceback__)
  return isinstance(error, AssertionError) and frames[-1].filename.endswith("xla_bridge.py")


def report_error(name: str, error: BaseException) -> int:
  """Prints the one line that an error deserves and returns its exit code."""
  expected = hasattr(error, "exit_code") or isinstance(error, (BadInput, KeyboardInterrupt))
  too_large = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
  no_device = lacks_device(error)
  expected |= too_large or no_device
  expected |= isinstance(error, PermissionError) and error.filename is not None
  if not expected or os.environ.get("SORA_TRACEBACK"):
    traceback.print_exception(error)
  if isinstance(error, KeyboardInterrupt):
    print(f"sora {name}: interrupted.", file=sys.stderr)
    return 1
  if no_device:
    print(f"sora {name}: {describe_absent(str(error))}", file=sys.stderr)
    return 2
  if too_large:
    first = str(error).partition("\n")[0]
    where = "machine" if isinstance(error, MemoryError) else "device"
    print(
      f"sora {name}: the {where} has too little memory ({first})."
      " Ask for something smaller or shorter, or for fewer at once.",
      file=sys.stderr,
    )
    return 1
  if isinstance(error, PermissionError) and error.filename is not None:
    print(
      f"sora {name}: {error.filename} may not be read or written by this user ({error.strerror})."
      " Ask its owner for the right to, or give another one.",
      file=sys.stderr,
    )
    return 1 if name in LASTING else 2  # a store of many hosts may give it back: those go on
  text = " ".join(str(error).split()).removeprefix(f"{name}: ") or type(error).__name__
  print(f"sora {name}: {text}", file=sys.stderr)
  return 2 if isinstance(error, BadInput) else int(getattr(error, "exit_code", 1))

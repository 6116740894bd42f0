"""Decides what a process writes on stderr: lines of this project and errors; with -v all the rest.

Libraries speak of their internals at length. `begin` comes first in a process, before they are
imported, since some read the environment once. Whatever fails is raised too, and told by whoever
runs the command; warnings of our own are always shown, each once.
"""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import TextIO

VERBOSE = "SORA_VERBOSE"  # variable: also tells the processes that this one starts
_OURS = ("data_pipeline", "sora_jax", "experiments")
# Beam logs what a worker raised with its traceback, several times, and then raises it.
_RAISES = "apache_beam"
_LEVELS = {  # of libraries in C++: errors only
  "TF_CPP_MIN_LOG_LEVEL": "2",
  "GLOG_minloglevel": "2",
  "GRPC_VERBOSITY": "ERROR",
  "OPENCV_LOG_LEVEL": "ERROR",
}
# libtpu, which JAX loads wherever it is installed, seeks the hosts of its slice, and complains.
_NO_TPU = {
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_HOST_BOUNDS": "1,1,1",
  "TPU_CHIPS_PER_HOST_BOUNDS": "1,1,1",
}
_GOOGLE = "0x1ae0"  # PCI vendor
_OTHER_CLASSES = ("0x01", "0x02")  # of its PCI devices: disks and network cards


def is_verbose(environment: MutableMapping[str, str] = os.environ) -> bool:
  return bool(environment.get(VERBOSE))


def begin(environment: MutableMapping[str, str] = os.environ) -> None:
  """Sets up logging and warnings of this process as VERBOSE says, and what its libraries read."""
  verbose = is_verbose(environment)
  logging.basicConfig(
    handlers=[_Stderr(verbose)], level=logging.INFO if verbose else logging.WARNING, force=True
  )
  if verbose:
    return
  for name, value in _LEVELS.items():
    environment.setdefault(name, value)
  if not sys.warnoptions:
    warnings.simplefilter("ignore")


def begin_worker() -> None:
  """Does as `begin`, for a process of Beam's: drops traces of what it raises too."""
  begin()
  if not is_verbose():
    for handler in logging.root.handlers:
      if isinstance(handler, _Stderr):
        handler.stream = sys.__stderr__
    sys.excepthook = lambda *error: traceback.print_exception(*error, file=sys.__stderr__)
    sys.stderr = open(os.devnull, "w", encoding="utf-8")


def hide_absent_tpu(
  environment: MutableMapping[str, str] = os.environ, devices: Path = Path("/sys/bus/pci/devices")
) -> None:
  """Tells libtpu of a host of its own, where this one has no TPU. A real one is left alone."""
  if not is_verbose(environment) and not any(_may_be_tpus(devices)):
    for name, value in _NO_TPU.items():
      environment.setdefault(name, value)


def _may_be_tpus(devices: Path) -> Iterator[bool]:
  for folder in devices.glob("*"):
    try:
      vendor, kind = ((folder / name).read_text().strip() for name in ("vendor", "class"))
    except OSError:
      continue
    yield vendor == _GOOGLE and not kind.startswith(_OTHER_CLASSES)


class _Stderr(logging.Handler):
  """Prints records that are wanted.

  Attributes:
    stream: None for the stderr of the moment: a bar puts its own there.
  """

  def __init__(self, verbose: bool):
    super().__init__()
    self.stream: TextIO | None = None
    self._verbose, self._said = verbose, set()
    self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

  def emit(self, record: logging.LogRecord) -> None:
    try:
      is_ours = record.name.split(".")[0] in _OURS
      if not (is_ours or self._verbose or self._is_error(record)):
        return
      line = self.format(record)
      if is_ours and record.levelno == logging.WARNING:
        line = f"WARNING: {record.getMessage()}"
        if line in self._said:
          return
        self._said.add(line)
      print(line, file=self.stream or sys.stderr, flush=True)
    except Exception:
      self.handleError(record)

  def _is_error(self, record: logging.LogRecord) -> bool:
    is_told = _RAISES in Path(record.pathname).parts
    return record.levelno >= logging.ERROR and not is_told

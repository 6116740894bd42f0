"""Clusters of Dask that a curation runs on. The only file that imports distributed.

A task whose worker dies is run again by another one; what was cut before is found in the work
folder. When the scheduler dies, or `allowed-failures` + 1 workers in turn at one task, the job
ends, and the next run goes on.
"""

import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

from data_pipeline import messages
from data_pipeline.errors import BadInput

_PATIENCE_SECONDS = 30.0
_AGAIN = "Start what is missing, and run it again: what was done stays."
_ALIKE = ("apache-beam", "cloudpickle", "dask", "distributed")  # they exchange pickles


class Needs(NamedTuple):
  """The needs of a graph's workers.

  Attributes:
    folder: of the work, under this path.
    load: imports packages.
    keys: environment variables, those without a name left out.
  """

  folder: str
  load: Callable[[], object]
  keys: tuple[str, ...] = ()


@contextmanager
def joined(options: Any, workers: int, needs: Needs) -> Iterator[None]:
  """Makes sure, while a graph runs, of the cluster that options name; else of one made for it.

  Args:
    options: those of Beam's DaskRunner; they are told the address of a cluster that is made here.
    workers: processes of that one, on this machine.
    needs: of all of its workers.
  Raises:
    BadInput: no scheduler or worker answers, or one of them lacks something.
  """
  logging.getLogger("distributed").setLevel(_level())
  with ExitStack() as stack:
    where = _name(options)
    if where is None:
      local = stack.enter_context(_start(workers))
      stack.callback(setattr, options, "address", None)
      options.address = where = local
    with _connected(options, where) as client:
      check(client, needs)
    yield


def _name(options: Any) -> str | None:
  """The cluster that is asked for; None for none."""
  file = options.scheduler_file
  if not options.address and file and not os.path.exists(file):  # Dask would wait without end
    raise BadInput(f"curate: --dask_scheduler_file={file} is not there. Start dask scheduler.")
  return options.address or file


def _level() -> int:
  """Logging's: of what Dask says, a worker that died is always told."""
  return logging.INFO if messages.is_verbose() else logging.WARNING


@contextmanager
def _start(workers: int) -> Iterator[str]:
  """Yields the address of a cluster of processes on this machine, which ends afterwards."""
  from distributed import LocalCluster

  local: Any = LocalCluster(
    n_workers=workers,
    threads_per_worker=1,
    dashboard_address="127.0.0.1:0",  # for this machine alone, on a free port
    silence_logs=_level(),
  )
  with local:
    yield local.scheduler_address


@contextmanager
def _connected(options: Any, where: str) -> Iterator[Any]:
  from distributed import Client

  try:
    client = Client(
      address=options.address,
      scheduler_file=options.scheduler_file,
      timeout=_patience(options),
      set_as_default=False,
    )
  except (OSError, ValueError) as error:  # TimeoutError is one; or no address
    raise BadInput(
      f"curate: no scheduler of Dask answers at {where} ({error}). Start dask scheduler and dask "
      "worker, or leave the address out for a cluster on this machine."
    ) from error
  with client:
    try:
      client.wait_for_workers(1, timeout=_patience(options))
    except OSError as error:
      raise BadInput(
        f"curate: the cluster at {where} has no worker. Start dask worker {where} --nthreads 1."
      ) from error
    yield client


def _patience(options: Any) -> float:
  """Seconds to wait for a scheduler, and for its first worker."""
  return options.timeout if isinstance(options.timeout, int) else _PATIENCE_SECONDS


def check(client: Any, needs: Needs) -> None:
  """Raises BadInput: a worker, or the scheduler, which reads the graph too, lacks something."""
  mine = look(needs)
  try:
    there = {"scheduler": client.run_on_scheduler(look, needs._replace(folder=""))}
  except Exception as error:
    there = {"scheduler": error}
  found = client.run(look, needs, on_error="return")
  for place, facts in (there | {f"worker {name}": found[name] for name in sorted(found)}).items():
    if isinstance(facts, Exception):
      raise BadInput(
        f"curate: the {place} cannot load the code of a curation ({facts!r}). Install the same "
        "sora_jax[dask] there."
      )
    for name, value in facts.items():
      if value != mine.get(name, value):
        raise BadInput(
          f"curate: the {place} has {name}={value}, this process {mine[name]}. All need the same "
          "Python, packages, paths and keys."
        )


def look(needs: Needs) -> dict[str, Any]:
  """Facts of this machine that must be alike on all."""
  needs.load()
  packages = {name: version(name) for name in _ALIKE}
  here = {
    "python": ".".join(platform.python_version_tuple()[:2]),
    f"exists({needs.folder})": os.path.isdir(needs.folder),
  }
  keys = {f"{name}_is_set": bool(os.environ.get(name)) for name in needs.keys if name}
  return here | packages | keys


def leave(result: Any) -> None:
  """Ends the connection that Beam made: the cluster forgets what is not done."""
  client = getattr(result, "client", None)
  if client is not None:
    client.close()


def check_done(result: Any) -> None:
  """Raises BadInput: something was not done. Beam takes what a dead scheduler drops for done."""
  states = {future.status for future in getattr(result, "futures", ())} - {"finished"}
  if states:
    raise BadInput(f"curate: the cluster was lost ({', '.join(sorted(states))}). {_AGAIN}")


def explain(error: Exception) -> None:
  """Raises BadInput: the cluster failed, not the work."""
  if not type(error).__module__.startswith("distributed"):
    return
  kind = type(error).__name__
  if kind == "KilledWorker":
    _, worker, failures = error.args
    raise BadInput(
      f"curate: {failures + 1} workers died one after the other at one task, the last one was "
      f"{worker.address}. Look into their logs, and whether they have the memory, and run it again."
    ) from error
  raise BadInput(f"curate: the cluster was lost ({kind}: {error}). {_AGAIN}") from error

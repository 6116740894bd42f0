"""The files of a run's folder: its lock and config, and what a session says in it."""

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.errors import BadInput
from sora_jax.parallel import hosts
from sora_jax.train.checkpoint import Checkpoints, Damaged
from sora_jax.train.metrics import cut_back
from sora_jax.train.resume import check_config
from sora_jax.train.stop import naming_full_disk
from sora_jax.train.workdir import find_checkpoints


def check_workdir(workdir: Path, config: dict) -> None:
  """Refuses a workdir whose checkpoints are of another config, before anything is built.

  Raises:
    BadInput: a setting changed that may not.
  """
  saved = saved_config(workdir)
  if saved is not None:
    check_config(saved, config)


def saved_config(workdir: Path) -> dict | None:
  """The config of the checkpoint that training goes on from; None: there is none, or a damaged one.

  Raises:
    BadInput: its folder was renamed.
  """
  if folder := find_checkpoints(workdir):
    with Checkpoints(folder, read_only=True, names_step=False) as checkpoints:
      step = checkpoints.latest_step()
      with contextlib.suppress(Damaged):  # the session puts it aside
        if step is not None:
          return checkpoints.describe(step)[1]["config"]
  return None


def check_steps(step: int | None, total_steps: int, workdir: Path) -> None:
  """Raises BadInput for a run that has gone further than it is to go."""
  if step is not None and step > total_steps:
    raise BadInput(
      f"train: total_steps={total_steps} is below step {step}, which --workdir={workdir} has"
      " reached. Raise total_steps, or use a new --workdir."
    )


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
  """Keeps other processes from training in `workdir`; ends with the process, however it ends.

  Raises:
    BadInput: another one is at it.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / "lock").open("a+") as file:
    try:
      _take(file)
    except BlockingIOError as error:
      raise BadInput(
        f"train: --workdir={workdir} is being trained by another process."
        " Wait for it, or use another --workdir."
      ) from error
    yield


def _take(file) -> None:
  """Locks a file; who only looks whether it is locked holds it for a moment."""
  for left in reversed(range(5)):
    try:
      return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      if not left:
        raise
      time.sleep(0.1)


def keep_config(workdir: Path, config: dict) -> None:
  """Writes `config.json`, whole at any moment."""
  partial = workdir / "config.json.partial"
  with naming_full_disk(partial):
    partial.write_text(json.dumps(config, indent=1) + "\n")
  os.replace(partial, workdir / "config.json")


def set_files(workdir: Path, config: dict, step: int) -> None:
  """Brings the files of a workdir to where a session begins."""
  keep_config(workdir, config)
  cut_back(workdir, step)


def tell(line: str) -> None:
  """Says a line on stderr, once a run."""
  if hosts.is_first():
    print(line, file=sys.stderr, flush=True)


def warn_changes(warnings: list[str], events) -> None:
  """Says on stderr, and in the events, what changed since the checkpoint."""
  for line in warnings:
    tell(f"train: {line}")
    events("warning", text=line)

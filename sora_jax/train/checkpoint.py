"""Checkpoints: saved asynchronously, committed whole or not at all, restored onto any mesh.

One holds `state` (arrays), `cursor` (JSON) and `meta` (JSON: counters and the facts of the run),
in the format of Orbax's `CheckpointManager`. Of several processes each writes and reads its shards.
"""

import contextlib
import errno
import json
import math
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding
from orbax.checkpoint import args as ocp_args

from data_pipeline.access import check_all
from data_pipeline.errors import BadInput
from data_pipeline.paths import is_url
from sora_jax.parallel import hosts
from sora_jax.parallel.broadcast import can_broadcast, first_slice, is_in_first, to_all_slices
from sora_jax.parallel.rules import named_leaves
from sora_jax.train.damage import (
  Damaged,
  Removed,
  is_damage,
  muted_readers,
  name_reason,
)
from sora_jax.train.hashes import checksums, host_checksums
from sora_jax.train.object_store import move_folder
from sora_jax.train.state import Progress, State
from sora_jax.train.stop import DiskFull, NotSaved

ITEMS = ("state", "cursor", "meta")
STORED = ("step", "params", "ema", "opt")  # of a state, what every run has
LAG = 120.0  # seconds until a shared file system shows to all what one has written
GOING = 3.0  # seconds that the removal of a checkpoint may take under a reader
AGAIN = 5  # times that a reader looks for the newest checkpoint
SPARE = 1.1  # free space asked for, in sizes of the state: the index and a little room


def free_bytes(folder) -> float:
  """Free bytes of the disk that holds `folder`; a store of objects has no end."""
  return math.inf if is_url(folder) else shutil.disk_usage(folder).free


def _ignore(event: str, **facts) -> None:
  """Events of a caller that keeps none."""


def _on_first(leaf: jax.ShapeDtypeStruct, *, slices: int) -> jax.ShapeDtypeStruct:
  """What the first slice reads of a leaf."""
  assert isinstance(leaf.sharding, NamedSharding)
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=first_slice(leaf.sharding, slices))


def _compare(found: dict, saved: dict) -> None:
  for name, sums in found.items():
    if sums != saved[name]:
      raise ValueError(f"the values of {name} are not those that were saved")


class Checkpoints:
  """The checkpoints in one folder. A context: leaving it waits for the save under way.

  Args:
    folder: made if it is not there, unless `read_only`; or a URL, see `object_store.prepare`.
    max_to_keep: how many of the latest stay; None keeps all.
    keep_period: those at its multiples stay for good; None for none.
    events: called as `events("save", step=…, seconds=…, bytes=…)`.
    read_only: only look, while another process may train and remove old checkpoints.
    names_step: whether a refusal may advise to name another step; None: as `read_only`.
    seconds: that processes wait for each other.
  """

  def __init__(
    self,
    folder,
    *,
    max_to_keep: int | None = None,
    keep_period: int | None = None,
    events=_ignore,
    read_only: bool = False,
    names_step: bool | None = None,
    seconds: float = 1200,
  ):
    self._folder = epath.Path(folder) if is_url(folder) else epath.Path(folder).absolute()
    self._events, self._seconds, self._read_only = events, seconds, read_only
    self._names_step = read_only if names_step is None else names_step
    self._under_way: int | None = None  # the step that is being written behind the loop
    options = (
      ocp.CheckpointManagerOptions(create=False, save_root_metadata=False)
      if read_only
      else ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep,
        keep_period=keep_period,
        cleanup_tmp_directories=True,  # what a killed save left behind
        async_options=ocp.AsyncOptions(timeout_secs=max(1, round(seconds))),
      )
    )
    self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=ITEMS)

  def latest_step(self) -> int | None:
    """The last step that was saved whole, not one that a kill cut off; None if there is none."""
    return self._manager.latest_step()

  def newest(self) -> int | None:
    """The last step that was saved whole, as process 0 sees it; the others wait to see it, too.

    Raises:
      LostPeer: one does not see it: the folder is another one, or its file system lags.
    """
    step = hosts.share("newest", self.latest_step(), seconds=self._seconds)[0]
    end = time.monotonic() + min(self._seconds, LAG)
    while step is not None and step not in self._manager.all_steps() and time.monotonic() < end:
      time.sleep(1.0)
      self._list_anew()
    sees = hosts.share("sees", step is None or step in self.all_steps(), seconds=self._seconds)
    if not all(sees):
      blind = hosts.name_processes(i for i, sees_it in enumerate(sees) if not sees_it)
      raise hosts.LostPeer(f"checkpoint: {blind} does not see step {step} in {self._folder}.")
    return step

  def agree(self, name: str, work: Callable[[], Any]) -> Any:
    """What `work` returns in this process.

    Raises:
      Damaged: it did here, or in another process.
    """
    found, damage = None, None
    try:
      found = work()
    except Damaged as error:
      damage = error
    said = hosts.share(name, str(damage or ""), seconds=self._seconds)
    if any(said):
      raise damage or Damaged(next(filter(None, said)))
    return found

  def all_steps(self) -> list[int]:
    """Steps that were saved whole, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: State, progress: Progress, run: dict) -> None:
    """Copies the state off the devices and writes it in the background.

    On return the state may be donated.

    Args:
      step: steps that the state has done.
      state: checked by the caller to be finite.
      progress: what goes with exactly this state.
      run: JSON-able facts, see `sora_jax.train.resume.run_facts`.
    Raises:
      DiskFull: not enough room; nothing was written, earlier checkpoints are whole.
      NotSaved: the folder holds a later step; nothing was written.
    """
    begin = time.perf_counter()
    self._wait()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    hosts.first_does("room", lambda: self._check_room(step, size), seconds=self._seconds)
    self._events("save_begin", step=step)
    meta = {
      "tokens_seen": progress.tokens_seen,
      "clips_seen": progress.clips_seen,
      "run": run,
      "checksums": checksums(state._asdict()),
    }
    is_written = self._manager.save(
      step,
      args=ocp_args.Composite(
        state=ocp_args.StandardSave(state),
        cursor=ocp_args.JsonSave(progress.cursor),
        meta=ocp_args.JsonSave(meta),
      ),
    )
    if not is_written:
      raise NotSaved(
        f"checkpoint: step {step} was not saved: {self._folder} holds step {self.latest_step()}"
        " already. Move that folder elsewhere and start again."
      )
    self._under_way = step
    # The seconds that the loop stood still; the writing goes on behind it.
    self._events("save", step=step, seconds=round(time.perf_counter() - begin, 3), bytes=size)

  def _check_room(self, step: int, size: int) -> None:
    free = free_bytes(self._folder)
    if free < SPARE * size:
      raise DiskFull(
        f"checkpoint: free={free:,} bytes on the disk of {self._folder} are less than the"
        f" {round(SPARE * size):,} that step {step} needs ({self._named_latest()} is whole)."
        " Make room and start again."
      )

  def check_numbers(self) -> None:
    """Compares the numbers of all folders with the steps of their states; for one process alone.

    The files are read as they are: Orbax' restore would wait for all processes to come.

    Raises:
      BadInput: one was renamed or copied: what is saved after it would not be the newest.
    """
    for step in self.all_steps():
      try:
        meta = json.loads((self._folder / str(step) / "meta" / "metadata").read_text())
      except (OSError, ValueError):  # damage is said when the checkpoint is needed
        continue
      self._check_number(step, meta)

  def look(self, step: int | None, read: Callable[[int], Any]) -> Any:
    """What `read(step)` returns of a saved step, while another process may train in the folder.

    Args:
      step: None for the newest, which is looked for again where it went meanwhile.
      read: as `read` or `describe` of this object, or several of them.
    Returns:
      None where it is not saved.
    Raises:
      Removed, Damaged: it cannot be read.
    """
    for left in reversed(range(AGAIN)):
      at = self.latest_step() if step is None else step
      if at not in self.all_steps():
        return None
      try:
        return read(at)
      except Removed:  # this one, or another that `read` looked at
        self._list_anew()
        if not left or (step is not None and step not in self.all_steps()):
          raise
      except Damaged:
        self._list_anew()
        if not left or step is not None or self.latest_step() == at:
          raise
    return None

  def describe(self, step: int) -> tuple[Progress, dict]:
    """The host's half of a checkpoint, without its arrays.

    Raises:
      BadInput: it cannot be read, or is of another step than its folder says.
    """
    with self._readable(step):
      items = ocp_args.Composite(cursor=ocp_args.JsonRestore(), meta=ocp_args.JsonRestore())
      got = self._manager.restore(step, args=items)
      meta = got["meta"]
      self._check_number(step, meta)
      return Progress(got["cursor"], meta["tokens_seen"], meta["clips_seen"]), meta["run"]

  def _check_number(self, step: int, meta: dict) -> None:
    found = meta["checksums"]["step"][0]  # of a single word the sum is its value
    if found != step:
      to_do = "Name another step" if self._names_step else "Move that folder elsewhere"
      raise BadInput(
        f"checkpoint: the folder {self._folder / str(step)} holds the state of step {found}: it was"
        f" renamed or copied. {to_do}, or give it the name {found}."
      )

  def restore(self, step: int, abstract: State, slices: int = 1) -> tuple[State, Progress, dict]:
    """Reads a checkpoint, bit for bit, onto any mesh.

    Args:
      step: one of the saved.
      abstract: `jax.ShapeDtypeStruct`s with the shardings wanted, see `state.abstract_state`.
      slices: of their mesh; where no two share a process, the first one reads for all.
    Raises:
      Damaged: it cannot be read, by this process or by another one.
      BadInput: it is of another model or optimiser.
    """
    progress, run = self.agree("describe", lambda: self.describe(step))
    self.agree("shapes", lambda: self._check_shapes(step, abstract))
    mesh = jax.tree.leaves(abstract)[0].sharding.mesh if slices > 1 else None
    once = mesh is not None and can_broadcast(mesh, slices)
    asked = jax.tree.map(partial(_on_first, slices=slices), abstract) if once else abstract
    reads = not once or (mesh and is_in_first(mesh, slices))
    state = self.agree("restore", lambda: self._restore_state(step, asked) if reads else None)
    if once:
      leaves, tree = jax.tree.flatten(abstract)
      values: list[Any] = jax.tree.leaves(state) if state else [None] * len(leaves)
      del state
      for place, leaf in enumerate(leaves):  # one by one: the first slice has no room for all twice
        source, values[place] = values[place], to_all_slices(leaf, slices, values[place])
        if source is not None:
          jax.block_until_ready(values[place])
          source.delete()
      state = jax.tree.unflatten(tree, values)
    assert state is not None
    sums = checksums(state._asdict())
    self.agree("sums", lambda: self._compare_saved(step, sums))
    return state, progress, run

  def _compare_saved(self, step: int, sums: dict) -> None:
    with self._readable(step):
      _compare(sums, self._read_meta(step)["checksums"])

  def _restore_state(self, step: int, abstract: State) -> State:
    with self._readable(step):
      # Not by the manager: there, those who can read would wait for one who cannot.
      handler = ocp.StandardCheckpointHandler()
      path = self._folder / str(step) / "state"
      return handler.restore(path, args=ocp_args.StandardRestore(abstract))

  def set_aside(self, step: int) -> str:
    """Moves a checkpoint out of the way, into `damaged/` beside the folder; returns where to."""
    target = self._folder.parent / "damaged" / f"{step}-{time.strftime('%Y%m%d-%H%M%S')}"
    move = lambda: move_folder(self._folder / str(step), target)  # noqa: E731
    hosts.first_does("set aside", move, seconds=self._seconds)
    self._list_anew()
    return str(target)

  def _read_meta(self, step: int) -> dict:
    return self._manager.restore(step, args=ocp_args.Composite(meta=ocp_args.JsonRestore()))["meta"]

  def averages(self, step: int) -> list[str]:
    """Decays of the further averages that a checkpoint holds."""
    with self._readable(step):
      tree = ocp.PyTreeCheckpointHandler().metadata(self._folder / str(step) / "state").tree
    return sorted(tree.get("averages") or {})

  def read(self, step: int, parts=STORED) -> dict:
    """Fields of the state as trees of numpy arrays; needs neither the model nor its mesh.

    Args:
      step: one of the saved.
      parts: which fields of the state; "averages/DECAY" for a single one.
    Raises:
      BadInput: a damaged checkpoint.
    """
    path = self._folder / str(step) / "state"
    with self._readable(step):
      handler = ocp.PyTreeCheckpointHandler()
      tree = handler.metadata(path).tree
      shapes = {}
      for part in parts:
        field, _, decay = part.partition("/")
        if decay:
          shapes.setdefault(field, {})[decay] = tree[field][decay]
        else:
          shapes[field] = tree.get(field) or {}  # a run may keep no average
      ask = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
      state = handler.restore(
        path, args=ocp_args.PyTreeRestore(item=shapes, restore_args=ask, partial_restore=True)
      )
      meta = self._read_meta(step)
      self._check_number(step, meta)
      _compare(host_checksums(state), meta["checksums"])
    return {
      part: state[field][decay] if decay else state[field]
      for part in parts
      for field, _, decay in [part.partition("/")]
    }

  def wait(self) -> None:
    """Until the save under way is whole on disk; `events("save_wait", seconds=…)` tells how long.

    Raises:
      DiskFull: the disk filled up meanwhile.
      NotSaved: it is not there.
    """
    begin = time.perf_counter()
    self._wait()
    self._events("save_wait", seconds=round(time.perf_counter() - begin, 3))

  def _wait(self) -> None:
    step, self._under_way = self._under_way, None
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        raise DiskFull(
          f"checkpoint: the disk of {self._folder} filled up while saving"
          f" ({self._named_latest()} is whole). Make room and start again."
        ) from error
      raise
    if step is not None and hosts.is_first():
      self._list_anew()
      if step not in self.all_steps():
        raise NotSaved(
          f"checkpoint: step {step} was written and is not in {self._folder}. Something else"
          " removes checkpoints there: end it and start again."
        )

  def close(self) -> None:
    """Waits, and ends the background threads."""
    self.wait()
    self._manager.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _named_latest(self) -> str:
    self._list_anew()
    step = self.latest_step()
    return "no checkpoint yet" if step is None else f"the checkpoint at step {step}"

  def _check_shapes(self, step: int, abstract: State) -> None:
    with self._readable(step):
      tree = ocp.PyTreeCheckpointHandler().metadata(self._folder / str(step) / "state").tree
    saved = {name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}
    asked = {name: tuple(leaf.shape) for name, leaf in named_leaves(abstract._asdict()).items()}
    for name in sorted(saved.keys() | asked.keys()):
      if saved.get(name) != asked.get(name):
        raise BadInput(
          f"checkpoint: step {step} in {self._folder} holds {name}={saved.get(name)}, this config"
          f" makes {asked.get(name)}. Use a new --workdir, or the config that the run began with."
        )

  @contextlib.contextmanager
  def _readable(self, step: int):
    try:
      with muted_readers():
        yield
    except BadInput:
      raise
    except Exception as error:
      place, reason = self._folder / str(step), name_reason(error)
      if self._read_only and not is_url(self._folder):  # Orbax says that it does not exist
        check_all(Path(place), "checkpoint")
      if not is_damage(error):
        raise
      if self._is_going(step):
        raise Removed(
          f"checkpoint: step {step} in {self._folder} was removed while it was read: a training"
          " keeps the newest (keep.checkpoints, keep.period_steps)."
          f" Steps that are there: {self._name_steps()}."
        ) from error
      others = f" Steps that are there: {self._name_steps()}." if self._read_only else ""
      raise Damaged(
        f"checkpoint: step {step} in {self._folder} cannot be read ({reason}).{others}"
      ) from error

  def _name_steps(self) -> str:
    return ", ".join(map(str, self.all_steps())) or "none"

  def _list_anew(self) -> None:
    """Lists the steps again; once more where one of them goes while Orbax looks at it."""
    for left in reversed(range(AGAIN)):
      try:
        return self._manager.reload()
      except FileNotFoundError:
        if not left:
          raise

  def _is_going(self, step: int) -> bool:
    """Whether a checkpoint that a reader cannot read is gone, or will be in a moment.

    The newest one is not removed by a training, so it is not waited for.
    """
    if not self._read_only:
      return False
    end = time.monotonic() + GOING
    while True:
      self._list_anew()
      if step not in self.all_steps() or not (self._folder / str(step)).exists():
        return True
      if step == self.latest_step() or time.monotonic() > end:
        return False
      time.sleep(0.2)

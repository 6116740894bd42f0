"""One training session: restores or starts, trains, saves; what it trains is a `Task`."""

import contextlib
import fcntl
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from data_pipeline.errors import BadInput
from data_pipeline.tokens import Totals
from sora_jax.parallel import hosts
from sora_jax.parallel.peaks import peak_flops
from sora_jax.parallel.place import make_put
from sora_jax.parallel.rules import Rules
from sora_jax.train.checkpoint import Checkpoints, Damaged
from sora_jax.train.events import Events
from sora_jax.train.loop import Hook, fit
from sora_jax.train.metrics import Counts, MetricsWriter, cut_back
from sora_jax.train.profile import Profiler, keep_program
from sora_jax.train.replicas import coverage, make_replica_check
from sora_jax.train.resume import check_config, check_resume, run_facts, warn_inexact
from sora_jax.train.spikes import Guard, Spike, SpikeSettings
from sora_jax.train.state import Progress, State, abstract_state, init_state, state_shardings
from sora_jax.train.step import make_step
from sora_jax.train.stop import Signals, naming_full_disk
from sora_jax.train.watchdog import Watchdog
from sora_jax.train.weights import compare_origin, read_weights, replace_params
from sora_jax.train.workdir import checkpoints_of


class Task(NamedTuple):
  """What a session trains.

  Attributes:
    init: makes the parameter tree; traced under jit.
    gradient: `(params, frozen, batch) -> ((loss, metrics), gradients)`, see `make_gradient`.
    optimizer, ema_decay, rules: of optax; of the average, 0 for none; sharding of the parameters.
    more_decays: of further averages.
    batches: cursor or None (and ranges of steps to jump over beside those of the config) -> endless
      iterator with `cursor`, `totals` and `fingerprint`.
    count: totals of a step -> `Counts`.
    hooks: evaluations.
    dataset_fingerprint: of the data trained on.
    frozen: tree that the loss reads and no step changes, such as a perceptual network's weights.
    rate: steps done -> learning rate, for the log; None leaves it out.
  """

  init: Callable[[], Any]
  gradient: Callable
  optimizer: Any
  ema_decay: float
  rules: Rules
  batches: Callable[..., Any]
  count: Callable[[Totals], Counts]
  hooks: Sequence[Hook]
  dataset_fingerprint: str
  frozen: Any = {}
  rate: Callable | None = None
  more_decays: Sequence[float] = ()

  def init_state(self, params) -> State:
    """A state at step 0."""
    return init_state(params, self.optimizer, self.more_decays, ema=self.ema_decay > 0)

  def describe_state(self, mesh) -> tuple[State, State]:
    """Shapes of a state, and where it lies on a mesh."""
    shapes = jax.eval_shape(lambda: self.init_state(self.init()))
    return shapes, state_shardings(shapes, self.rules, mesh)


class Waits(NamedTuple):
  """Seconds after which a run that stands still is ended, by what it is doing."""

  start_seconds: float = 3600
  step_seconds: float = 900
  save_seconds: float = 1800
  evaluate_seconds: float = 3600

  @property
  def bounds(self) -> dict[str, float]:
    """By phase, as `Watchdog` knows them."""
    names = ("start", "step", "save", "evaluate")
    return dict(zip(names, self, strict=True)) | {"input": self.step_seconds}


class Schedule(NamedTuple):
  """How long, how often, and what is kept; 0 for never."""

  total_steps: int
  log_steps: int
  checkpoint_steps: int
  keep_checkpoints: int
  keep_period_steps: int
  replica_check_steps: int = 0
  profile_first: int = 0
  profile_steps: int = 0
  wait: Waits = Waits()
  spike: SpikeSettings = SpikeSettings()


def start_state(task: Task, places: State, init_from: str, init_weights: str) -> State:
  """A state at step 0: fresh parameters, or those of another run; the optimiser is always fresh."""
  if not init_from:
    return jax.jit(lambda: task.init_state(task.init()), out_shardings=places)()
  weights, _ = read_weights(init_from, init_weights)
  params = replace_params(jax.eval_shape(task.init), weights, init_from)
  return jax.jit(task.init_state, out_shardings=places)(params)


def check_workdir(workdir: Path, config: dict) -> None:
  """Refuses a workdir whose checkpoints are of another config, before anything is built.

  Raises:
    BadInput: a setting changed that may not.
  """
  folder = checkpoints_of(workdir)
  if folder.is_dir():
    with Checkpoints(folder, read_only=True) as checkpoints:
      step = checkpoints.latest_step()
      with contextlib.suppress(Damaged):  # the session puts it aside
        if step is not None:
          check_config(checkpoints.describe(step)[1]["config"], config)


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
  """Keeps other processes from training in `workdir`; ends with the process, however it ends.

  Raises:
    BadInput: another one is at it.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / "lock").open("a") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise BadInput(
        f"train: --workdir={workdir} is being trained by another process."
        " Wait for it, or use another --workdir."
      ) from error
    yield


def keep_config(workdir: Path, config: dict) -> None:
  """Writes `config.json`, whole at any moment."""
  partial = workdir / "config.json.partial"
  with naming_full_disk(partial):
    partial.write_text(json.dumps(config, indent=1) + "\n")
  os.replace(partial, workdir / "config.json")


def log_rate(step_fn: Callable, rate: Callable | None) -> Callable:
  """The step with the learning rate that it applied among its metrics, as `lr`."""
  if rate is None:
    return step_fn

  def step(state: State, frozen, batch):
    new, metrics = step_fn(state, frozen, batch)
    return new, {**metrics, "lr": rate(state.step)}

  return step


def jit_step(task: Task, places: State):
  """The train step as it runs: `(state, frozen, batch) -> (state, metrics)`, the state donated."""
  step = make_step(task.gradient, task.optimizer, ema_decay=task.ema_decay)
  return jax.jit(
    log_rate(step, task.rate), donate_argnums=0, out_shardings=(places, None)
  )


class Session(NamedTuple):
  """What stays open while a process trains, over rollbacks too."""

  task: Task
  workdir: Path
  config: dict
  schedule: Schedule
  mesh: Any
  abstract: State
  checkpoints: Checkpoints
  events: Events
  step_fn: Callable
  hooks: list[Hook]
  compare: Callable | None
  profiler: Profiler
  stop: Signals
  at: Watchdog
  guard: Guard
  push: Callable[[], None]
  slices: int


class Opened(NamedTuple):
  """Where an attempt begins."""

  state: State
  progress: Progress
  facts: dict
  batches: Any


def train(
  task: Task,
  workdir: Path,
  config: dict,
  schedule: Schedule,
  mesh,
  *,
  init_from: str,
  init_weights: str,
  push: Callable[[], None] = lambda: None,
  slices: int = 1,
) -> tuple[State, Progress]:
  """Trains `task` in `workdir` to `schedule.total_steps`; goes on where an earlier session ended.

  Every process of the run calls it; the first one writes what there is one of.

  Args:
    workdir: `lock`ed by the caller.
    config: resolved, as plain values: kept in the workdir and in every checkpoint.
    init_from: see `read_weights`; read when the workdir has no checkpoint yet.
    push: called before each save, see `Mirror`.
    slices: of the mesh, see `Checkpoints.restore`.
  Returns:
    The last state and its progress.
  Raises:
    BadInput: the workdir is of another config or another dataset.
    Stop: not finite, disk full, a spike too many, or preempted (see `stop.py`).
  """
  shapes, places = task.describe_state(mesh)
  hooks, compare = list(task.hooks), None
  if schedule.replica_check_steps and mesh.size > 1:
    compare = make_replica_check(places, shapes, mesh)
    hooks.append(Hook("replicas", schedule.replica_check_steps, compare))
    tell(f"train: {coverage(places, shapes, mesh):.0%} of the state has replicas to compare")
  step_fn = jit_step(task, places)
  traced = schedule.profile_steps if hosts.is_first() else 0
  if traced:
    step_fn = keep_program(step_fn, workdir / "profile")
  with (
    Events(workdir) as events,
    Signals() as stop,
    Watchdog(workdir, schedule.wait.bounds) as at,
    Checkpoints(
      checkpoints_of(workdir),
      max_to_keep=schedule.keep_checkpoints,
      keep_period=schedule.keep_period_steps or None,
      events=events,
      seconds=schedule.wait.save_seconds,
    ) as checkpoints,
    Profiler(workdir / "profile", first=schedule.profile_first, steps=traced) as profiler,
  ):
    warn_changes(warn_inexact(jax.default_backend(), os.environ.get("XLA_FLAGS", "")), events)
    session = Session(
      task, workdir, config, schedule, mesh, abstract_state(shapes, places), checkpoints, events,
      step_fn, hooks, compare, profiler, stop, at, Guard(schedule.spike), push, slices,
    )  # fmt: skip
    skips: list[tuple[int, int]] = []
    while True:
      try:
        return attempt(session, skips, init_from, init_weights)
      except Spike as spike:
        skips.append(spike.skip)
        roll_back(session, spike, len(skips))


def attempt(
  session: Session, skips: list, init_from: str, init_weights: str
) -> tuple[State, Progress]:
  """Trains from the newest checkpoint on, or from the beginning."""
  opened = reopen(session, skips, init_from, init_weights)
  state, progress, facts, batches = opened
  del opened  # its buffers are donated
  schedule, step = session.schedule, int(state.step)
  with contextlib.closing(batches):
    session.guard.begin(step, progress.cursor)

    def save(n: int, state: State, progress: Progress) -> None:
      if session.compare:  # else a damaged state would be what the next session begins with
        session.compare(n, state)
      session.push()  # the lines up to this step, before a checkpoint that follows them
      session.checkpoints.save(n, state, progress, facts)

    with MetricsWriter(session.workdir, total_steps=schedule.total_steps, step=step) as report:
      return fit(
        state,
        session.task.frozen,
        batches,
        session.step_fn,
        total_steps=schedule.total_steps,
        log_steps=schedule.log_steps,
        save_steps=schedule.checkpoint_steps,
        put=make_put(session.mesh),
        count=session.task.count,
        report=report,
        save=save,
        progress=progress,
        peak=mesh_peak(session.mesh),
        hooks=session.hooks,
        watch=session.profiler,
        stop=session.stop,
        events=session.events,
        at=session.at,
        guard=session.guard,
      )


def reopen(session: Session, skips: list, init_from: str, init_weights: str) -> Opened:
  """Opens the newest checkpoint; one that is damaged is put aside, and the one before opened.

  Raises:
    Damaged: there is none before, or it is damaged as well: something else is wrong.
  """
  try:
    return open_newest(session, skips, init_from, init_weights)
  except Damaged as error:
    step = session.checkpoints.latest_step()
    if step is None or len(session.checkpoints.all_steps()) < 2:
      raise
    where = session.checkpoints.set_aside(step)
    before = session.checkpoints.latest_step()
    warn_changes([f"{error} It was moved to {where}: goes on from step {before}."], session.events)
    session.events("damaged", step=step, moved=where)
    return open_newest(session, skips, init_from, init_weights)


def open_newest(session: Session, skips: list, init_from: str, init_weights: str) -> Opened:
  """State, progress and data of the newest checkpoint; of a run's beginning where there is none."""
  task, checkpoints, events = session.task, session.checkpoints, session.events
  step = checkpoints.latest_step()
  saved, run = (None, {}) if step is None else checkpoints.describe(step)
  if saved:
    check_config(run["config"], session.config)
  cursor = saved.cursor if saved else None
  batches = task.batches(cursor, skips) if skips else task.batches(cursor)
  with contextlib.ExitStack() as undo:
    undo.callback(batches.close)
    facts = run_facts(
      session.config,
      dataset_fingerprint=task.dataset_fingerprint,
      plan_fingerprint=batches.fingerprint,
    )
    if step is not None:
      warn_changes(check_resume(run, facts), events)
    hosts.first_does(
      "workdir",
      lambda: set_files(session.workdir, session.config, step or 0),
      seconds=session.schedule.wait.start_seconds,
    )
    if step is None:
      places = jax.tree.map(lambda leaf: leaf.sharding, session.abstract)
      state, progress = start_state(task, places, init_from, init_weights), Progress(batches.cursor)
      if init_from:
        warn_changes(compare_origin(init_from, session.workdir), events)
    else:
      state, progress, _ = checkpoints.restore(step, session.abstract, session.slices)
      events("resume", step=step)
      if step < session.schedule.total_steps:
        tell(f"train: resumes at step {step} of {session.schedule.total_steps}")
    undo.pop_all()
  return Opened(state, progress, facts, batches)


def roll_back(session: Session, spike: Spike, times: int) -> None:
  """Says that a spike is gone back from; raises it where it is one too many."""
  if times > session.schedule.spike.most:
    raise spike
  traceback.clear_frames(spike.__traceback__)  # they hold the state, which comes a second time
  session.at("start", spike.after)
  session.checkpoints.wait()
  first, stop = spike.skip
  text = f"{spike} Goes back, and over steps {first} to {stop - 1} of the data."
  warn_changes([text.removeprefix("train: ")], session.events)
  session.events("rollback", step=spike.step, after=spike.after, skip=list(spike.skip))


def set_files(workdir: Path, config: dict, step: int) -> None:
  """Brings the files of a workdir to where a session begins."""
  keep_config(workdir, config)
  cut_back(workdir, step)


def mesh_peak(mesh) -> float | None:
  """FLOP/s of all devices; None where it is not known."""
  peak = peak_flops(mesh.devices.flat[0].device_kind)
  return peak and peak * mesh.size


def tell(line: str) -> None:
  """Says a line on stderr, once a run."""
  if hosts.is_first():
    print(line, file=sys.stderr, flush=True)


def warn_changes(warnings: list[str], events) -> None:
  """Says on stderr, and in the events, what changed since the checkpoint."""
  for line in warnings:
    tell(f"train: {line}")
    events("warning", text=line)

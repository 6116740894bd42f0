"""One training session: restores or starts, trains, saves; what it trains is a `Task`."""

import contextlib
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sora_jax.parallel import hosts
from sora_jax.parallel.peaks import peak_flops
from sora_jax.parallel.place import make_put
from sora_jax.train.checkpoint import Checkpoints, Damaged
from sora_jax.train.events import Events
from sora_jax.train.loop import Hook, fit
from sora_jax.train.metrics import MetricsWriter
from sora_jax.train.profile import Profiler, keep_program
from sora_jax.train.replicas import coverage, make_replica_check
from sora_jax.train.resume import check_config, check_resume, run_facts, warn_inexact
from sora_jax.train.run_folder import check_steps, set_files, tell, warn_changes
from sora_jax.train.spikes import Guard, Spike
from sora_jax.train.state import Progress, State, abstract_state
from sora_jax.train.step import make_step
from sora_jax.train.stop import Signals
from sora_jax.train.task import Schedule, Task
from sora_jax.train.watchdog import Watchdog
from sora_jax.train.weights import Origin, compare_origin, read_weights, replace_params
from sora_jax.train.workdir import checkpoints_of


def start_state(task: Task, places: State, origin: Origin) -> State:
  """A state at step 0: fresh parameters, or those of another run; the optimiser is always fresh."""
  if not origin.run:
    return jax.jit(lambda: task.init_state(task.init()), out_shardings=places)()
  weights, _ = read_weights(origin)
  params = replace_params(jax.eval_shape(task.init), weights, origin.run)
  return jax.jit(task.init_state, out_shardings=places)(params)


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
  step = make_step(task.gradient, task.optimizer, task.averages)
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
  origin: Origin,
  push: Callable[[], None] = lambda: None,
  slices: int = 1,
) -> tuple[State, Progress]:
  """Trains `task` in `workdir` to `schedule.total_steps`; goes on where an earlier session ended.

  Every process of the run calls it; the first one writes what there is one of.

  Args:
    workdir: `lock`ed by the caller.
    config: resolved, as plain values: kept in the workdir and in every checkpoint.
    origin: of the first weights; read when the workdir has no checkpoint yet.
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
        return attempt(session, skips, origin)
      except Spike as spike:
        skips.append(spike.skip)
        roll_back(session, spike, len(skips))


def attempt(session: Session, skips: list, origin: Origin) -> tuple[State, Progress]:
  """Trains from the newest checkpoint on, or from the beginning."""
  opened = reopen(session, skips, origin)
  state, progress, facts, batches = opened
  del opened  # its buffers are donated
  schedule, step = session.schedule, int(state.step)
  with contextlib.closing(batches):
    session.guard.begin(step, progress.cursor)

    def save(n: int, state: State, progress: Progress) -> None:
      begin = time.perf_counter()
      if session.compare:  # else a damaged state would be what the next session begins with
        session.compare(n, state)
      session.push()  # the lines up to this step, before a checkpoint that follows them
      session.events("save_checks", step=n, seconds=round(time.perf_counter() - begin, 3))
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


def reopen(session: Session, skips: list, origin: Origin) -> Opened:
  """Opens the newest checkpoint; one that is damaged is put aside, and the one before opened.

  Raises:
    Damaged: there is none before, or it is damaged as well: something else is wrong.
  """
  hosts.first_does(
    "numbers", session.checkpoints.check_numbers, seconds=session.schedule.wait.start_seconds
  )
  try:
    return open_newest(session, skips, origin)
  except Damaged as error:
    step = session.checkpoints.latest_step()
    if step is None or len(session.checkpoints.all_steps()) < 2:
      raise Damaged(
        f"{error} Copy it again, or move its folder elsewhere to start from the beginning."
      ) from error
    where = session.checkpoints.set_aside(step)
    before = session.checkpoints.latest_step()
    warn_changes([f"{error} It was moved to {where}: goes on from step {before}."], session.events)
    session.events("damaged", step=step, moved=where)
    return open_newest(session, skips, origin)


def open_newest(session: Session, skips: list, origin: Origin) -> Opened:
  """State, progress and data of the newest checkpoint; of a run's beginning where there is none."""
  task, checkpoints, events = session.task, session.checkpoints, session.events
  step = checkpoints.newest()
  saved, run = None, {}
  if step is not None:
    saved, run = checkpoints.agree("facts", lambda: checkpoints.describe(step))
  if saved:
    check_config(run["config"], session.config)
    check_steps(step, session.schedule.total_steps, session.workdir)
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
    if step is None:
      places = jax.tree.map(lambda leaf: leaf.sharding, session.abstract)
      state, progress = start_state(task, places, origin), Progress(batches.cursor)
    else:
      state, progress, _ = checkpoints.restore(step, session.abstract, session.slices)
    hosts.first_does(  # last: what is refused above leaves the workdir's files alone
      "workdir",
      lambda: set_files(session.workdir, session.config, step or 0),
      seconds=session.schedule.wait.start_seconds,
    )
    if step is not None:
      events("resume", step=step)
      if step < session.schedule.total_steps:
        tell(f"train: resumes at step {step} of {session.schedule.total_steps}")
    elif origin.run:
      warn_changes(compare_origin(origin, session.workdir), events)
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


def mesh_peak(mesh) -> float | None:
  """FLOP/s of all devices; None where it is not known."""
  peak = peak_flops(mesh.devices.flat[0].device_kind)
  return peak and peak * mesh.size

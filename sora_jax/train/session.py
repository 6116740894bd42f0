"""One training session: restores or starts, trains, saves; what it trains is a `Task`."""

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from data_pipeline.errors import BadInput
from data_pipeline.tokens import Totals
from sora_jax.parallel.peaks import peak_flops
from sora_jax.parallel.place import make_put
from sora_jax.parallel.rules import Rules
from sora_jax.train.checkpoint import Checkpoints
from sora_jax.train.events import Events
from sora_jax.train.loop import Hook, fit
from sora_jax.train.metrics import Counts, MetricsWriter, cut_back
from sora_jax.train.profile import Profiler, keep_program
from sora_jax.train.replicas import coverage, make_replica_check
from sora_jax.train.resume import check_config, check_resume, run_facts, warn_inexact
from sora_jax.train.state import Progress, State, abstract_state, init_state, state_shardings
from sora_jax.train.step import make_step
from sora_jax.train.stop import Signals, naming_full_disk
from sora_jax.train.weights import compare_origin, read_weights, replace_params


class Task(NamedTuple):
  """What a session trains.

  Attributes:
    init: makes the parameter tree; traced under jit.
    gradient: `(params, frozen, batch) -> ((loss, metrics), gradients)`, see `make_gradient`.
    optimizer, ema_decay, rules: of optax; of the average, 0 for none; sharding of the parameters.
    more_decays: of further averages.
    batches: cursor or None -> endless iterator with `cursor`, `totals` and `fingerprint`.
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
  batches: Callable[[dict | None], Any]
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
  folder = workdir / "checkpoints"
  if folder.is_dir():
    with Checkpoints(folder, read_only=True) as checkpoints:
      step = checkpoints.latest_step()
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


def train(
  task: Task,
  workdir: Path,
  config: dict,
  schedule: Schedule,
  mesh,
  *,
  init_from: str,
  init_weights: str,
) -> tuple[State, Progress]:
  """Trains `task` in `workdir` to `schedule.total_steps`; goes on where an earlier session ended.

  Args:
    workdir: `lock`ed by the caller.
    config: resolved, as plain values: kept in the workdir and in every checkpoint.
    init_from: see `read_weights`; read when the workdir has no checkpoint yet.
  Returns:
    The last state and its progress.
  Raises:
    BadInput: the workdir is of another config or another dataset.
    Stop: not finite, disk full, or preempted (see `stop.py`).
  """
  shapes, places = task.describe_state(mesh)
  with (
    Events(workdir) as events,
    Signals() as stop,
    Checkpoints(
      workdir / "checkpoints",
      max_to_keep=schedule.keep_checkpoints,
      keep_period=schedule.keep_period_steps or None,
      events=events,
    ) as checkpoints,
    contextlib.ExitStack() as stack,
  ):
    step = checkpoints.latest_step()
    cursor = None if step is None else checkpoints.describe(step)[0].cursor
    if step is not None:
      check_config(checkpoints.describe(step)[1]["config"], config)
    batches = stack.enter_context(contextlib.closing(task.batches(cursor)))
    facts = run_facts(
      config, dataset_fingerprint=task.dataset_fingerprint, plan_fingerprint=batches.fingerprint
    )
    if step is None:
      keep_config(workdir, config)
      state = start_state(task, places, init_from, init_weights)
      if init_from:
        warn_changes(compare_origin(init_from, workdir), events)
      progress = Progress(dict(batches.cursor))
    else:
      warn_changes(check_resume(checkpoints.describe(step)[1], facts), events)
      state, progress, _ = checkpoints.restore(step, abstract_state(shapes, places))
      events("resume", step=step)
      if step < schedule.total_steps:
        print(f"train: resumes at step {step} of {schedule.total_steps}", file=sys.stderr)
    warn_changes(warn_inexact(jax.default_backend(), os.environ.get("XLA_FLAGS", "")), events)
    keep_config(workdir, config)
    cut_back(workdir, int(state.step))
    step_fn = jit_step(task, places)
    if schedule.profile_steps:
      step_fn = keep_program(step_fn, workdir / "profile")
    profiler = stack.enter_context(
      Profiler(workdir / "profile", first=schedule.profile_first, steps=schedule.profile_steps)
    )
    hooks = list(task.hooks)
    compare = None
    if schedule.replica_check_steps and mesh.size > 1:
      compare = make_replica_check(places, shapes, mesh)
      hooks.append(Hook("replicas", schedule.replica_check_steps, compare))
      share = coverage(places, shapes, mesh)
      print(f"train: {share:.0%} of the state has replicas to compare", file=sys.stderr)

    def save(n: int, state: State, progress: Progress) -> None:
      if compare:  # else a damaged state would be what the next session begins with
        compare(n, state)
      checkpoints.save(n, state, progress, facts)

    with MetricsWriter(workdir, total_steps=schedule.total_steps, step=int(state.step)) as report:
      return fit(
        state,
        task.frozen,
        batches,
        step_fn,
        total_steps=schedule.total_steps,
        log_steps=schedule.log_steps,
        save_steps=schedule.checkpoint_steps,
        put=make_put(mesh),
        count=task.count,
        report=report,
        save=save,
        progress=progress,
        peak=mesh_peak(mesh),
        hooks=hooks,
        watch=profiler,
        stop=stop,
        events=events,
      )


def mesh_peak(mesh) -> float | None:
  """FLOP/s of all devices; None where it is not known."""
  peak = peak_flops(mesh.devices.flat[0].device_kind)
  return peak and peak * mesh.size


def warn_changes(warnings: list[str], events) -> None:
  """Says on stderr, and in the events, what changed since the checkpoint."""
  for line in warnings:
    print(f"train: {line}", file=sys.stderr)
    events("warning", text=line)

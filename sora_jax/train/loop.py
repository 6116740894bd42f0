"""The training loop dispatches a step, then looks at the one before: no device waits for it."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from data_pipeline.tokens import Totals
from sora_jax.train.age import command_seconds
from sora_jax.train.feed import Fed, Feed
from sora_jax.train.metrics import Counts, Meter, read_values
from sora_jax.train.state import Progress, State
from sora_jax.train.stop import Preempted, check_finite
from sora_jax.train.stragglers import Hosts, summarise_hosts


class Hook(NamedTuple):
  """An evaluation every `steps` steps, and of the last: `run(step, state)` returns values for the
  step's metrics.

  It runs between two steps and must not keep the state: the next step donates it.
  """

  name: str
  steps: int
  run: Callable[[int, State], dict]


def fit(
  state: State,
  frozen: Any,
  batches,
  step_fn: Callable,
  *,
  total_steps: int,
  log_steps: int,
  save_steps: int,
  put: Callable[[dict], Any],
  count: Callable[[Totals], Counts],
  report: Callable[[int, dict], None],
  save: Callable[[int, State, Progress], None],
  progress: Progress,
  peak: float | None = None,
  hooks: Sequence[Hook] = (),
  watch: Callable[[int], None] = lambda step: None,
  stop: Callable[[int], str] = lambda step: "",
  events: Callable[..., None] = lambda event, **facts: None,
  at: Callable[[str, int], None] = lambda phase, step: None,
  guard: Callable[[int, dict, dict], None] = lambda step, values, cursor: None,
) -> tuple[State, Progress]:
  """Trains until `total_steps`, from wherever `state` stands.

  Args:
    state: fresh or restored; its buffers are donated.
    frozen: what the step reads and never changes.
    batches: endless iterator of host batches; `.cursor` is the JSON-able position after the last,
      `.totals` what its step holds.
    step_fn: `(state, frozen, batch) -> (state, metrics)` with `loss`, `grad_norm` and `param_norm`;
      donates.
    total_steps: steps of the whole run, not of this call.
    log_steps, save_steps: how often to report and to save; the last step does both.
    put: host batch -> device arrays, without waiting.
    count: totals of a step -> what it holds and costs.
    report: takes the metrics of a step as plain numbers.
    save: takes a checked state and the progress that belongs to it; may write in the background.
    progress: of a restored state; of a new run, the loader's first cursor and zeros.
    peak: FLOP/s of all devices; None where it is not known.
    hooks: evaluations.
    watch: told of each step that is done; the next may be running.
    stop: asked after each step; a reason saves and leaves.
    events: for the time that is spent.
    at: told of what begins (step, input, evaluate, save), in or after which step.
    guard: shown the metrics of a step that was looked at and the cursor after it; may raise.
  Returns:
    The last state and its progress.
  Raises:
    NotFinite: loss, gradients or parameters are not; nothing was saved since the last good
      checkpoint.
    Preempted: `stop` said so, and the state is saved.
  """
  done = looked = saved = int(state.step)
  if done >= total_steps:
    return state, progress
  events("begin", step=done + 1)
  meter, hosts = Meter(peak=peak), Hosts()
  feed = Feed(batches, put=put, count=count, progress=progress, meter=meter)
  state, metrics, fed = _first(step_fn, state, frozen, feed.take(), meter, events)
  for n in range(done + 1, total_steps + 1):
    # Step n runs on the devices from here on; meanwhile the next batch travels.
    last, leaving = n == total_steps, stop(n)
    due = [hook for hook in hooks if last or n % hook.steps == 0]
    saving = last or leaving or n % save_steps == 0
    logging = last or bool(due) or n % log_steps == 0
    at("input", n)
    ahead = fed if last else feed.take(metrics)
    at("step", n)
    late = metrics
    if not (saving or due):  # nobody needs this state: the next step may have it before we look
      state, metrics = step_fn(state, frozen, ahead.arrays)
    jax.block_until_ready(late)
    if n == done + 1:
      events("first_step", step=n, seconds=round(command_seconds(), 3))
    meter.add(fed.counts)
    with meter:
      watch(n)
    values, rates = {}, {}
    if logging or leaving:
      rates = meter.read()
      spent = rates.pop("seconds")
      waited = round(spent * rates["data_wait_fraction"], 3)
      events("steps", step=n, seconds=round(spent, 3), waited=waited)
    if saving or logging:
      values = check_finite(read_values(late), first=looked + 1, last=n, saved=saved)
      looked = n
      guard(n, values, fed.progress.cursor)
    # The order matters: read, check, evaluate, report, save (a saved step has its line), and only
    # then the step that donates the state.
    with meter:
      for hook in due:
        at("evaluate", n)
        values |= _evaluate(hook, n, state, events)
    if logging:
      counters = {"tokens_seen": fed.progress.tokens_seen, "clips_seen": fed.progress.clips_seen}
      late_hosts = summarise_hosts(hosts(rates.pop("host_seconds")), rates["step_seconds"])
      report(n, values | counters | rates | late_hosts)
    if saving:
      with meter:
        at("save", n)
        save(n, state, fed.progress)
      saved = n
    if leaving and not last:
      raise Preempted(f"train: stopped by {leaving}, saved at step {n}. The same command resumes.")
    if (saving or due) and not last:
      state, metrics = step_fn(state, frozen, ahead.arrays)
    fed = ahead
  return state, fed.progress


def _first(step_fn, state: State, frozen, fed: Fed, meter: Meter, events) -> tuple:
  """The first step of a session, which compiles: on the books as such, not as slow training."""
  step = int(state.step) + 1
  with meter:
    state, metrics = step_fn(state, frozen, fed.arrays)
  events("compile", step=step, seconds=round(meter.since_pause(), 3))
  return state, metrics, fed


def _evaluate(hook: Hook, step: int, state: State, events) -> dict:
  begin = time.perf_counter()
  values = read_values(hook.run(step, state))
  events("evaluate", hook=hook.name, step=step, seconds=round(time.perf_counter() - begin, 3))
  return values

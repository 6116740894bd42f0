"""What a session trains, and how long, how often, and how patiently it does."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from data_pipeline.tokens import Totals
from sora_jax.parallel.rules import Rules
from sora_jax.train.averages import Average
from sora_jax.train.loop import Hook
from sora_jax.train.metrics import Counts
from sora_jax.train.spikes import SpikeSettings
from sora_jax.train.state import State, init_state, state_shardings


class Task(NamedTuple):
  """What a session trains.

  Attributes:
    init: makes the parameter tree; traced under jit.
    gradient: `(params, frozen, batch) -> ((loss, metrics), gradients)`, see `make_gradient`.
    optimizer, rules: of optax; sharding of the parameters.
    averages: those of the parameters that a state keeps, by name, see `make_averages`.
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
  averages: Mapping[str, Average]
  rules: Rules
  batches: Callable[..., Any]
  count: Callable[[Totals], Counts]
  hooks: Sequence[Hook]
  dataset_fingerprint: str
  frozen: Any = {}
  rate: Callable | None = None

  def init_state(self, params) -> State:
    """A state at step 0."""
    return init_state(params, self.optimizer, self.averages)

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

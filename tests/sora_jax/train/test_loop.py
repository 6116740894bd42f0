"""The order of things in the loop, with a fake step that notes what is done to it."""

import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.train.loop import Hook, fit
from sora_jax.train.metrics import Counts
from sora_jax.train.state import Progress, State
from sora_jax.train.stop import NotFinite, Preempted, Signals, leaving_at_signals


class Batches:
  """Endless; the cursor counts."""

  totals = None

  def __init__(self, at=0):
    self.cursor = {"bin": at}

  def __next__(self):
    self.cursor["bin"] += 1  # in place: who keeps it must copy it
    return {"x": np.float32(self.cursor["bin"])}


class Reading:
  """A metric that notes when it is waited for and when it is read."""

  def __init__(self, log, step, value):
    self.log, self.step, self.value = log, step, value

  def block_until_ready(self):
    self.log.append(("wait", self.step))
    return self

  def __array__(self, dtype=None, copy=None):
    self.log.append(("read", self.step))
    return np.asarray(self.value)


class Run:
  """A run whose every act is in `log`."""

  def __init__(self, losses=lambda step: 1.0 / step, norms=lambda step: 1.0):
    self.log, self.lines, self.saved, self.losses, self.norms = [], [], [], losses, norms

  def step(self, state, frozen, batch):
    step = int(state.step) + 1
    assert frozen == "frozen" and int(batch["x"]) == step
    self.log.append(("dispatch", step))
    metrics = {"loss": Reading(self.log, step, self.losses(step)), "grad_norm": np.float32(1)}
    metrics["param_norm"] = np.float32(self.norms(step))
    return state._replace(step=jnp.int32(step)), metrics

  def put(self, batch):
    self.log.append(("put", int(batch["x"])))
    return batch

  def report(self, step, values):
    self.lines.append((step, values))

  def save(self, step, state, progress):
    assert int(state.step) == step
    self.lines_at_save = [line for line, _ in self.lines]
    self.log.append(("save", step))
    self.saved.append(progress)

  def evaluate(self, step, state):
    assert int(state.step) == step
    self.log.append(("evaluate", step))
    return {"held_out_loss": jnp.float32(step)}

  def fit(self, total_steps, at=0, **more):
    settings = dict(log_steps=2, save_steps=5) | more
    return fit(
      State(jnp.int32(at), None, None, None),
      "frozen",
      Batches(at),
      self.step,
      total_steps=total_steps,
      put=self.put,
      count=lambda totals: Counts(tokens=2**31, clips=3, flops=1e9, slots=2**31),
      report=self.report,
      save=self.save,
      progress=Progress({"bin": at}, at * 2**31, at * 3),
      **settings,
    )

  def index(self, *act):
    return self.log.index(act)


def test_no_step_is_looked_at_before_the_next_is_dispatched():
  run = Run()
  run.fit(20, save_steps=100)
  for step in range(1, 20):
    assert run.index("dispatch", step + 1) < run.index("wait", step)
    assert run.index("put", step + 1) < run.index("dispatch", step + 1) < run.index("wait", step)
  assert [step for act, step in run.log if act == "read"] == list(range(2, 21, 2))
  # At most two steps are in flight: memory for batches does not grow with log_steps.
  for step in range(1, 19):
    assert run.index("wait", step) < run.index("dispatch", step + 2)


def test_a_state_is_saved_checked_and_before_the_next_step_takes_it():
  run = Run()
  run.fit(12, hooks=[Hook("held out", 4, run.evaluate)])
  assert [step for act, step in run.log if act == "save"] == [5, 10, 12]
  assert [step for act, step in run.log if act == "evaluate"] == [4, 8, 12]
  for step in (5, 10):
    assert run.index("read", step) < run.index("save", step) < run.index("dispatch", step + 1)
    # the batch that follows is on its way already
    assert run.index("put", step + 1) < run.index("read", step)
  for step in (4, 8):
    assert run.index("evaluate", step) < run.index("dispatch", step + 1)


def test_one_line_a_logged_step_with_counters_beyond_int32():
  run = Run()
  _, progress = run.fit(8, hooks=[Hook("held out", 3, run.evaluate)])
  assert [step for step, _ in run.lines] == [2, 3, 4, 6, 8]
  for step, values in run.lines:
    assert values["loss"] == pytest.approx(1.0 / step)
    assert values["tokens_seen"] == step * 2**31 and values["clips_seen"] == step * 3
    assert ("held_out_loss" in values) == (step in (3, 6, 8))  # the last step is evaluated too
    assert 0 <= values["data_wait_fraction"] <= 1 and values["step_seconds"] > 0
    ratio = values["tokens_per_second"] / values["clips_per_second"]
    assert ratio == pytest.approx(2**31 / 3)
  assert progress == Progress({"bin": 8}, 8 * 2**31, 24)


def test_the_cursor_saved_is_the_state_s_not_the_prefetch_s():
  run = Run()
  run.fit(9, save_steps=4)
  assert [progress.cursor["bin"] for progress in run.saved] == [4, 8, 9]


def test_a_step_that_is_saved_has_its_line_already():
  run = Run()
  with pytest.raises(Preempted):  # a kill right after the save would lose it for good
    run.fit(20, save_steps=100, stop=lambda step: "SIGTERM" if step == 6 else "")
  assert run.lines_at_save == [2, 4, 6]


def test_resumes_where_the_state_stands():
  run = Run()
  state, progress = run.fit(8, at=6)
  assert [step for act, step in run.log if act == "dispatch"] == [7, 8]
  assert int(state.step) == 8 and progress.cursor == {"bin": 8}
  assert run.fit(8, at=8)[1].cursor == {"bin": 8}  # nothing left: nothing done
  assert [step for act, step in run.log if act == "dispatch"] == [7, 8]


def test_not_finite_stops_before_anything_is_saved():
  run = Run(losses=lambda step: 1.0 if step < 8 else float("nan"))
  text = r"loss=nan, grad_norm=1.0, param_norm=1.0 in steps 7 to 8\. Last good checkpoint: step 5"
  with pytest.raises(NotFinite, match=text) as caught:
    run.fit(20)
  assert caught.value.exit_code == 1
  assert [step for act, step in run.log if act == "save"] == [5]


def test_an_update_that_is_not_finite_is_not_saved():
  """Loss and gradient are those before the update: they are finite still."""
  run = Run(norms=lambda step: float("nan") if step == 5 else 1.0)
  with pytest.raises(NotFinite, match=r"param_norm=nan in steps 5 to 5\. .*checkpoint: none"):
    run.fit(20, log_steps=1)
  assert "save" not in dict(run.log)


def test_not_finite_at_a_save_is_seen_there():
  run = Run(losses=lambda step: float("inf") if step == 3 else 1.0)
  with pytest.raises(NotFinite, match=r"loss=inf, .* in steps 1 to 3\. Last good checkpoint: none"):
    run.fit(20, save_steps=3, log_steps=50)
  assert "save" not in dict(run.log)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_42(number):
  run = Run()
  found = signal.getsignal(number)
  text = f"stopped by {number.name}, saved at step 7"
  with Signals() as stop, pytest.raises(Preempted, match=text) as caught:
    run.losses = lambda step: os.kill(os.getpid(), number) or 1.0 if step == 7 else 1.0
    run.fit(20, stop=stop)
  assert caught.value.exit_code == 42
  assert run.log[-1] == ("save", 7) and run.saved[-1].cursor == {"bin": 7}
  assert signal.getsignal(number) == found


def test_a_hangup_saves_unless_it_is_ignored_and_only_once():
  """As nohup has it ignored. A terminal that goes sends it more than once."""
  found = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with Signals() as stop, leaving_at_signals("train"):
      os.kill(os.getpid(), signal.SIGHUP)
      assert stop(1) == ""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    run = Run()
    with pytest.raises(Preempted, match="stopped by SIGHUP, saved at step 7"), Signals() as stop:
      run.losses = lambda step: os.kill(os.getpid(), signal.SIGHUP) or 1.0 if step == 7 else 1.0
      run.fit(20, stop=stop)
    os.kill(os.getpid(), signal.SIGHUP)  # another one, while it leaves
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(Preempted, match="stopped by SIGHUP outside"), leaving_at_signals("train"):
      os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGHUP)
  finally:
    signal.signal(signal.SIGHUP, found)


def test_a_second_interrupt_does_not_wait():
  with Signals() as stop, pytest.raises(KeyboardInterrupt):
    os.kill(os.getpid(), signal.SIGINT)
    assert stop(1) == "SIGINT"
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()


def test_compiling_and_evaluating_are_on_the_books():
  run, events = Run(), []
  hooks = [Hook("e", 5, run.evaluate)]
  run.fit(5, hooks=hooks, events=lambda event, **facts: events.append((event, facts)))
  names = [event for event, _ in events if event != "steps"]
  assert names == ["begin", "compile", "first_step", "evaluate"]
  found = dict(events)
  assert found["compile"]["step"] == 1 and found["evaluate"]["hook"] == "e"
  assert found["first_step"]["seconds"] > 0 and found["steps"]["step"] == 5
  assert 0 <= found["steps"]["waited"] <= found["steps"]["seconds"]

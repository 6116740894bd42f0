"""Plans of epochs: made ahead of the reading, each once, and again where making one failed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from data_pipeline.plans import Plans, StepBins


class SlowPlans:
  """Makes plans of some steps of two rows; those of `slow` windows only when they are let go."""

  def __init__(self, slow=(), steps=2):
    self.steps = steps
    self.let_go = {epoch: threading.Event() for epoch in slow}
    self.made, self.threads = [], {}

  def __call__(self, epoch):
    self.threads[epoch] = threading.current_thread().name
    if epoch in self.let_go:
      assert self.let_go[epoch].wait(20)
    self.made.append(epoch)
    return SimpleNamespace(steps=self.steps, bin=lambda i: (epoch, i), totals=lambda i: i)


def open_bins(make_plan, kept=3):
  return StepBins(Plans(make_plan, kept), 0, rows=2, share=(0, 1))


def step(window, i):
  """The bins of the i-th step of a window, and its totals, as `SlowPlans` make them."""
  return [(window, 2 * i), (window, 2 * i + 1)], i


def test_a_window_is_read_while_the_next_is_planned():
  make_plan = SlowPlans(slow=[1])
  bins = open_bins(make_plan)
  with ThreadPoolExecutor(4) as pool:
    assert bins[0] == step(0, 0)
    beyond = [pool.submit(bins.__getitem__, i) for i in (2, 3)]  # window 1, which is not there yet
    here = [pool.submit(bins.__getitem__, i) for i in range(2)]
    assert [one.result(timeout=10) for one in here] == [step(0, i) for i in range(2)]
    assert make_plan.made == [0] and not any(one.done() for one in beyond)
    make_plan.let_go[1].set()
    assert [one.result(timeout=10) for one in beyond] == [step(1, 0), step(1, 1)]


def test_the_next_epoch_is_planned_ahead_and_each_once():
  make_plan = SlowPlans(steps=4)
  bins = open_bins(make_plan)
  for epoch in range(5):
    for i in range(4):
      assert bins[4 * epoch + i] == step(epoch, i)
      if i < 1:  # in the first half there is time
        assert epoch + 1 not in make_plan.made
      else:
        wait_for(lambda epoch=epoch: epoch + 1 in make_plan.made)
    assert make_plan.made == list(range(epoch + 2))
    assert sorted(bins._plans._plans) == list(range(max(epoch - 1, 0), epoch + 2))
  names = [make_plan.threads[epoch] for epoch in range(6)]
  assert names == [threading.current_thread().name, *(f"plan {epoch}" for epoch in range(1, 6))]


def wait_for(condition):
  for _ in range(2000):
    if condition():
      return
    time.sleep(0.005)
  raise AssertionError("waited in vain")


def test_a_plan_that_failed_in_the_background_is_made_again_where_it_is_asked_for():
  failures = [MemoryError("in the background"), MemoryError("in the foreground")]

  def make_plan(epoch):
    if epoch == 1 and failures:
      raise failures.pop(0)
    return SimpleNamespace(steps=2, bin=lambda i: (epoch, i), totals=lambda i: i)

  bins = open_bins(make_plan)
  assert bins[1] == step(0, 1)
  wait_for(lambda: len(failures) == 1 and 1 not in bins._plans._plans)
  for i in (0, 1) * 20:  # it is not tried again at every step
    assert bins[i] == step(0, i)
  assert len(failures) == 1 and 1 not in bins._plans._plans
  with pytest.raises(MemoryError, match="in the foreground"):
    bins[2]
  assert bins[2] == step(1, 0)


def test_without_a_thread_to_spare_plans_are_made_where_they_are_asked_for(monkeypatch):
  def start(thread):
    raise RuntimeError("can't start new thread")

  monkeypatch.setattr(threading.Thread, "start", start)
  make_plan = SlowPlans()
  bins = open_bins(make_plan)
  assert [bins[i] for i in (1, 2)] == [step(0, 1), step(1, 0)]
  assert set(make_plan.threads.values()) == {threading.current_thread().name}


def test_a_closed_loader_begins_no_plan():
  make_plan = SlowPlans()
  bins = open_bins(make_plan)
  bins._plans.is_closed = True
  assert bins[1] == step(0, 1) and make_plan.made == [0] and 1 not in bins._plans._plans


def test_a_reader_who_waits_for_a_plan_that_fails_makes_it_himself():
  failing, tried = threading.Event(), []

  def make_plan(epoch):
    tried.append(threading.current_thread().name)
    if len(tried) == 1:
      assert failing.wait(20)
      raise MemoryError
    return SimpleNamespace(steps=2, bin=lambda i: (epoch, i), totals=lambda i: i)

  plans = Plans(make_plan, 3)
  plans.prepare(1)
  with ThreadPoolExecutor(1) as pool:
    reader = pool.submit(plans, 1)
    wait_for(lambda: tried == ["plan 1"])
    failing.set()
    assert reader.result(timeout=10).steps == 2
  assert len(tried) == 2

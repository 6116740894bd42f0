"""Spikes: told from noise, gone back from, and the data that they came with is not read again."""

from types import SimpleNamespace

import pytest

from sora_jax.train.session import roll_back
from sora_jax.train.spikes import Guard, Spike, SpikeSettings, position
from sora_jax.train.task import Schedule


def cursor(step, skipped=()):
  return {"step": step, "skipped": [list(part) for part in skipped]}


def test_a_spike_names_what_it_came_with():
  guard = Guard(SpikeSettings(factor=3.0, window=10, most=1))
  guard.begin(0, cursor(0))
  for step in range(2, 22, 2):
    guard(step, {"loss": 1.0 + 0.1 * (step % 4)}, cursor(step))
  guard(22, {"loss": 2.9}, cursor(22, [(3, 5)]))  # noise; two steps of the data were jumped over
  with pytest.raises(Spike, match=r"loss=4 at step 24 is above spike.factor=3 times") as found:
    guard(24, {"loss": 4.0}, cursor(24, [(3, 5)]))
  assert found.value.skip == (24, 26) and (found.value.after, found.value.step) == (22, 24)


def test_neither_the_first_losses_nor_a_guard_that_is_off_raise():
  guard = Guard(SpikeSettings(factor=2.0))
  for step in range(8):
    guard(step, {"loss": 10.0**step}, cursor(step))
  off = Guard(SpikeSettings())
  for step in range(30):
    off(step, {"loss": 1.0 if step < 20 else 1e9}, cursor(step))


def test_position():
  assert position({}) == 0 and position(cursor(7, [(1, 2), (5, 9)])) == 12


def test_a_spike_too_many_is_raised():
  schedule = Schedule(9, 1, 1, 1, 1, spike=SpikeSettings(factor=2.0, most=2))
  session, spike = SimpleNamespace(schedule=schedule), Spike("no", step=8, after=7, skip=(7, 8))
  with pytest.raises(Spike) as found:
    roll_back(session, spike, 3)  # pyright: ignore[reportArgumentType]
  assert found.value is spike and found.value.exit_code == 1

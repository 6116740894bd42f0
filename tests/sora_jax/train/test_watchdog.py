"""What stands still is ended, with its stacks and who is missing."""

import time

from sora_jax.train.watchdog import Watchdog, describe_missing


def test_ends_what_stands_still_and_writes_its_stacks(tmp_path):
  said = []
  with Watchdog(tmp_path, {"start": 9, "step": 0.3}, end=said.append) as at:
    for step in range(8):  # longer than the bound, but it moves
      at("step", step)
      time.sleep(0.1)
    assert not said
    time.sleep(1.0)
  (line,) = said
  assert "nothing moved for" in line and "(step, step 7)" in line
  text = (tmp_path / "stacks" / "process-0.txt").read_text()
  assert "step, step 7" in text and "test_ends_what_stands_still" in text
  assert str(tmp_path / "stacks" / "process-0.txt") in line


def test_each_phase_has_its_bound(tmp_path):
  said = []
  with Watchdog(tmp_path, {"start": 60, "step": 0.2, "save": 60}, end=said.append) as at:
    at("save", 3)
    time.sleep(0.8)
  assert not said


def test_who_is_missing():
  now = {0: [5, "step", 12], 1: [5, "step", 12], 2: [3, "step", 12]}
  before = {0: [4, "step", 12], 1: [4, "step", 12], 2: [3, "step", 12]}
  assert "No sign of life of process 2 on" in describe_missing(before, now, 3)
  assert "No sign of life of process 3 on" in describe_missing({}, now, 4)
  behind = now | {2: [4, "input", 11]}
  assert "process 2 on an unknown host behind, at step 11 (input)" in describe_missing(
    before, behind, 3
  )
  alike = now | {2: [4, "step", 12]}
  assert "All processes are alive" in describe_missing(before, alike, 3)

"""Where the wall time of a run went."""

import json

import pytest

from sora_jax.train.events import Events
from sora_jax.train.goodput import SHARES, goodput

CLEAN = {"event": "stop", "time": 170.0, "reason": "Preempted"}
FAILED = {"event": "stop", "time": 170.0, "reason": "LostPeer"}
FIRST = [  # the command began at 100
  {"event": "start", "time": 104.0, "age": 4.0},
  {"event": "begin", "time": 110.0, "step": 1},
  {"event": "compile", "time": 125.0, "step": 1, "seconds": 15.0},
  {"event": "steps", "time": 145.0, "step": 10, "seconds": 20.0, "waited": 2.0},
  {"event": "evaluate", "time": 148.0, "step": 10, "seconds": 3.0},
  {"event": "save", "time": 150.0, "step": 10, "seconds": 2.0},
  {"event": "steps", "time": 160.0, "step": 14, "seconds": 8.0, "waited": 1.0},
]
SECOND = [  # 200 to 260
  {"event": "start", "time": 203.0, "age": 3.0},
  {"event": "resume", "time": 205.0, "step": 10},
  {"event": "begin", "time": 206.0, "step": 11},
  {"event": "compile", "time": 210.0, "step": 11, "seconds": 4.0},
  {"event": "steps", "time": 250.0, "step": 30, "seconds": 40.0, "waited": 0.0},
  {"event": "save_wait", "time": 258.0, "seconds": 8.0},
  {"event": "stop", "time": 260.0, "reason": "done"},
]


@pytest.fixture
def account(tmp_path):
  """Seconds by share of events in a file."""

  def read(*events):
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (tmp_path / "events.jsonl").write_text(lines)
    found = goodput(tmp_path)
    assert sum(found["shares"].values()) == pytest.approx(1, abs=1e-3)
    return found, {
      name: pytest.approx(share * found["wall_seconds"], abs=0.02)
      for name, share in found["shares"].items()
    }

  return read


def test_a_killed_session_costs_what_came_after_its_last_checkpoint(account):
  found, seconds = account(*FIRST, *SECOND)
  assert seconds == {
    "steps": 18 + 40,
    "input": 2,
    "evaluate": 3,
    "checkpoint": 2 + 8,
    "compile": 15 + 4,
    "restart": 10 + 6 + (200 - 160) + 8,  # two starts, until someone noticed, steps 11 to 14
    "idle": 160 - 58 - 2 - 3 - 10 - 19 - 64,
  }
  assert found["wall_seconds"] == 160 and found["redone_steps"] == 4
  assert found["redone_seconds"] == 8 and found["compile_seconds"] == 19
  assert found["stops"] == {"done": 1, "killed": 1} and found["starts"] == 2


def test_who_was_asked_to_leave_is_idle_until_the_next_start(account):
  asked, failed = account(*FIRST, CLEAN, *SECOND)[1], account(*FIRST, FAILED, *SECOND)[1]
  assert asked["restart"] == 10 + 6 + 8 and failed["restart"] == 10 + 6 + 8 + 30
  assert asked["steps"] == failed["steps"] == 58


def test_a_checkpoint_within_a_logged_stretch_keeps_its_share_of_it(account):
  before = [{**event, "step": 6} if event["event"] == "resume" else event for event in SECOND]
  before = [{**event, "step": 7} if event["event"] == "begin" else event for event in before]
  found, seconds = account(*FIRST, *before)
  assert seconds["steps"] == 0.6 * 18 + 40 and seconds["input"] == 0.6 * 2
  assert found["redone_steps"] == 8 and found["redone_seconds"] == 0.4 * 20 + 8


def test_a_rollback_is_a_restart_without_a_new_session(account):
  back = [
    {"event": "rollback", "time": 162.0, "step": 14},
    {"event": "begin", "time": 165.0, "step": 11},
    {"event": "steps", "time": 175.0, "step": 15, "seconds": 10.0, "waited": 0.0},
    {"event": "stop", "time": 176.0, "reason": "done"},
  ]
  found, seconds = account(*FIRST, *back)
  assert seconds["restart"] == 10 + 3 + 8 and seconds["steps"] == 18 + 10
  assert found["starts"] == 1 and found["redone_steps"] == 4


def test_a_run_that_is_killed_while_it_starts_has_trained_nothing(account):
  seconds = account(FIRST[0], SECOND[0], SECOND[1])[1]
  assert seconds["restart"] == 205 - 100 and seconds["idle"] == 0


def test_no_events_are_no_time(tmp_path):
  found = goodput(tmp_path)
  assert found["wall_seconds"] == 0 and found["shares"] == dict.fromkeys(SHARES, 0.0)


def test_a_line_cut_off_by_a_kill_spoils_neither_the_next_nor_goodput(tmp_path):
  path = tmp_path / "events.jsonl"
  path.write_text('{"event": "start", "time": 1.0}\n{"event": "compile", "sec')
  with Events(tmp_path) as events:
    events("compile", seconds=1.5)
  lines = path.read_text().splitlines()
  assert [json.loads(line)["event"] for line in lines[2:]] == ["start", "compile", "stop"]
  found = goodput(tmp_path)
  assert found["starts"] == 2 and found["compile_seconds"] == 1.5
  assert found["stops"] == {"done": 1, "killed": 1}

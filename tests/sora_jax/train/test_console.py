"""When lines are due, and what counts as a terminal."""

import os
import pty
import subprocess
import sys

from sora_jax.train.console import Pace, format_seconds
from sora_jax.train.metrics import MetricsWriter, read_metrics

ASK = "from sora_jax.train.console import open_console as o; print(o().is_terminal)"


def test_lines_become_rarer():
  now = [100.0]
  pace = Pace(lambda: now[0])
  said = []
  for second in range(400):
    now[0] = 100.0 + second
    if pace.due():
      said.append(second)
  assert said == [0, 10, 20, 30, 40, 50, 60, 120, 180, 240, 300, 360]
  assert not pace.due() and pace.due(is_last=True) and pace.seconds == 399


def test_an_hour_is_shown_as_one():
  assert [format_seconds(s) for s in (0.4, 59.6, 3599, 3600, 90_061)] == [
    *("0:00:00", "0:01:00", "0:59:59", "1:00:00", "25:01:01"),
  ]


def is_terminal(stderr, **environment) -> bool:
  done = subprocess.run(
    [sys.executable, "-c", ASK],
    stdout=subprocess.PIPE,
    stderr=stderr,
    env=os.environ | {"PYTHONPATH": ":".join(sys.path)} | environment,
  )
  return done.stdout == b"True\n"


def test_colours_for_a_pipe_make_no_terminal_of_it():
  assert not is_terminal(subprocess.PIPE, FORCE_COLOR="1", TTY_COMPATIBLE="1", TERM="xterm")
  ours, theirs = pty.openpty()
  try:
    assert is_terminal(theirs, TERM="xterm") and not is_terminal(theirs, TERM="dumb")
  finally:
    os.close(ours)
    os.close(theirs)


def test_a_run_says_first_and_last_step_and_keeps_all(tmp_path, capsys):
  now = [0.0]
  with MetricsWriter(tmp_path, total_steps=300, clock=lambda: now[0]) as write:
    for step in range(1, 301):
      write(step, {"loss": 0.5})
      now[0] += 1.0
  said = [int(line.split()[2].split("/")[0]) for line in capsys.readouterr().err.splitlines()]
  assert said == [1, 11, 21, 31, 41, 51, 61, 121, 181, 241, 300]
  assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 301))

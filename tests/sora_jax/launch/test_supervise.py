"""A gang of small programs: restarted, given up, shrunk, asked to leave, as a run would be."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from sora_jax.launch import gang
from sora_jax.launch.gang import Devices
from sora_jax.launch.supervise import Supervision, judge, shrink, supervise

pytestmark = pytest.mark.slow

FAST = dict(back_off=0.05, silence=3.0, grace=5.0)


def program(text: str) -> list[str]:
  """A command that knows its `number`, the `processes`, and counts its `starts` in a file."""
  head = (
    "import os, sys, time, signal\n"
    "from pathlib import Path\n"
    "number, processes = int(os.environ['JAX_PROCESS_ID']), int(os.environ['JAX_NUM_PROCESSES'])\n"
    "beat = Path(os.environ['SORA_HEARTBEATS']) / f'process-{number}'\n"
    "count = Path(sys.argv[1]) / f'starts-{number}'\n"
    "starts = len(count.read_text()) if count.exists() else 0\n"
    "count.write_text('x' * (starts + 1))\n"
    "beat.write_text('step, step 3')\n"
  )
  return [sys.executable, "-c", head + text]


def run(tmp_path, text, processes=3, **settings):
  return supervise(
    [*program(text), str(tmp_path)], Supervision(processes=processes, **(FAST | settings))
  )


def test_done(tmp_path):
  assert run(tmp_path, "sys.exit(0)")[:3] == (0, 0, 3)


def test_one_that_is_killed_ends_and_starts_all(tmp_path):
  begin = time.monotonic()
  outcome = run(
    tmp_path,
    "if starts == 0 and number == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
    "if starts == 0: time.sleep(60)",  # the others hang, as in a collective
  )
  assert outcome[:3] == (0, 1, 3) and time.monotonic() - begin < 30
  assert {p.read_text() for p in tmp_path.glob("starts-*")} == {"xx"}


def test_one_that_is_stopped_is_lost(tmp_path, capfd):
  outcome = run(
    tmp_path,
    "if starts == 0 and number == 2: os.kill(os.getpid(), signal.SIGSTOP)\n"
    "if starts == 0:\n"
    "  signal.signal(signal.SIGUSR1, lambda *_: print('stacks', file=sys.stderr, flush=True))\n"
    "  while True: time.sleep(0.1); beat.write_text('step, step 4')",
  )
  assert outcome[:2] == (0, 1)
  said = capfd.readouterr().err
  assert "no sign of life of process 2 (step, step 3) for 3 s" in said
  assert "[0] stacks" in said and "[1] stacks" in said


def test_bad_input_is_not_tried_again(tmp_path):
  assert run(tmp_path, "sys.exit(2 if number == 1 else 1)")[:2] == (2, 0)


def test_it_gives_up(tmp_path):
  outcome = run(tmp_path, "sys.exit(1)", max_restarts=2)
  assert outcome.code == 1 and outcome.restarts == 2 and "3 times in a row" in outcome.why


def test_preempted_is_started_again_and_not_counted(tmp_path):
  assert run(tmp_path, "sys.exit(42 if starts < 3 else 0)", max_restarts=0)[:2] == (0, 3)


def test_shrinks_when_told_so(tmp_path):
  text = "if processes == 3 and number == 2: sys.exit(1)\nif processes == 3: time.sleep(60)"
  assert run(tmp_path, text, sizes=(2, 1))[:3] == (0, 1, 2)
  assert shrink(4, 1, ()) == 4 and shrink(4, 1, (2, 1)) == 2 and shrink(4, 0, (2,)) == 4
  assert shrink(4, 3, (2, 1)) == 1 and shrink(2, 2, (1,)) == 2


def test_asked_to_leave_it_passes_that_on(tmp_path):
  text = (
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))\n"
    "while True: time.sleep(0.05); beat.write_text('step')"
  )
  threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
  outcome = run(tmp_path, text)
  assert outcome.code == 42 and outcome.restarts == 0 and "SIGTERM" in outcome.why


def test_a_terminal_that_goes_is_passed_on_once_and_its_lines_are_lost(tmp_path, monkeypatch):
  """Several SIGHUP come at once: none is the second one that does not wait for a save."""
  text = (
    "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1.0), sys.exit(42)))\n"
    "while True: time.sleep(0.05); beat.write_text('step'); print('x' * 999, file=sys.stderr)"
  )

  def refuse(text):
    raise OSError(errno.EIO, "no terminal")

  monkeypatch.setattr(gang, "sys", SimpleNamespace(stderr=SimpleNamespace(write=refuse)))
  for seconds in (2.0, 2.1, 2.2):
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGHUP)).start()
  outcome = run(tmp_path, text, processes=1)
  assert outcome.code == 42 and outcome.restarts == 0 and "SIGHUP" in outcome.why


def test_judge():
  assert judge([0, 0], asked=False) == 0 and judge([42, 42], asked=False) == 42
  assert judge([42, 1], asked=False) == 1 and judge([1, 2, -9], asked=False) == 2
  assert judge([-9, -6], asked=False) == 137
  assert judge([-15, 42], asked=True) == 42 and judge([-15, 42], asked=False) == 143


def test_no_gang_outlives_its_supervisor(tmp_path):
  script = (
    "import sys, time\n"
    "from sora_jax.launch.gang import Devices, Gang\n"
    "from sora_jax.parallel import heartbeat\n"
    "text = 'from sora_jax.parallel.heartbeat import show_life; import time; show_life();'\n"
    "words = [sys.executable, '-c', text + 'time.sleep(60)']\n"
    "with Gang(words, 2, Devices()) as gang:\n"
    "  while len(list(gang._folder.iterdir())) < 2: time.sleep(0.05)\n"
    "  print(*gang.pids(), flush=True); time.sleep(60)"
  )
  with subprocess.Popen(
    [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
  ) as parent:
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
  assert len(pids) == 2
  end = time.monotonic() + 10
  while any(os.path.exists(f"/proc/{pid}/cwd") for pid in pids):
    assert time.monotonic() < end
    time.sleep(0.05)


def test_devices():
  assert Devices().variables(1) == {}
  assert Devices(cpus=2, gpus=3).variables(1) == {
    "JAX_NUM_CPU_DEVICES": "2",
    "CUDA_VISIBLE_DEVICES": "3,4,5",
  }

"""Terminals that are closed, readers that go, logs on full disks: a training saves or goes on."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sora_jax.train.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[3]
# Prefixes of a command, that do what a callable between fork and exec would: JAX warns of forks.
ON_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(2, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
NOHUP = ("bash", "-c", "trap '' HUP; exec \"$@\"", "nohup")

pytestmark = [
  pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device"),
  pytest.mark.slow,
]


@pytest.fixture
def begin():
  """Starts a command whose stdout is a full disk."""
  started = []

  def begin(*argv, prefix=(), stderr: int) -> subprocess.Popen:
    words = [*prefix, sys.executable, "-m", "sora_jax", *map(str, argv)]
    with open("/dev/full", "w") as full:
      started.append(
        subprocess.Popen(
          words, cwd=ROOT, env=os.environ | {"TERM": "xterm"}, stdin=subprocess.DEVNULL,
          stdout=full, stderr=stderr,
        )
      )  # fmt: skip
    return started[-1]

  yield begin
  for process in started:
    process.kill()
    process.wait()


def wait_for(process, workdir, step: int) -> None:
  end = time.monotonic() + 240
  while not any(line["step"] >= step for line in read_metrics(workdir)):
    assert process.poll() is None and time.monotonic() < end
    time.sleep(0.01)


def test_a_terminal_that_goes_saves_and_a_lost_reader_changes_nothing(begin, workdir, debug, sora):
  first = debug.steps - 2 * debug.every
  folder = workdir(first)
  argv = ("train", *debug.argv, f"--workdir={folder}")
  master, slave = os.openpty()

  shown = []
  process = begin(*argv, prefix=(sys.executable, "-c", ON_TERMINAL), stderr=slave)
  os.close(slave)
  closing = threading.Event()

  def read():
    while not closing.is_set():
      shown.append(os.read(master, 1000))
    os.close(master)  # the kernel sends SIGHUP, and whoever writes there from now on gets EIO

  reader = threading.Thread(target=read)
  reader.start()
  wait_for(process, folder, first + 1)
  closing.set()
  assert process.wait(timeout=120) == 42
  reader.join(10)
  step = sora("inspect", f"--workdir={folder}", "--json").result["step"]
  assert first < step < debug.steps and read_metrics(folder)[-1]["step"] == step
  assert "━".encode() in b"".join(shown)  # it was a terminal, with its bar

  # The rest of it without a reader, under a supervisor that ignores SIGHUP as under nohup.
  read_end, write_end = os.pipe()
  os.close(read_end)
  words = ("launch", "local", "--processes=1", "--max-restarts=0", "--")
  process = begin(*words, *argv, prefix=NOHUP, stderr=write_end)
  os.close(write_end)
  wait_for(process, folder, step + 1)
  process.send_signal(signal.SIGHUP)
  assert process.wait(timeout=240) == 0
  assert sora("inspect", f"--workdir={folder}", "--json").result["step"] == debug.steps

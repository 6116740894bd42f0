"""Processes whose standard streams fail, or are not there: they end as if these had not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import logging, os, sys, threading, traceback
from data_pipeline import messages, streams
streams.guard()
messages.begin()
print("a line", flush=True)
print("another", file=sys.stderr)
sys.stdout.write("\\udcff half")
logging.getLogger("sora_jax").warning("said")
try:
  1 / 0
except ZeroDivisionError:
  traceback.print_exc()
thread = threading.Thread(target=lambda: 1 / 0)
thread.start(); thread.join()
from sora_jax.train.console import open_console
open_console().print("a bar")
opened = open(sys.argv[1], "w")
opened.write("data")
opened.close()
lost = streams.lost_result()
os.write(int(sys.argv[2]), repr(lost.errno if lost else 0).encode())
"""


CLOSED = ("bash", "-c", "exec \"$@\" 0<&- 1>&- 2>&-", "closed")


def run(folder, prefix=(), **streams):
  read, write = os.pipe()
  script, path = folder / "program.py", folder / "opened"
  script.write_text(PROGRAM)
  done = subprocess.run(
    [*prefix, sys.executable, str(script), str(path), str(write)], pass_fds=[write], timeout=60,
    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, **streams,
  )  # fmt: skip
  os.close(write)
  said = os.read(read, 1000).decode()
  os.close(read)
  assert done.returncode == 0 and path.read_text() == "data", said
  return json.loads(said), done


def broken_pipe() -> int:
  read, write = os.pipe()
  os.close(read)
  return write


def lost_terminal() -> int:
  """A terminal whose other end is closed: writing to it raises EIO."""
  master, slave = os.openpty()
  os.close(master)
  return slave


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device")
def test_streams_that_fail_end_nothing(tmp_path):
  full = os.open("/dev/full", os.O_WRONLY)
  lost, _ = run(tmp_path, stdout=full, stderr=broken_pipe())
  assert lost == 28  # ENOSPC: whoever waits for the result has to know
  lost, _ = run(tmp_path, stdout=broken_pipe(), stderr=lost_terminal())
  assert lost == 0  # nobody waits for it


def test_streams_that_are_closed_are_not_those_of_the_next_file(tmp_path):
  lost, _ = run(tmp_path, CLOSED)
  assert lost == 0


def test_streams_that_work_have_every_line_once(tmp_path):
  lost, done = run(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  assert lost == 0 and done.stdout == b"a line\n\\udcff half"
  said = done.stderr.decode()
  assert said.startswith("another\nWARNING: said\nTraceback") and said.endswith("a bar\n")
  assert said.count("ZeroDivisionError") == 2

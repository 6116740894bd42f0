"""Processes that wait for others to come: they say for whom, and hear signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sora_jax.parallel import heartbeat, hosts, joining
from sora_jax.parallel.joining import Joining, LostPeer, name_numbers, wait_for

ROOT = Path(__file__).resolve().parents[3]
TRAIN = ("train", "--config=experiments/demo.py:debug")


class Waiting:
  """A context: a `sora train` that waits for others."""

  def __init__(self, *words, variables=None):
    names = {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"} | (variables or {})
    self.process = subprocess.Popen(
      [sys.executable, "-m", "sora_jax", *TRAIN, *words],
      cwd=ROOT, env=os.environ | names, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

  def line(self) -> str:
    assert self.process.stderr is not None
    return self.process.stderr.readline()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.process.kill()
    self.process.communicate()

  def end(self, number: int | None = None) -> tuple[int, str, float]:
    """Exit code, the rest of stderr, and the seconds that it took."""
    begin = time.monotonic()
    if number:
      self.process.send_signal(number)
    _, said = self.process.communicate(timeout=60)
    return self.process.returncode, said, time.monotonic() - begin


@pytest.mark.slow
def test_absent_processes_are_named_and_every_signal_is_heard(tmp_path):
  """Three processes at once, since each needs seconds to import; none of them ever joins."""
  ports = [heartbeat.free_port() for _ in range(3)]
  workdir, addresses = f"--workdir={tmp_path / 'run'}", [f"127.0.0.1:{port}" for port in ports]
  words = lambda i, number: (  # noqa: E731
    workdir, "--processes=3", f"--coordinator={addresses[i]}", f"--process={number}"
  )  # fmt: skip
  slurm = {f"SLURM_{name}": value for name, value in SLURM.items()}
  slurm["JAX_COORDINATOR_ADDRESS"] = addresses[2]
  with (
    Waiting(workdir, "--config.wait.start_seconds=4", variables=slurm) as overdue,
    Waiting(*words(0, 0)) as interrupted,
    Waiting(*words(1, 1)) as asked,
  ):
    assert interrupted.line().startswith(
      f"hosts: process 0 of 3 waits for process 1, process 2 (coordinator {addresses[0]}, for "
    )
    code, said, seconds = interrupted.end(signal.SIGINT)
    assert (code, said) == (1, "sora train: interrupted.\n") and seconds < 3
    assert "process 1 of 3 waits for process 0: Connection refused (coordinator" in asked.line()
    code, said, seconds = asked.end(signal.SIGTERM)
    assert code == 42 and "nothing is lost" in said and len(said.splitlines()) == 1, said
    assert seconds < 3
    code, said, _ = overdue.end()
    assert code == 1 and "process 0 of 2 waits for process 1 (coordinator" in said, said
    assert "to run alone: JAX_NUM_PROCESSES=1" in said
    assert said.splitlines()[-1] == (
      f"sora train: hosts: process 0 of 2 waited 4 s at {addresses[2]} for process 1. Start what is"
      " absent, or look at its log."
    )
  assert not (tmp_path / "run").exists()


SLURM = dict(
  JOB_ID="12", STEP_NODELIST="n[1-2]", NTASKS="2", PROCID="0", LOCALID="0", STEP_NUM_NODES="2"
)


def test_who_is_absent_goes_to_all():
  ends, address = {}, f"127.0.0.1:{heartbeat.free_port()}"
  first, second = Joining(0, 3, address), Joining(1, 3, address)
  threads = [
    threading.Thread(target=joining.gather, args=(first, address)),
    threading.Thread(target=lambda: ends.update({1: joining.call(second)})),
  ]
  for thread in threads:
    thread.start()
  until(lambda: first.waits == "process 2" and second.waits == "process 2" and second.is_told)
  # One that says another number of processes, one that is none of ours, one that goes away again.
  for word in ({"process": 2, "processes": 5, "host": "x"}, {"process": 0, "processes": 3}):
    with speak(address, word) as line:
      answer = line.recv(4096)
    assert (b"was told of 5 processes, process 0 of 3" in answer) == (word["process"] == 2)
  with socket.create_connection(("127.0.0.1", int(address.split(":")[1]))) as line:
    line.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(5000))
  speak(address, {"process": 2, "processes": 3, "host": "x"}).close()
  until(lambda: first.waits == "process 2")
  # A second one of a number takes its place; the first is told.
  twin = speak(address, {"process": 2, "processes": 3, "host": "y"})
  threads[0].join(10)
  assert not threads[0].is_alive() and b'"go": true' in read_all(twin)
  with socket.create_server(("127.0.0.1", int(address.split(":")[1]))):  # as JAX does
    threads[1].join(10)
  assert ends == {1: None}


def test_two_of_one_number_are_told():
  address = f"127.0.0.1:{heartbeat.free_port()}"
  status = Joining(0, 3, address)
  thread = threading.Thread(target=joining.gather, args=(status, address))
  thread.start()
  first = speak(address, {"process": 1, "processes": 3, "host": "a"})
  until(lambda: status.waits == "process 2")
  second = speak(address, {"process": 1, "processes": 3, "host": "b"})
  assert b"another process 1 came, on b (this one is on a)" in read_all(first, b"own.")
  status.is_over.set()
  thread.join(10)
  assert not thread.is_alive() and b'"go": false' in read_all(second)


def until(condition, seconds=10.0):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


def speak(address: str, word: dict) -> socket.socket:
  host, _, port = address.rpartition(":")
  end = time.monotonic() + 10
  while True:
    try:
      line = socket.create_connection((host, int(port)), timeout=10)
      break
    except OSError:
      assert time.monotonic() < end
      time.sleep(0.02)
  line.sendall(json.dumps(word).encode() + b"\n")
  return line


def read_all(line: socket.socket, end: bytes = b"") -> bytes:
  with line:
    data = b""
    while not (end and end in data) and (got := line.recv(4096)):
      data += got
  return data


def test_what_the_thread_raises_is_raised_and_a_port_in_use_is_named(monkeypatch):
  monkeypatch.setattr(joining, "_TICK", 0.01)
  with pytest.raises(ZeroDivisionError):
    wait_for(lambda: 1 // 0, Joining(0, 2, "a:1"), 10)
  assert wait_for(lambda: 7, Joining(0, 2, "a:1"), 10) == 7
  with socket.create_server(("127.0.0.1", 0)) as taken:
    bind = f"127.0.0.1:{taken.getsockname()[1]}"
    status = Joining(0, 2, bind)
    status.is_over.set()
    with pytest.raises(LostPeer, match=rf"process 0 cannot listen at {bind} \(.*in use"):
      joining.gather(status, bind)


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.6\r\n", b"5\n", b"{}\n", b"x" * 9000])
def test_another_service_at_the_address_is_named(said):
  with socket.create_server(("127.0.0.1", 0)) as door:
    address = f"127.0.0.1:{door.getsockname()[1]}"

    def answer():
      with door.accept()[0] as caller:
        caller.sendall(said)
        caller.recv(4096)

    threading.Thread(target=answer, daemon=True).start()
    with pytest.raises(LostPeer, match=f"what answers at {address} is not process 0 of a run"):
      joining.call(Joining(1, 2, address))


def test_names_of_many():
  assert name_numbers([2, 1]) == "process 1, process 2"
  assert name_numbers(range(1, 13)).endswith("process 8 and 4 more")
  assert hosts.LostPeer is LostPeer

"""Real processes meet, say who does not come, and listen on the loopback interface alone."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from data_pipeline.errors import BadInput
from sora_jax.parallel import heartbeat, hosts

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / "tests" / "support" / "three_hosts.py"


@pytest.mark.slow
def test_processes_meet_and_miss_one():
  port = heartbeat.free_port()
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  processes = [
    subprocess.Popen(
      [sys.executable, str(PROGRAM), str(port), "3", str(i)],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )
    for i in range(3)
  ]  # fmt: skip
  outs = [process.communicate(timeout=120) for process in processes]
  found = []
  for out, err in outs:
    assert out, err
    found.append(json.loads(out.splitlines()[-1]))
  assert [one["first"] for one in found] == [True, False, False]
  assert all(one["numbers"] == [0, 1, 2] for one in found)
  assert len({one["once"] for one in found}) == 1  # all know what was said first
  assert all(one["heard"] == one["once"] and one["nothing"] is None for one in found)
  assert all(one["bad"] == "mend it" for one in found)  # of process 0, in all of them
  (address,) = found[0]["listens"]  # 127.0.0.1 (as IPv6 writes it, too), and no other one
  assert address in ("0100007F", "0000000000000000FFFF00000100007F")
  name = socket.gethostname()
  for one in (found[0], found[2]):
    assert f"at late, after 2 s, process 1 on {name} did not come" in one["lost"]


@pytest.mark.parametrize(
  "words", [("a:1", 2, -1), ("a", 2, 0), ("a:x", 2, 0), ("a:1", 2, 2), ("", 2, 0), (":1", 1, 0)]
)
def test_half_of_it_is_refused(words):
  with pytest.raises(BadInput, match="--coordinator, --processes and --process are"):
    hosts._given(*words)


def test_what_flags_and_variables_say(monkeypatch):
  for name in hosts.VARIABLES:
    monkeypatch.delenv(name, raising=False)
  assert hosts._given("", 0, -1) is None
  assert hosts._given("h:1", 2, 1) == ("h:1", 2, 1, None)
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "n1:7")
  assert hosts._given("", 0, -1) is None  # for what is detected
  monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
  with pytest.raises(BadInput, match="JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES"):
    hosts._given("", 0, -1)
  monkeypatch.setenv("JAX_PROCESS_ID", "3")
  monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,1")
  assert hosts._given("", 0, -1) == ("n1:7", 4, 3, [0, 1])


def test_slurm_is_detected(monkeypatch):
  names = dict(JOB_ID="12", STEP_NODELIST="n[1-2]", NTASKS="2", PROCID="1", LOCALID="0")
  for name, value in (names | {"STEP_NUM_NODES": "2"}).items():
    monkeypatch.setenv(f"SLURM_{name}", value)
  found = hosts._detect(5)
  assert found is not None and found[0].startswith("n1:") and found[1:3] == (2, 1)


def test_the_coordinator_listens_where_it_is_looked_for(monkeypatch, capsys):
  monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
  assert hosts.bind_address("127.0.0.1:5", 4) == "127.0.0.1:5"
  assert hosts.bind_address("[::1]:5", 4) == "[::1]:5"
  monkeypatch.setattr(
    socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("127.0.1.1", 0))]
  )
  assert hosts.bind_address("n1:5", 1) == "127.0.1.1:5"
  monkeypatch.setattr(hosts, "network_address", lambda: "10.9.9.9")
  assert hosts.bind_address("n1:5", 2) == "10.9.9.9:5"  # else nobody could reach it
  assert "listens on 10.9.9.9" in capsys.readouterr().err
  monkeypatch.setattr(hosts, "network_address", lambda: "")
  assert hosts.bind_address("n1:5", 2) == "127.0.1.1:5"
  monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "10.0.0.1:5")
  assert hosts.bind_address("n1:5", 2) == "10.0.0.1:5"


PART = """
import sys, time
from sora_jax.commands.entry import leave
from sora_jax.parallel import hosts
hosts.initialize(start_seconds=60)
if hosts.index():
  leave(42)
begin = time.monotonic()
try:
  hosts.barrier("here", seconds=100)
except hosts.LostPeer as error:
  print(error.exit_code, round(time.monotonic() - begin), error, flush=True)
  leave(error.exit_code)
"""


@pytest.mark.slow
def test_who_leaves_alone_is_not_waited_for():
  address, both = f"127.0.0.1:{heartbeat.free_port()}", []
  for number in ("0", "1"):
    named = dict(zip(hosts.VARIABLES, (address, "2", number), strict=True))
    both.append(
      subprocess.Popen(
        [sys.executable, "-c", PART], env=os.environ | named, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      )
    )  # fmt: skip
  (said, _), _ = [process.communicate(timeout=100) for process in both]
  assert [process.returncode for process in both] == [42, 42]
  code, seconds, *text = said.split(maxsplit=2)
  assert code == "42" and int(seconds) < 20 and "left with exit code 42" in text[0]


def test_what_a_collective_says_of_a_lost_process_is_one_line(monkeypatch):
  error = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed\nmore")
  with pytest.raises(jax.errors.JaxRuntimeError), hosts.naming_lost_peers():
    raise error  # alone there is nobody to lose
  monkeypatch.setattr(hosts, "count", lambda: 2)
  with pytest.raises(hosts.LostPeer, match=r"is gone, or does not answer \(UNKNOWN: Gloo all-red"):
    with hosts.naming_lost_peers():
      raise error
  with pytest.raises(jax.errors.JaxRuntimeError), hosts.naming_lost_peers():
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

"""Who is late, of hosts that all show the same step time."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sora_jax.train.stragglers import Hosts, summarise_hosts

PROGRAM = Path(__file__).parents[2] / "support" / "two_hosts.py"


def test_the_slowest_host_and_how_much_of_a_step_it_costs():
  found = summarise_hosts(np.array([0.1, 0.1, 0.6, 0.2]), 1.0)
  assert found["slowest_host"] == 2 and found["host_seconds"] == [0.1, 0.1, 0.6, 0.2]
  assert found["straggling"] == pytest.approx(0.45)


def test_one_host_is_never_behind():
  found = summarise_hosts(Hosts()(0.3), 0.5)
  assert found == {"host_seconds": [0.3], "slowest_host": 0, "straggling": 0.0}


def test_two_processes_share_a_batch_and_hear_of_each_other():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  both = [
    subprocess.Popen(
      [sys.executable, str(PROGRAM), str(port), str(i)],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  said = [process.communicate(timeout=120) for process in both]
  for out, err in said:
    assert "'host_seconds': [0.25, 0.5], 'slowest_host': 1" in out, err[-2000:]

"""A state moves between numbers of processes, meshes and slices: what inspect prints stays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sora_jax.commands.inspect_run import describe_run
from sora_jax.parallel.heartbeat import free_port
from sora_jax.parallel.hosts import VARIABLES
from sora_jax.train.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
# Processes, devices of each, mesh, slices.
MOVES = [
  (2, 2, dict(data=1, fsdp=4), 0),
  (1, 4, dict(data=2, fsdp=1, tensor=2), 0),
  (2, 1, dict(data=2), 0),
  (4, 1, dict(data=2, fsdp=2), 2),
]
SAME = ("tokens_seen", "clips_seen", "cursor", "params_sha256", "ema_sha256", "opt_sha256")


def move(folder, begin: int, processes: int, devices: int, mesh: dict, slices: int) -> list[dict]:
  """Restores step `begin`, saves the next one; what each process says."""
  address, started = f"127.0.0.1:{free_port()}", []
  for number in range(processes):
    named = zip(VARIABLES, (address, str(processes), str(number)), strict=True)
    command = [sys.executable, "-W", "error", "tests/support/reshard.py", str(folder)]
    started.append(
      subprocess.Popen(
        [*command, str(begin), str(begin + 1), json.dumps(mesh), str(slices)],
        env=os.environ | dict(named) | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": "."},
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      )
    )  # fmt: skip
  ended = [process.communicate(timeout=120) for process in started]
  assert [process.returncode for process in started] == [0] * processes, ended
  return [json.loads(out.splitlines()[-1]) for out, _ in ended]


def test_hashes_are_those_before_on_any_processes(tmp_path):
  said = [move(tmp_path / "checkpoints", step, *how) for step, how in enumerate(MOVES)]
  # Of two slices of two processes, those of the first one read; -0.0 and NaN arrive as they were.
  assert [each["reads"] for each in said[-1]] == [1, 1, 0, 0]
  assert all(each["reads"] for moved in said[1:-1] for each in moved)
  with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
    assert checkpoints.all_steps() == [1, 2, 3, 4]
  newest = describe_run(tmp_path)
  for step in (4, 3, 2):
    (tmp_path / "checkpoints" / str(step)).rename(tmp_path / str(step))
    before = describe_run(tmp_path)
    assert before["step"] == step - 1
    assert {name: before[name] for name in SAME} == {name: newest[name] for name in SAME}

"""A device that holds something else than its copies is found and named."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "support" / "replicas.py"


def test_devices_that_differ_are_named():
  done = subprocess.run(
    [sys.executable, str(PROGRAM)],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["sound"] == ""
  for part in ("params", "opt", "first"):  # of two copies, whichever of them is damaged
    assert "at step 7 the replicas of 1 arrays differ" in found[part]
    assert "on one of (there is no majority) cpu 1 of process 0, cpu 5 of process 0:" in found[part]
  assert "blocks/table on cpu 2 of process 0:" in found["swapped"]  # of eight
  assert "blocks/attention/qkv/kernel" in found["params"]
  assert found["coverage"] == 1.0 and 0 < found["fsdp"] < 0.1

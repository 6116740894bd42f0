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
  for part, device in (("params", 5), ("opt", 5), ("swapped", 2)):
    assert "at step 7 the replicas of 1 arrays differ" in found[part]
    assert f"cpu {device} of process 0" in found[part] and found[part].count("of process") == 1
  assert "blocks/attention/qkv/kernel" in found["params"]

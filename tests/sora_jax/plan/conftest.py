"""Programs that need several CPU devices, in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[2] / "support"


@pytest.fixture
def run_support():
  """`(program of tests/support, devices) -> its last line, as JSON`."""

  def run(name: str, *, devices: int):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
      [sys.executable, str(SUPPORT / name)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])

  return run

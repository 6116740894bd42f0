"""Loss and every gradient on meshes of eight fake devices are those of one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "support" / "mesh_gradients.py"
CLOSE = 1e-5  # of a gradient's norm, in float32


def measure(what: str) -> dict:
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  done = subprocess.run(
    [sys.executable, str(PROGRAM), what], env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("what", "leaves", "meshes"), [("dit", 29, 11), ("vae", 32, 7)])
def test_gradients_do_not_depend_on_the_mesh(what, leaves, meshes):
  report = measure(what)
  apart = report["apart"]
  assert apart.pop("leaves") == leaves and apart.pop("flat") == []  # each of them has a gradient
  assert len(apart) == meshes
  for mesh, (loss, gradient, leaf) in apart.items():
    assert loss < 1e-6 and gradient < CLOSE, (mesh, loss, gradient, leaf)
  for mutant in ("forgetful", "own_segments"):
    for mesh, found in report.get(mutant, {}).items():
      if "x" in mesh:
        assert found[1] > 100 * CLOSE, (mutant, mesh, found)
  assert what == "vae" or {"forgetful", "own_segments"} < set(report)

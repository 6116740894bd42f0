"""Loss and gradients on meshes of eight fake devices, or in microbatches, are those of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[2] / "support" / "mesh_gradients.py"
MUTANTS = ("forgetful", "own_segments", "mean_of_means")
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
  kernels = (("splash", 1), ("triton", 1)) if what == "dit" else ()
  for name, count in (("apart", meshes), ("accumulated", 3), *kernels):
    apart = report[name]
    assert apart.pop("leaves") == leaves and apart.pop("flat") == []  # each has a gradient
    assert len(apart) == count
    for mesh, (loss, gradient, leaf) in apart.items():
      assert loss < 1e-5 and gradient < CLOSE, (name, mesh, loss, gradient, leaf)
  assert what == "vae" or set(MUTANTS) < set(report)
  for mutant in set(MUTANTS) & set(report):
    (found,) = (value for mesh, value in report[mutant].items() if "x" in mesh)
    assert found[1] > 100 * CLOSE, (mutant, found)

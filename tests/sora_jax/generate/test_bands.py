"""Long clips that are fewer than the devices are encoded by several devices each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from sora_jax.generate.programs import Programs, choose_programs

PROGRAM = Path(__file__).parents[2] / "support" / "encode_bands.py"


def test_bands_of_a_clip_give_its_latents():
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  command = [sys.executable, str(PROGRAM)]
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  report = json.loads(done.stdout.splitlines()[-1])
  assert {name: found["rows"] for name, found in report.items()} == {
    "1/1": [1],
    "1/8": [1],
    "2/8": [2],
  }
  for found in report.values():
    assert found["chunks"] == [5, 4] and found["apart"] < 1e-5


def test_only_long_clips_that_are_few_are_shared():
  whole = Programs(time_factor=4, space_factor=8, rows=64, devices=8, radius=1)
  long, short, odd = (401, 512, 512), (9, 64, 64), (401, 264, 512)  # 33 latents: in 3 or 11 bands
  shapes = np.array([long] * 3 + [short] + [odd])
  found = choose_programs(shapes, whole, patch_side=2)
  assert found.shared == {long: 4}  # three clips, each on two devices; one row is a copy
  assert choose_programs(np.array([long] * 8), whole, patch_side=2) is whole

"""The first losses of `experiments/demo.py:debug` from its seed: changed mathematics show.

Once as it begins, with gates and head at zero, which hides the blocks for a while; once without.
Write them anew after a change that is meant, see tests/test_goldens.py.
"""

import os

import numpy as np

from sora_jax.train.metrics import read_metrics

# Processors round differently, and steps carry a difference on.
TOLERANCE = 2e-3


def compare(root, workdir, name: str) -> None:
  path = root / "tests" / "goldens" / name
  losses = [line["loss"] for line in read_metrics(workdir)]
  if os.environ.get("REGENERATE"):
    path.write_text("".join(f"{loss:.6f}\n" for loss in losses), encoding="utf-8")
  assert len(losses) == 20
  np.testing.assert_allclose(losses, np.loadtxt(path), rtol=TOLERANCE)


def test_losses(finished, request):
  compare(request.config.rootpath, finished, "losses_demo_debug.txt")


def test_losses_of_gates_that_are_open(sora, debug, tmp_path, request):
  changes = ("model.zero_init=False", "every.checkpoint_steps=20", "every.evaluate_steps=0")
  argv = [f"--config.{change}" for change in changes]
  done = sora("train", *debug.argv, *argv, f"--workdir={tmp_path}")
  assert done.code == 0, done.err
  compare(request.config.rootpath, tmp_path, "losses_demo_debug_open.txt")

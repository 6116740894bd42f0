"""The first losses of `experiments/demo.py:debug` from its seed: changed mathematics show.

Write them anew after a change that is meant, see tests/test_goldens.py.
"""

import os

import numpy as np

from sora_jax.train.metrics import read_metrics

# Processors round differently, and steps carry a difference on.
TOLERANCE = 2e-3


def test_losses(finished, request):
  path = request.config.rootpath / "tests" / "goldens" / "losses_demo_debug.txt"
  losses = [line["loss"] for line in read_metrics(finished)]
  if os.environ.get("REGENERATE"):
    path.write_text("".join(f"{loss:.6f}\n" for loss in losses), encoding="utf-8")
  assert len(losses) == 20
  np.testing.assert_allclose(losses, np.loadtxt(path), rtol=TOLERANCE)

"""The same run on one device and on meshes of four: the same losses."""

import numpy as np
import pytest

from sora_jax.train.metrics import read_metrics

pytestmark = pytest.mark.slow

STEPS = 3
SHORT = (
  "--config=experiments/demo.py:debug",
  f"--config.total_steps={STEPS}",
  f"--config.every.checkpoint_steps={STEPS}",
  "--config.every.evaluate_steps=0",
  "--config.optim.warmup_steps=1",
)
MESHES = {
  "whole": {},
  "data": {"data": 4},
  "fsdp": {"fsdp": 4},
  "slices": {"data": 2, "fsdp": 2, "slices": 2},
  "context": {"data": 2, "context": 2},
  "tensor": {"fsdp": 2, "tensor": 2},
  "over_context": {"fsdp": 2, "context": 2, "over_context": True},
}


def test_every_mesh_trains_alike(start, monkeypatch, tmp_path):
  found = {}
  for name, sizes in MESHES.items():
    devices = f"--xla_force_host_platform_device_count={4 if sizes else 1}"
    monkeypatch.setenv("XLA_FLAGS", devices)
    over_context = f"--config.shard_over_context={sizes.pop('over_context', False)}"
    mesh = [over_context, *(f"--config.mesh.{axis}={size}" for axis, size in sizes.items())]
    process = start("train", *SHORT, *mesh, f"--workdir={tmp_path / name}")
    assert process.wait() == 0, process.log()
    lines = read_metrics(tmp_path / name)
    found[name] = np.array([[line["loss"], line["grad_norm"]] for line in lines])
  assert found["whole"].shape == (STEPS, 2)
  assert len(np.unique(found["whole"])) == 2 * STEPS  # other batches, and parameters that move
  for name, values in found.items():
    np.testing.assert_allclose(values, found["whole"], rtol=2e-5, err_msg=name)

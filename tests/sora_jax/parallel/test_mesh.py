"""Mesh sizes and where a batch goes. More than one device: `test_reshard.py`."""

import jax
import numpy as np
import pytest

from data_pipeline.errors import BadInput
from sora_jax.parallel.mesh import AXES, make_mesh, make_put


def test_one_device_fills_every_axis_with_one():
  mesh = make_mesh()
  assert mesh.axis_names == AXES
  assert dict(mesh.shape) == {"data": len(jax.devices()), "fsdp": 1, "context": 1, "tensor": 1}


def test_minus_one_takes_the_rest():
  devices = jax.devices()
  mesh = make_mesh(data=1, fsdp=-1, devices=devices)
  assert mesh.shape["fsdp"] == len(devices)


@pytest.mark.parametrize(
  "sizes, text",
  [
    (dict(fsdp=2), r"fsdp=2, .* does not use 1 devices evenly \(the sizes multiply to 2\)"),
    (dict(data=3), "does not use 1 devices evenly"),
    (dict(data=-1, fsdp=-1), "at most one may be -1"),
    (dict(data=0), "data=0, .* is not a mesh"),
  ],
)
def test_sizes_that_do_not_fit(sizes, text):
  with pytest.raises(BadInput, match=text):
    make_mesh(**sizes, devices=jax.devices()[:1])


def test_put_leaves_bookkeeping_on_the_host():
  put = make_put(make_mesh(devices=jax.devices()[:1]))
  batch = {"latents": np.ones((2, 3), np.float32), "segment_record": np.full((2, 1), 2**40)}
  arrays = put(batch)
  assert set(arrays) == {"latents"}
  np.testing.assert_array_equal(arrays["latents"], batch["latents"])


def test_put_names_rows_that_differ():
  put = make_put(make_mesh(devices=jax.devices()[:1]))
  with pytest.raises(BadInput, match=r"rows=\{'a': 2, 'b': 3\}"):
    put({"a": np.zeros((2, 1)), "b": np.zeros((3, 1))})

"""Mesh sizes, who reads which rows, and where a batch goes. On devices: `test_reshard.py`."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from data_pipeline.errors import BadInput
from sora_jax.attention.ulysses import over_mesh
from sora_jax.parallel import mesh as mesh_module
from sora_jax.parallel.mesh import AXES, host_share, make_mesh
from sora_jax.parallel.place import make_put


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


def fakes(processes, each, slices=1):
  """Devices as many processes have them, in order; each slice holds as many processes."""
  return [
    SimpleNamespace(
      id=i, process_index=i // each, slice_index=i * slices // (processes * each), platform="cpu"
    )
    for i in range(processes * each)
  ]


def ids(mesh):
  return np.vectorize(lambda device: device.id)(mesh.devices)


@pytest.fixture
def as_mesh(monkeypatch):
  """A mesh of devices that are not there, as its axes and devices alone."""

  def make(devices, axes, axis_types):
    shape = dict(zip(axes, devices.shape, strict=True))
    return SimpleNamespace(devices=devices, shape=shape)

  monkeypatch.setattr(mesh_module, "Mesh", make)


@pytest.mark.parametrize("told", [True, False])
def test_slices_divide_the_data_axis_alone(as_mesh, told):
  devices = fakes(4, 4, slices=2 if told else 1)
  mesh = make_mesh(fsdp=4, slices=0 if told else 2, devices=devices)
  assert mesh.shape == {"data": 4, "fsdp": 4, "context": 1, "tensor": 1}
  for rank, row in enumerate(ids(mesh)):  # parameters are in shards within a slice
    assert {i // 8 for i in row.ravel()} == {rank // 2}


def test_slices_that_do_not_fit(as_mesh):
  devices = fakes(4, 4, slices=2)
  with pytest.raises(BadInput, match="data=1 does not divide over slices=2"):
    make_mesh(data=1, fsdp=16, devices=devices)
  with pytest.raises(BadInput, match="slices=3 does not divide 16 devices"):
    make_mesh(slices=3, devices=devices)
  with pytest.raises(BadInput, match=r"slices of \[4, 8\] devices are not alike"):
    make_mesh(devices=[*devices[:8], *devices[12:]])


@pytest.mark.parametrize(
  ("sizes", "shares"),
  [
    (dict(data=8), [(0, 4), (1, 4), (2, 4), (3, 4)]),
    (dict(data=2, fsdp=4), [(0, 4), (1, 4), (2, 4), (3, 4)]),
    (dict(data=4, context=2), [(0, 4), (1, 4), (2, 4), (3, 4)]),
    (dict(data=2, context=4), [(0, 2), (0, 2), (1, 2), (1, 2)]),  # two processes share their rows
    (dict(data=1, context=4, tensor=2), [(0, 1)] * 4),
  ],
)
def test_processes_read_the_rows_that_their_devices_hold(as_mesh, monkeypatch, sizes, shares):
  mesh = make_mesh(**sizes, devices=fakes(4, 2))
  for process, share in enumerate(shares):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    assert host_share(mesh) == share


def test_a_process_whose_rows_lie_apart(as_mesh):
  devices = fakes(2, 4)
  mixed = [devices[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]
  with pytest.raises(BadInput, match="devices of process 0 hold the row shares .* not a block of"):
    host_share(make_mesh(data=8, devices=mixed))


def test_heads_that_do_not_divide(as_mesh):
  mesh = make_mesh(data=1, context=4, tensor=2, devices=fakes(1, 8))
  with pytest.raises(BadInput, match=r"context=4 \* tensor=2 does not divide model.heads=12"):
    over_mesh(len, mesh, heads=12)


def test_slots_that_do_not_divide(as_mesh):
  put = make_put(make_mesh(data=1, context=4, devices=fakes(1, 4)))
  with pytest.raises(BadInput, match=r"position has 6 along axis 1, which mesh.context=4 does not"):
    put({"position": np.zeros((2, 6, 4), np.float32)})

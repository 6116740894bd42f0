"""The device mesh, and where a host batch goes on it.

Axes: `data` copies of the model, `fsdp` parameters in shards, `context` slots of a row, `tensor`
widths of a layer.
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from data_pipeline.errors import BadInput

AXES = ("data", "fsdp", "context", "tensor")
ROWS = PartitionSpec(("data", "fsdp"))
# Bookkeeping that no network reads; its 64-bit integers would be cut to 32 on a device.
HOST_KEYS = ("segment_record", "segment_dataset")


def make_mesh(
  *, data: int = -1, fsdp: int = 1, context: int = 1, tensor: int = 1, devices=None
) -> Mesh:
  """Lays the devices out along the four axes.

  Args:
    data, fsdp, context, tensor: devices along each axis; one may be -1 and takes the rest.
    devices: defaults to all devices of all processes.
  Raises:
    BadInput: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = dict(zip(AXES, (data, fsdp, context, tensor), strict=True))
  asked = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
  free = [axis for axis, size in sizes.items() if size == -1]
  if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
    raise BadInput(f"mesh: {asked} is not a mesh. Give sizes of 1 or more; at most one may be -1.")
  known = math.prod(size for size in sizes.values() if size != -1)
  if len(devices) % known or (not free and known != len(devices)):
    raise BadInput(
      f"mesh: {asked} does not use {len(devices)} devices evenly (the sizes multiply to {known})."
      " Set mesh.data=-1, or sizes that multiply to the number of devices."
    )
  shape = tuple(len(devices) // known if size == -1 else size for size in sizes.values())
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole value on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows of a batch over `data` and `fsdp`; the rest of the row whole."""
  return NamedSharding(mesh, ROWS)


def make_put(mesh: Mesh):
  """A function that starts the copy of a host batch to the devices.

  Returns:
    `put(batch)`: a dict of numpy arrays, the rows [b_local,...] of this process, to global arrays
    [b,...] in the rows' sharding; `HOST_KEYS` stay behind. It does not wait for the copy.
  """
  sharding = batch_sharding(mesh)
  ranks = mesh.shape["data"] * mesh.shape["fsdp"]

  def put(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    kept = {key: value for key, value in batch.items() if key not in HOST_KEYS}
    rows = {len(value) for value in kept.values()}
    if len(rows) != 1 or rows.pop() * jax.process_count() % ranks:
      counts = {key: len(value) for key, value in kept.items()}
      raise BadInput(
        f"batch: rows={counts} do not divide over {ranks} ranks"
        f" (mesh data={mesh.shape['data']}, fsdp={mesh.shape['fsdp']})."
        " Set data.rows to a multiple of mesh.data * mesh.fsdp."
      )
    return {
      key: jax.make_array_from_process_local_data(sharding, value) for key, value in kept.items()
    }

  return put

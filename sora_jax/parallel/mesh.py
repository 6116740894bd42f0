"""The device mesh: copies of the model, parameters in shards, slots of a row, heads and widths.

Axes: `data` copies of the model, `fsdp` parameters in shards, `context` slots of a row (rows of
pixels for a VAE), `tensor` heads and widths of a layer. Slices (pods that a slower network joins)
divide the `data` axis: parameters are in shards within a slice, and only gradients cross.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from data_pipeline.errors import BadInput

AXES = ("data", "fsdp", "context", "tensor")


def make_mesh(
  *,
  data: int = -1,
  fsdp: int = 1,
  context: int = 1,
  tensor: int = 1,
  slices: int = 0,
  devices: Sequence | None = None,
) -> Mesh:
  """Lays the devices out along the four axes.

  Args:
    data, fsdp, context, tensor: devices along each axis; one may be -1 and takes the rest.
    slices: groups of devices with fast links among them; 0 for as many as the devices tell (by
      their `slice_index`, which TPUs have). `data` is a multiple of it.
    devices: defaults to all devices of all processes.
  Raises:
    BadInput: the sizes do not multiply to the number of devices, or the slices do not divide them.
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
  groups = _group(devices, slices)
  if shape[0] % len(groups):
    raise BadInput(
      f"mesh: data={shape[0]} does not divide over slices={len(groups)}. Parameters are in shards"
      " within a slice: make mesh.data a multiple of the slices, and mesh.fsdp no larger than one."
    )
  inner = (shape[0] // len(groups), *shape[1:])
  grids = [_lay_out(inner, group) for group in groups]
  return Mesh(np.concatenate(grids), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _group(devices: Sequence, slices: int) -> list[list]:
  """The devices of each slice, in order; those that do not tell theirs are cut into equal parts."""
  if slices < 0 or slices and len(devices) % slices:
    raise BadInput(
      f"mesh: slices={slices} does not divide {len(devices)} devices. Set mesh.slices=0, for what"
      " the devices tell, or a divisor."
    )
  told = sorted({getattr(device, "slice_index", 0) for device in devices})
  if len(told) > 1 and slices in (0, len(told)):
    groups = [[d for d in devices if getattr(d, "slice_index", 0) == index] for index in told]
    if len({len(group) for group in groups}) > 1:
      raise BadInput(
        f"mesh: slices of {sorted(map(len, groups))} devices are not alike. Use equal ones."
      )
    return groups
  size = len(devices) // (slices or 1)
  return [list(devices[start : start + size]) for start in range(0, len(devices), size)]


def _lay_out(shape: tuple[int, ...], devices: Sequence) -> np.ndarray:
  """Devices as an array of a shape, neighbours on the network side by side where that is known."""
  if devices[0].platform != "tpu":
    return np.array(devices, dtype=object).reshape(shape)
  return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole value on every device."""
  return NamedSharding(mesh, PartitionSpec())


def mesh_ranks(mesh: Mesh) -> int:
  """Shares that the rows of a batch are cut into."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def host_share(mesh: Mesh) -> tuple[int, int]:
  """Which part of every batch this process reads: (rank, ranks), the rank-th of `ranks` equal ones.

  It goes by where the process's devices lie on the mesh, not by its number: processes that share
  rows (their devices differ along `context` or `tensor`) read the same part.

  Raises:
    BadInput: a process's devices do not hold one block of rows, alike for all processes.
  """
  grid = mesh.devices.reshape(mesh_ranks(mesh), -1)
  owners = [{device.process_index for device in row} for row in grid]
  blocks = {
    process: [i for i, owner in enumerate(owners) if process in owner]
    for process in sorted(set().union(*owners))
  }
  size = len(blocks[min(blocks)])
  for process, rows in blocks.items():
    first = rows[0]
    if rows != list(range(first, first + size)) or first % size:
      raise BadInput(
        f"mesh: the devices of process {process} hold the row shares {rows} of {len(grid)}, not a"
        f" block of {size} as others do. Let mesh.context * mesh.tensor divide the devices of a"
        " process, or be a multiple of them."
      )
  return blocks[jax.process_index()][0] // size, len(grid) // size

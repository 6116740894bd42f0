"""Arrays of one slice to all slices, bit for bit: a checkpoint is read once, not once a slice.

A sum over the slices of which all but the first hold zeros, as Orbax' single-replica restore has
it, but of the bits as integers: a sum of floating-point numbers would make +0 of -0.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SLICE = "slice"


def slice_count(mesh: Mesh, asked: int) -> int:
  """Slices of a mesh: as many as asked for, 0 for what its devices tell."""
  return asked or len({getattr(device, "slice_index", 0) for device in mesh.devices.flat})


def can_broadcast(mesh: Mesh, slices: int) -> bool:
  """Whether there are several slices, none of which shares a process with another."""
  groups = [{d.process_index for d in group} for group in _groups(mesh, slices)]
  return slices > 1 and sum(map(len, groups)) == len(set().union(*groups))


def is_in_first(mesh: Mesh, slices: int) -> bool:
  """Whether this process has devices of the first slice."""
  return jax.process_index() in {d.process_index for d in _groups(mesh, slices)[0]}


def first_slice(sharding: NamedSharding, slices: int) -> NamedSharding:
  """How a value lies on the first slice alone."""
  mesh = sharding.mesh
  assert isinstance(mesh, Mesh)
  return NamedSharding(Mesh(_split(mesh, slices)[0], mesh.axis_names), sharding.spec)


def to_all_slices(shape: jax.ShapeDtypeStruct, slices: int, value: jax.Array | None) -> jax.Array:
  """A value of the first slice, on all devices of its mesh. All processes call it.

  Args:
    shape: of the value, with its sharding on the whole mesh.
    slices: of the mesh.
    value: lies as `first_slice` says; None in processes of the other slices.
  """
  sharding = shape.sharding
  assert isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh)
  mesh = Mesh(_split(sharding.mesh, slices), (SLICE, *sharding.mesh.axis_names))
  stacked = NamedSharding(mesh, PartitionSpec(SLICE, *sharding.spec))
  mine = value.addressable_shards if value is not None else []
  here = {shard.device: shard.data for shard in mine}
  empty = stacked.shard_shape((slices, *shape.shape))
  parts = [
    here[device][None] if device in here else jnp.zeros(empty, shape.dtype, device=device)
    for device in stacked.addressable_devices
  ]
  every = jax.make_array_from_single_device_arrays((slices, *shape.shape), stacked, parts)
  found = jax.jit(_add_bits, out_shardings=NamedSharding(mesh, sharding.spec))(every)
  shards = [shard.data for shard in found.addressable_shards]
  return jax.make_array_from_single_device_arrays(shape.shape, sharding, shards)


def _add_bits(stacked: jax.Array) -> jax.Array:
  dtype = stacked.dtype
  if dtype == jnp.bool_:
    return jnp.any(stacked, axis=0)
  bits = jax.lax.bitcast_convert_type(stacked, jnp.dtype(f"u{dtype.itemsize}"))
  return jax.lax.bitcast_convert_type(jnp.sum(bits, axis=0, dtype=bits.dtype), dtype)


def _split(mesh: Mesh, slices: int) -> np.ndarray:
  """Devices [slices, data / slices, ...]: slices lie one after the other along the first axis."""
  size, *rest = mesh.devices.shape
  return mesh.devices.reshape(slices, size // slices, *rest)


def _groups(mesh: Mesh, slices: int) -> list[list]:
  size = math.prod(mesh.devices.shape) // slices
  flat = list(mesh.devices.flat)
  return [flat[start : start + size] for start in range(0, len(flat), size)]

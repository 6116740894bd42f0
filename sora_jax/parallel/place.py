"""Where batches and activations lie on the mesh."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipeline.errors import BadInput
from sora_jax.parallel.mesh import host_share, mesh_ranks

RANKS = ("data", "fsdp")
ROWS = PartitionSpec(RANKS)  # [b,...]
SLOTS = PartitionSpec(RANKS, "context")  # [b,n,...]
PIXELS = PartitionSpec(RANKS, None, "context")  # [b,F,H,W,3]: bands of rows of a picture
# Bookkeeping that no network reads; its 64-bit integers would be cut to 32 on a device.
HOST_KEYS = ("segment_record", "segment_dataset")
# Keys of a batch that have more than their rows divided.
SPECS = dict.fromkeys(
  ("latents", "text_index", "position", "segment", "token_index", "level_index"), SLOTS
) | {"video": PIXELS}


def batch_sharding(key: str, mesh: Mesh) -> NamedSharding:
  """Where an array of a batch lies."""
  return NamedSharding(mesh, SPECS.get(key, ROWS))


def constrain(x: jax.Array, spec: PartitionSpec) -> jax.Array:
  """Says inside of jit where an activation lies; nothing where there is no mesh, as in sampling."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec)


def make_put(mesh: Mesh):
  """A function that starts the copy of a host batch to the devices.

  Returns:
    `put(batch)`: a dict of numpy arrays, this process's share of the rows [b_local,...] (see
    `host_share`), to global arrays [b,...]: rows over `data` and `fsdp`, slots (and a video's rows
    of pixels) over `context`. `HOST_KEYS` stay behind. It does not wait for the copy.
  """
  rank, hosts = host_share(mesh)
  ranks, context = mesh_ranks(mesh), mesh.shape["context"]

  def put(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    kept = {key: value for key, value in batch.items() if key not in HOST_KEYS}
    rows = {len(value) for value in kept.values()}
    if len(rows) != 1 or rows.pop() * hosts % ranks:
      counts = {key: len(value) for key, value in kept.items()}
      raise BadInput(
        f"batch: rows={counts} do not divide over {ranks} ranks"
        f" (mesh data={mesh.shape['data']}, fsdp={mesh.shape['fsdp']})."
        " Set data.rows to a multiple of mesh.data * mesh.fsdp."
      )
    return {key: place(key, value) for key, value in kept.items()}

  def place(key: str, value: np.ndarray) -> jax.Array:
    axis = len(SPECS.get(key, ROWS)) - 1
    if axis and value.shape[axis] % context:
      raise BadInput(
        f"batch: {key} has {value.shape[axis]} along axis {axis}, which mesh.context={context} does"
        " not divide. Set data.slots (data.height of a VAE) to a multiple of it."
      )
    sharding = batch_sharding(key, mesh)
    if hosts == 1 and jax.process_count() == 1:
      return jax.device_put(value, sharding)
    first = rank * len(value)
    shape = (len(value) * hosts, *value.shape[1:])

    def part(index) -> np.ndarray:
      start, stop, _ = index[0].indices(shape[0])
      return value[start - first : stop - first, *index[1:]]

    return jax.make_array_from_callback(shape, sharding, part)

  return put

"""Silent data corruption: whether devices that should hold the same numbers do.

Source: Dixit et al. 2021, "Silent Data Corruptions at Scale", arXiv:2102.11245. A step's results
are functions of what all replicas hold: once one is wrong, its gradients are, and nobody tells.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from sora_jax.parallel.rules import named_leaves
from sora_jax.train.hashes import word_sums
from sora_jax.train.stop import Stop


class ReplicasDiffer(Stop):
  """Devices hold different numbers for the same part of the state."""


def make_sums(places: Any, mesh: Mesh) -> Callable[[Any], jax.Array]:
  """Checksums of each leaf on each device, uint32 [leaves,devices,2]; nothing else is communicated.

  Args:
    places: `NamedSharding`s of the tree on the mesh.
  """
  axes = tuple(mesh.axis_names)
  specs = [place.spec for place in named_leaves(places).values()]

  def local(*leaves):
    return jax.numpy.stack([jax.numpy.stack(word_sums(leaf)) for leaf in leaves])[:, None]

  sums = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=tuple(specs),
    out_specs=PartitionSpec(None, axes),
    check_vma=False,  # that replicas agree is the question
  )
  return jax.jit(lambda tree: sums(*named_leaves(tree).values()))


def find_differences(sums: np.ndarray, places: Any, shapes: Any, mesh: Mesh) -> dict[str, list]:
  """Leaves whose replicas differ, by name, with the devices that are not of the majority.

  Args:
    sums: of `make_sums`, on the host.
    shapes: tree of what has a `shape`, like `places`.
  """
  devices = list(mesh.devices.flat)
  found = {}
  shaped = named_leaves(shapes)
  for (name, place), leaf in zip(named_leaves(places).items(), sums, strict=True):
    parts = place.devices_indices_map(tuple(shaped[name].shape))
    groups: dict[str, list[int]] = {}
    for i, device in enumerate(devices):
      groups.setdefault(str(parts[device]), []).append(i)
    odd = [devices[i] for group in groups.values() for i in _minority(leaf, group)]
    if odd:
      found[name] = odd
  return found


def _minority(sums: np.ndarray, group: list[int]) -> list[int]:
  """Members of a group whose sums are not those that most have."""
  keys = [tuple(sums[i]) for i in group]
  usual = max(keys, key=keys.count)
  return [i for i, key in zip(group, keys, strict=True) if key != usual]


def make_replica_check(places: Any, shapes: Any, mesh: Mesh) -> Callable[[int, Any], dict]:
  """An evaluation `(step, state) -> {}` that compares all replicas of a state.

  Raises (when called):
    ReplicasDiffer: naming leaves and devices.
  """
  compute = make_sums(places, mesh)

  def check(step: int, state: Any) -> dict:
    sums = compute(state)
    if jax.process_count() > 1:
      sums = multihost_utils.process_allgather(sums, tiled=True)
    found = find_differences(np.asarray(sums), places, shapes, mesh)
    if not found:
      return {}
    name, devices = next(iter(found.items()))
    where = ", ".join(f"{d.device_kind} {d.id} of process {d.process_index}" for d in devices)
    raise ReplicasDiffer(
      f"train: at step {step} the replicas of {len(found)} arrays differ, first {name} on {where}:"
      " this device computes or stores wrongly. Nothing was saved since the last checkpoint; start"
      " again without it."
    )

  return check

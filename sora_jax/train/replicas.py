"""Silent data corruption: whether devices that should hold the same numbers do.

Source: Dixit et al. 2021, "Silent Data Corruptions at Scale", arXiv:2102.11245. A step's results
are functions of what all replicas hold: once one is wrong, its gradients are, and nobody tells.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from sora_jax.parallel.rules import named_leaves
from sora_jax.train.hashes import word_sums
from sora_jax.train.stop import Stop


class ReplicasDiffer(Stop):
  """Devices hold different numbers for the same part of the state."""


class Difference(NamedTuple):
  """Devices that disagree: those that are not of the majority, or all where there is none."""

  devices: list
  decided: bool


def make_sums(places: Any, mesh: Mesh) -> Callable[[Any], jax.Array]:
  """Checksums of each leaf on each device, uint32 [leaves,devices,2]; nothing else is communicated.

  Args:
    places: `NamedSharding`s of the tree on the mesh.
  """
  specs = tuple(place.spec for place in named_leaves(places).values())

  def local(*leaves):
    return jax.numpy.stack([jax.numpy.stack(word_sums(leaf)) for leaf in leaves])[:, None]

  sums = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=specs,
    out_specs=PartitionSpec(None, tuple(mesh.axis_names)),
    check_vma=False,  # that replicas agree is the question
  )
  return jax.jit(lambda tree: sums(*named_leaves(tree).values()))


def copies(places: Any, shapes: Any, mesh: Mesh) -> Iterator[tuple[str, Any, list[list[int]]]]:
  """(name, leaf, groups) of every leaf: numbers of the devices that hold the same part of it."""
  shaped = named_leaves(shapes)
  devices = list(mesh.devices.flat)
  for name, place in named_leaves(places).items():
    parts = place.devices_indices_map(tuple(shaped[name].shape))
    groups: dict[str, list[int]] = {}
    for i, device in enumerate(devices):
      groups.setdefault(str(parts[device]), []).append(i)
    yield name, shaped[name], list(groups.values())


def coverage(places: Any, shapes: Any, mesh: Mesh) -> float:
  """Share of the numbers that a second device holds too: what a comparison can say anything of."""
  total = compared = 0
  for _, leaf, groups in copies(places, shapes, mesh):
    total += leaf.size
    compared += leaf.size * (len(groups[0]) > 1)
  return compared / max(1, total)


def find_differences(sums: np.ndarray, places: Any, shapes: Any, mesh: Mesh) -> dict:
  """Leaves whose replicas differ: name -> `Difference`.

  Args:
    sums: of `make_sums`, on the host.
    shapes: tree of what has a `shape`, like `places`.
  """
  devices = list(mesh.devices.flat)
  found = {}
  for leaf, (name, _, groups) in zip(sums, copies(places, shapes, mesh), strict=True):
    odd, decided = [], True
    for group in groups:
      keys = [tuple(leaf[i]) for i in group]
      usual = max(keys, key=keys.count)
      if keys.count(usual) == len(keys):
        continue
      majority = 2 * keys.count(usual) > len(keys)
      decided &= majority
      wrong = [i for i, key in zip(group, keys, strict=True) if key != usual or not majority]
      odd += [devices[i] for i in wrong]
    if odd:
      found[name] = Difference(odd, decided)
  return found


def make_replica_check(places: Any, shapes: Any, mesh: Mesh) -> Callable[[int, Any], dict]:
  """An evaluation `(step, state) -> metrics` that compares all replicas of a state.

  Its metric `replica_coverage` is the share of the numbers that were compared.

  Raises (when called):
    ReplicasDiffer: naming leaves and devices.
  """
  compute, share = make_sums(places, mesh), coverage(places, shapes, mesh)

  def check(step: int, state: Any) -> dict:
    sums = compute(state)
    if jax.process_count() > 1:
      sums = multihost_utils.process_allgather(sums, tiled=True)
    found = find_differences(np.asarray(sums), places, shapes, mesh)
    if not found:
      return {"replica_coverage": share}
    # What most have tells who is wrong; of two, nobody knows.
    name, worst = max(found.items(), key=lambda item: item[1].decided)
    where = ", ".join(f"{d.device_kind} {d.id} of process {d.process_index}" for d in worst.devices)
    who = "on" if worst.decided else "on one of (there is no majority)"
    raise ReplicasDiffer(
      f"train: at step {step} the replicas of {len(found)} arrays differ, {name} {who} {where}:"
      " it computes or stores wrongly. Checkpoints are compared before they are saved: replace the"
      " device and start again from the last one."
    )

  return check

"""How long a collective takes on a pod's network: bandwidth alone, no latency.

A TPU's torus has links in both directions along each physical axis; a ring exists where an axis is
as long as it wraps. On GPUs a group inside of a host goes over NVLink, a larger one over the hosts'
network cards, of which each member of the group in a host adds its own.
Source: "How to Scale Your Model", jax-ml.github.io/scaling-book, ch. 3.
"""

from collections.abc import Sequence

from sora_jax.plan.collectives import Collective
from sora_jax.plan.pods import Pod

# What a link carries of what its data sheet says (scaling-book, ch. 2: 90 of 100 GB/s on v5p).
LINK_EFFICIENCY = 0.9


def collective_seconds(collective: Collective, pod: Pod, devices: Sequence) -> float:
  """Seconds of one exchange.

  Args:
    devices: of the pod, in the mesh's order.
  """
  if len(collective.group) < 2:
    return 0.0
  members = [devices[i] for i in collective.group]
  return (_on_torus if pod.kind.torus else _on_hosts)(collective, pod, members) / LINK_EFFICIENCY


def _on_torus(collective: Collective, pod: Pod, members: list) -> float:
  kind = pod.kind
  slices = {getattr(device, "slice_index", 0) for device in members}
  if len(slices) > 1:  # what crosses the data centre's network is slower than all the rest
    # Of a gather or a sum each member carries a share; what is exchanged one to one is sent whole.
    apart = collective.kind in ("all-to-all", "collective-permute")
    share = collective.nbytes / (1 if apart else len(members) // len(slices))
    return _passes(collective.kind) * share * (len(slices) - 1) / len(slices) / kind.network
  extents = []  # of the group along the physical axes that it extends along
  for axis, side in enumerate(pod.shape):
    extent = len({device.coords[axis] for device in members})
    wraps = extent == side and _has_rings(pod, side)
    if extent > 1:
      extents.append((extent, 2 if wraps else 1))
  if not extents:  # cores of one chip, by a link of their own, six times as fast as the others
    return collective.wire / (6 * kind.link)
  if collective.kind == "all-to-all":
    # The busiest link, in the middle: a line's carries n/4 of what a device sends, a ring's n/8.
    return max(collective.nbytes * n / (4 * ways) for n, ways in extents) / kind.link
  if collective.kind == "collective-permute":
    return collective.nbytes / kind.link
  return collective.wire / (kind.link * sum(ways for _, ways in extents))


def _has_rings(pod: Pod, side: int) -> bool:
  """Whether an axis of this length is joined at its ends: in 3D tori only of whole cubes."""
  sides = pod.shape if pod.kind.torus == 3 else (side,)
  return all(one % pod.kind.wraps == 0 for one in sides)


def _on_hosts(collective: Collective, pod: Pod, members: list) -> float:
  kind = pod.kind
  places = [device.id // kind.host for device in members]
  hosts = len(set(places))
  if hosts == 1:
    return collective.wire / kind.link
  per_host = len(members) / hosts
  n = len(members)
  if collective.kind == "all-to-all":  # of the others, so many are in other hosts
    return collective.nbytes * (n - per_host) / n / kind.network
  if collective.kind == "collective-permute":
    return collective.nbytes / kind.network
  crossing = _passes(collective.kind) * collective.nbytes * (hosts - 1) / hosts
  return max(crossing / (per_host * kind.network), collective.wire / kind.link)


def _passes(kind: str) -> int:
  return 2 if kind == "all-reduce" else 1

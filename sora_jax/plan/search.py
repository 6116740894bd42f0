"""Meshes and remat policies worth compiling: those that could fit, the fastest by arithmetic first.

What is left out is left out by bounds that err towards keeping: state and stored activations alone
must fit, and only a layout's own costs are compared (recomputation, gathers, all-to-alls).
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from sora_jax.plan import kernels
from sora_jax.plan.estimate import HOST_RATE, PRODUCTS
from sora_jax.plan.pods import Pod

MOST = 6  # compiled at most
# Policy -> activations of [slots, width] in bfloat16 that a layer keeps on the device, at least.
KEPT = {"none": 20, "attention": 2, "block": 1, "offload": 0}
HOST_TENSOR = 8  # heads and widths are not divided further than a host has devices


class Model(NamedTuple):
  """What arithmetic needs of a run.

  Attributes:
    parameters: numbers; `param_bytes` of one, `state_bytes` with its moments and averages.
    width, depth, heads, hidden: of the transformer; `hidden` of its MLP.
    rows, slots, accumulate: of a step.
    flops: of matrix products in a forward pass, all devices; `pairs`: Σ segment² of a layer.
  """

  parameters: int
  param_bytes: float
  state_bytes: float
  width: int
  depth: int
  heads: int
  hidden: int
  rows: int
  slots: int
  accumulate: int
  flops: float
  pairs: float


class Candidate(NamedTuple):
  """A mesh and a remat policy, with bounds of its seconds and bytes."""

  mesh: dict[str, int]
  remat: str
  seconds: float
  nbytes: float


def candidates(model: Model, pod: Pod, *, most: int = MOST) -> list[Candidate]:
  """At most `most` that could fit, fastest first; where none could, the smallest ones."""
  every = [
    Candidate(mesh, remat, _seconds(model, pod, mesh, remat), _nbytes(model, mesh, remat))
    for mesh in meshes(model, pod)
    for remat in KEPT
  ]
  fit = [one for one in every if one.nbytes <= pod.kind.hbm]
  if not fit:
    return sorted(every, key=lambda one: one.nbytes)[: min(2, most)]
  return _spread(sorted(fit, key=lambda one: one.seconds), most)


def _spread(ranked: list[Candidate], most: int) -> list[Candidate]:
  """The best, at most half of them of one context and tensor, which bounds hardly tell apart."""
  chosen: list[Candidate] = []
  for one in ranked:
    alike = sum(_inner(other) == _inner(one) for other in chosen)
    if alike < max(1, most // 2):
      chosen.append(one)
    if len(chosen) == most:
      break
  return chosen


def _inner(one: Candidate) -> tuple[int, int]:
  return one.mesh["context"], one.mesh["tensor"]


def meshes(model: Model, pod: Pod) -> Iterator[dict[str, int]]:
  """All that the model's sizes divide over."""
  for context, tensor in itertools.product(_divisors(pod.devices), repeat=2):
    inner = context * tensor
    if pod.devices % inner or model.heads % inner or model.slots % context or tensor > HOST_TENSOR:
      continue
    if model.hidden % tensor or model.rows % (pod.devices // inner * model.accumulate):
      continue
    ranks = pod.devices // inner
    for fsdp in _divisors(ranks):
      data = ranks // fsdp
      if model.width % fsdp == 0 and data % pod.slices == 0:
        yield dict(data=data, fsdp=fsdp, context=context, tensor=tensor)


def _divisors(number: int) -> list[int]:
  return [d for d in range(1, number + 1) if number % d == 0]


def _nbytes(model: Model, mesh: dict[str, int], remat: str) -> float:
  """State, gradients and stored activations: less than any program of it needs."""
  shards = mesh["fsdp"] * mesh["tensor"]
  rows = model.rows / (mesh["data"] * mesh["fsdp"] * model.accumulate)
  unit = 2 * rows * model.slots / mesh["context"] * model.width
  state = (model.state_bytes + model.param_bytes * model.parameters) / shards
  return state + (KEPT[remat] * model.depth + 10) * unit / mesh["tensor"]


def _seconds(model: Model, pod: Pod, mesh: dict[str, int], remat: str) -> float:
  kind, devices = pod.kind, pod.devices
  head_dim = model.width // model.heads
  rate = kernels.efficiency(kind.name, head_dim)
  forwards = 1 if remat in ("none", "attention") else 2
  attention = head_dim * model.heads * model.depth * model.pairs / devices / kind.peak
  attention *= forwards * kernels.FORWARD / rate.forward + kernels.BACKWARD / rate.backward
  passes = 3 if remat == "none" else 4
  products = passes * model.flops / devices / kind.peak / PRODUCTS[kind.platform]
  rows = model.rows / (mesh["data"] * mesh["fsdp"])
  unit = 2 * rows * model.slots / mesh["context"] * model.width * model.depth
  weights = 2 * model.parameters / mesh["tensor"]
  links = max(1, 2 * kind.torus - 2)
  rate_inside = kind.link * links
  hosted = 2 * unit / HOST_RATE if remat == "offload" else 0.0
  crosses = not kind.torus and mesh["context"] * mesh["tensor"] * mesh["fsdp"] > kind.host
  rate_weights = kind.network * kind.host if crosses else rate_inside
  rate_tokens = kind.link
  if not kind.torus and mesh["context"] * mesh["tensor"] > kind.host:
    rate_tokens = kind.network
  moved = unit * (12 if mesh["context"] > 1 else 0) * (1 - 1 / mesh["context"])
  moved += unit * (12 if mesh["tensor"] > 1 else 0) * (1 - 1 / mesh["tensor"])
  gathers = 3 * weights * model.accumulate * (1 - 1 / mesh["fsdp"])
  reduced = 2 * weights / mesh["fsdp"] * (1 - 1 / mesh["data"])
  if pod.slices > 1:
    crossing = gathers / rate_weights + reduced / kind.network
  else:
    crossing = (gathers + reduced) / rate_weights
  return attention + products + hosted + moved / rate_tokens + crossing

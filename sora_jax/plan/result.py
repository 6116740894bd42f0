"""A plan in numbers: does it fit, how fast, what it costs. Everything is JSON-able."""

from typing import NamedTuple

from sora_jax.plan import kernels, published
from sora_jax.plan.compile import Compiled
from sora_jax.plan.estimate import PRODUCTS, STREAMS, Estimate
from sora_jax.plan.memory import Memory
from sora_jax.plan.network import LINK_EFFICIENCY
from sora_jax.plan.pods import GIB, Pod

WRITE_RATE = 1e9  # bytes a second that a host writes to storage; measure yours
SECONDS_A_DAY = 86_400


class Run(NamedTuple):
  """What a result has to know of a run: of a step, and of all of them."""

  tokens: float
  model_flops: float
  parameters: int
  state_bytes: int
  total_steps: int
  head_dim: int
  remat: str
  backend: str
  useful_share: float
  fill: float
  fill_bound: str


STATE = ("parameters", "averages", "optimiser", "gradients")
ADVICE = {
  "state and gradients": "Raise mesh.fsdp, so that more devices share them.",
  "activations": "Raise mesh.context, or set model.remat=block or offload, or lower data.rows.",
  "workspace": "Raise mesh.context, or compute the rows in more accumulate_steps.",
  "collectives": "Raise mesh.tensor, so that a layer's gathered weights are fewer.",
  "what a step adds": "Raise mesh.context, or set model.remat=block, or raise accumulate_steps.",
}
HOST_ADVICE = "Raise mesh.context, or set model.remat=block, which keeps nothing on the host."


def advise(by_kind: dict[str, int], hbm: float) -> str:
  """What to change first, where it does not fit in `hbm` bytes: the largest part of what takes the
  memory, or the state where that alone does not fit."""
  parts = {kind: size for kind, size in by_kind.items() if kind in ADVICE}
  parts["state and gradients"] = sum(by_kind.get(kind, 0) for kind in STATE)
  largest = max(parts, key=lambda part: parts[part])
  if parts["state and gradients"] > hbm:
    largest = "state and gradients"
  return f"Most is {largest} ({parts[largest] / GIB:.1f} GiB). {ADVICE[largest]}"


def advise_on(memory: Memory, pod: Pod) -> str:
  """The same of a compiled program."""
  return HOST_ADVICE if memory.host > pod.kind.ram else advise(memory.by_kind, pod.kind.hbm)


def describe_fit(memory: Memory, pod: Pod) -> dict:
  """Whether it fits, in the device's memory and the host's, and where the memory goes."""
  need = memory.total / GIB
  return {
    "fits": memory.total <= pod.kind.hbm and memory.host <= pod.kind.ram,
    "hbm_gib_per_device": round(need, 2),
    "hbm_gib_available": round(pod.kind.hbm / GIB, 2),
    "hbm_gib_by_kind": {kind: round(size / GIB, 2) for kind, size in memory.by_kind.items()},
    "host_gib_per_device": round(memory.host / GIB, 2),
    "host_gib_available": round(pod.kind.ram / GIB, 2),
  }


def describe_plan(pod: Pod, mesh: dict, compiled: Compiled, found: Estimate, run: Run) -> dict:
  """All of a plan but its price."""
  seconds = found.seconds
  rate = kernels.efficiency(pod.kind.name, run.head_dim)
  by_kind: dict[str, float] = {}
  for (kind, _), wire in found.wire.items():
    by_kind[kind] = by_kind.get(kind, 0.0) + wire
  return describe_fit(compiled.memory, pod) | {
    "topology": pod.name,
    "chips": pod.chips,
    "devices": pod.devices,
    "mesh": mesh,
    "remat": run.remat,
    "attention": run.backend,
    "parameters": run.parameters,
    "tokens_per_step": round(run.tokens),
    "fill": run.fill,
    "fill_bound_by": run.fill_bound,
    "model_flops": run.model_flops,
    "attention_useful_share": run.useful_share,
    "executed_product_flops_per_device": found.product_flops,
    "hbm_bytes": found.hbm_bytes,
    "collective_bytes": by_kind
    | {
      "wire_gib": round(sum(by_kind.values()) / GIB, 2),
      "wire_gib_by_kind_and_axis": {
        f"{kind} over {axis or 'one device'}": round(wire / GIB, 2)
        for (kind, axis), wire in found.wire.items()
        if wire > 0.005 * GIB
      },
    },
    "step_seconds": seconds,
    "seconds_by_part": found.parts,
    "seconds_of_hidden_collectives": found.hidden,
    "bottleneck": max(found.parts, key=lambda part: found.parts[part]),
    "mfu": run.model_flops / (seconds * pod.kind.peak * pod.devices)
    if published.is_trusted()
    else None,
    "tokens_per_second": run.tokens / seconds,
    "days": run.total_steps * seconds / SECONDS_A_DAY,
    "chip_hours": run.total_steps * seconds / 3600 * pod.chips,
    "total_tokens": run.total_steps * run.tokens,
    "checkpoint_gib": round(run.state_bytes / GIB, 1),
    "checkpoint_seconds": run.state_bytes / WRITE_RATE / max(1, pod.devices // pod.kind.host),
    "compile_seconds": round(compiled.seconds, 1),
    "assumptions": {
      "peak_flops": pod.kind.peak,
      "hbm_bytes_per_second": pod.kind.hbm_rate,
      "link_bytes_per_second": pod.kind.link,
      "network_bytes_per_second": pod.kind.network,
      "efficiency_of_products": PRODUCTS[pod.kind.platform],
      "efficiency_of_hbm": STREAMS,
      "efficiency_of_links": LINK_EFFICIENCY,
      "efficiency_of_attention": rate._asdict(),
      "host_write_bytes_per_second": WRITE_RATE,
      "published_cases": {
        case.topology: {
          "measured_seconds": case.seconds,
          "estimated_seconds": round(published.seconds(case), 2),
          "stated_mfu": case.mfu,
          "estimated_mfu": round(case.mfu * (1 + published.error(case)), 3),
        }
        for case in published.CASES
      },
    },
  }

"""Manifests of a JobSet for GKE, queued by Kueue: TPU slices, or nodes of NVIDIA GPUs.

Sources: JobSet v1alpha2 (jobset.sigs.k8s.io), Kueue (kueue.sigs.k8s.io), "Plan TPUs in GKE" and
"GPUs in GKE" (cloud.google.com/kubernetes-engine/docs). Exit 2 (bad input) ends the JobSet, any
other code but 0 starts it again: 42, a lost peer, a signal.
"""

import math
import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from data_pipeline.errors import BadInput

TPUS = {
  "v4": "tpu-v4-podslice",
  "v5e": "tpu-v5-lite-podslice",
  "v5p": "tpu-v5p-slice",
  "v6e": "tpu-v6e-slice",
  "tpu7x": "tpu7x",
}
TPU_HOST = 4
# Flat kinds have slices of these sides alone; up to 8 chips are a single host.
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
FLAT_HOST = 8
# The others have these, and cubes of 4x4x4 side by side, up to so many.
SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
CUBES = {"v4": 64, "v5p": 140, "tpu7x": 144}
# Kind -> GKE's accelerator label, and xpk's name of a whole node.
GPUS = {
  "h100": ("nvidia-h100-mega-80gb", "h100-mega-80gb-8"),
  "h200": ("nvidia-h200-141gb", "h200-141gb-8"),
  "b200": ("nvidia-b200", "b200-8"),
}
GPU_HOST = 8
PORT = 8476
POD_NAME = 63  # letters of a host name
SUBDOMAIN = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"  # DNS-1123
BAD_INPUT = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}


class Workload(NamedTuple):
  """Attributes:
  name: of the JobSet, in DNS letters (RFC 1035).
  topology: "v5p:4x4x4", or "h100:64".
  slices: of TPUs, or of GPU nodes that start together.
  image: of the container, with the project in it.
  queue: Kueue's LocalQueue, a label's value; "" for none.
  max_restarts: of the JobSet.
  grace: seconds that a pod has to save after SIGTERM.
  secrets: names of Kubernetes secrets that become environment variables.
  """

  name: str
  topology: str
  slices: int
  image: str
  queue: str
  max_restarts: int
  grace: int
  secrets: Sequence[str]


class Shape(NamedTuple):
  """Pods of a slice, what each asks for, and where it may run."""

  pods: int
  devices: int
  resource: str
  selector: dict[str, str]


def shape_of(topology: str) -> Shape:
  """What a topology is in GKE's terms.

  Raises:
    BadInput: no such kind or shape.
  """
  kind, _, sides = topology.lower().partition(":")
  if kind in GPUS and re.fullmatch(r"[1-9]\d*", sides):
    count = int(sides)
    if count > GPU_HOST and count % GPU_HOST:
      raise BadInput(
        f"launch: --topology={topology} is no number of nodes of {GPU_HOST} GPUs. Give a multiple."
      )
    each = min(count, GPU_HOST)
    selector = {"cloud.google.com/gke-accelerator": GPUS[kind][0]}
    return Shape(count // each, each, "nvidia.com/gpu", selector)
  if kind not in TPUS or not _has_slice(kind, sides):
    raise BadInput(
      f"launch: --topology={topology} is none of GKE's. Give one as v5p:4x4x4, v6e:16x16, h100:64."
    )
  chips = math.prod(map(int, sides.split("x")))
  host = TPU_HOST if chips > (TPU_HOST if kind in CUBES else FLAT_HOST) else chips
  selector = {
    "cloud.google.com/gke-tpu-accelerator": TPUS[kind],
    "cloud.google.com/gke-tpu-topology": sides,
  }
  return Shape(chips // host, host, "google.com/tpu", selector)


def _has_slice(kind: str, sides: str) -> bool:
  if kind not in CUBES:
    return sides in FLAT
  if sides in SMALL or (kind, sides) == ("tpu7x", "1x1x1"):
    return True
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2}", sides):
    return False
  numbers = [int(side) for side in sides.split("x")]
  in_order = kind == "v4" or numbers == sorted(numbers)
  cubes = math.prod(side // 4 for side in numbers)
  return in_order and not any(side % 4 for side in numbers) and cubes <= CUBES[kind]


def make_manifest(workload: Workload, words: Sequence[str]) -> dict[str, Any]:
  """The JobSet of a command line.

  Raises:
    BadInput: a name that Kubernetes refuses, no such topology, or slices that GKE does not join.
  """
  shape = shape_of(workload.topology)
  is_tpu = shape.resource == "google.com/tpu"
  _check_names(workload, shape)
  if workload.slices > 1 and not is_tpu:
    raise BadInput("launch: --slices is for TPUs. Give --topology all GPUs, as h100:128.")
  if workload.slices > 1 and shape.pods == 1:
    raise BadInput(
      f"launch: --slices={workload.slices} of --topology={workload.topology}: GKE joins slices of"
      " several hosts only. Give one larger slice, or larger ones."
    )
  queue = {"kueue.x-k8s.io/queue-name": workload.queue} if workload.queue else {}
  # One slice a node pool: its pods share its fast links.
  exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
  job = {
    "backoffLimit": 0,
    "completionMode": "Indexed",
    "completions": shape.pods,
    "parallelism": shape.pods,
    "podFailurePolicy": {"rules": [BAD_INPUT]},
    "template": {"spec": _pod(workload, shape, words)},
  }
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {
      "name": workload.name,
      "labels": queue,  # by which Kueue suspends it, until there is room
      "annotations": exclusive if is_tpu else {},
    },
    "spec": {
      "failurePolicy": {
        "maxRestarts": workload.max_restarts,
        "rules": [
          {
            "name": "badInput",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
          }
        ],
      },
      "replicatedJobs": [
        {"name": "workers", "replicas": workload.slices, "template": {"spec": job}}
      ],
    },
  }


def _check_names(workload: Workload, shape: Shape) -> None:
  if not re.fullmatch(r"[\w][\w./:@-]*", workload.image, re.ASCII):
    raise BadInput(f"launch: --image={workload.image!r} names no image. Give REPOSITORY:TAG.")
  # JobSet's longest name of a pod, with the letters that Kubernetes adds; xpk takes 40.
  added = f"-workers-{workload.slices - 1}-{shape.pods - 1}-abcde"
  most = min(40, POD_NAME - len(added))
  if len(workload.name) > most or not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", workload.name):
    raise BadInput(
      f"launch: --name={workload.name} must be 1 to {most} of a-z, 0-9 and -, beginning with a"
      " letter and not ending with -. Give such a name."
    )
  names = [("--queue", workload.queue, 63)] if workload.queue else []
  names += [("--secret", secret, 253) for secret in workload.secrets]
  for option, name, most in names:
    if len(name) > most or not re.fullmatch(SUBDOMAIN, name):
      raise BadInput(
        f"launch: {option}={name} must be 1 to {most} of a-z, 0-9, - and ., with a letter or digit"
        " at both ends of each part. Give the name that kubectl shows."
      )


def _pod(workload: Workload, shape: Shape, words: Sequence[str]) -> dict[str, Any]:
  asked = str(shape.devices)
  container: dict[str, Any] = {
    "name": "sora",
    "image": workload.image,
    "command": [word.replace("$", "$$") for word in words],  # Kubernetes would expand $(NAME)
    "env": _variables(workload, shape),
    "envFrom": [{"secretRef": {"name": name}} for name in workload.secrets],
    "ports": [{"containerPort": PORT, "protocol": "TCP"}],
    "resources": {"limits": {shape.resource: asked}, "requests": {shape.resource: asked}},
    "securityContext": {"allowPrivilegeEscalation": False},
  }
  spec: dict[str, Any] = {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": workload.grace,
    "nodeSelector": shape.selector,
    "containers": [container],
  }
  if shape.resource == "nvidia.com/gpu":  # all of a node's shared memory, for NCCL
    spec["volumes"] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    container["volumeMounts"] = [{"name": "shm", "mountPath": "/dev/shm"}]
  return spec


def _variables(workload: Workload, shape: Shape) -> list[dict[str, Any]]:
  """How pods find each other: TPUs' are told by GKE, GPUs' by the JobSet's names."""
  # Nothing to set: GKE adds TPU_WORKER_* to pods of a slice, and MEGASCALE_* to a JobSet's slices.
  if shape.resource == "google.com/tpu":
    return []
  index = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
  first = f"{workload.name}-workers-0-0.{workload.name}"
  return [
    {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{first}:{PORT}"},
    {"name": "JAX_COORDINATOR_BIND_ADDRESS", "value": f"$(POD_IP):{PORT}"},
    {"name": "JAX_NUM_PROCESSES", "value": str(shape.pods)},
    {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": index}},
  ]


def xpk_command(workload: Workload, words: Sequence[str], cluster: str) -> str:
  """The same by xpk 1.16 (github.com/AI-Hypercomputer/xpk), which knows clusters by their names.

  xpk has a queue of its own, takes no secrets, and spreads 2x4 chips over two hosts.

  Returns:
    "" where xpk has no such device: parts of a GPU node, less than 8 chips of v5e.

  Raises:
    BadInput: no such topology.
  """
  kind, _, sides = workload.topology.lower().partition(":")
  shape = shape_of(workload.topology)
  if kind in GPUS:
    if shape.devices < GPU_HOST:
      return ""
    device, count = f"--device-type={GPUS[kind][1]}", f"--num-nodes={shape.pods}"
  else:
    if kind == "v5e" and shape.pods * shape.devices < FLAT_HOST:
      return ""
    name = "v5litepod" if kind == "v5e" else kind
    device, count = f"--tpu-type={name}-{sides}", f"--num-slices={workload.slices}"
  return shlex.join([
    "xpk", "workload", "create", f"--cluster={cluster}", f"--workload={workload.name}",
    device, count, f"--docker-image={workload.image}", f"--max-restarts={workload.max_restarts}",
    "--restart-on-exit-codes=1,42", f"--termination-grace-period-seconds={workload.grace}",
    f"--command={shlex.join(words)}",
  ])  # fmt: skip

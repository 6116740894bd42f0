"""Manifests of a JobSet for GKE, queued by Kueue: TPU slices, or nodes of NVIDIA GPUs.

Sources: JobSet v1alpha2 (jobset.sigs.k8s.io), Kueue (kueue.sigs.k8s.io), "TPUs in GKE" and "GPUs in
GKE" (cloud.google.com/kubernetes-engine/docs). Exit 2 (bad input) ends the JobSet, any other code
but 0 starts it again: 42, a lost peer, a signal.
"""

import math
import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from data_pipeline.errors import BadInput

# Kind -> GKE's accelerator label, and chips of a host of a slice.
TPUS = {
  "v4": ("tpu-v4-podslice", 4),
  "v5e": ("tpu-v5-lite-podslice", 4),
  "v5p": ("tpu-v5p-slice", 4),
  "v6e": ("tpu-v6e-slice", 4),
  "tpu7x": ("tpu7x", 4),
}
WHOLE_HOST = {"v5e": 8, "v6e": 8}  # slices of so many chips are a single host
GPUS = {"h100": "nvidia-h100-mega-80gb", "h200": "nvidia-h200-141gb", "b200": "nvidia-b200"}
GPU_HOST = 8
PORT = 8476
BAD_INPUT = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}


class Workload(NamedTuple):
  """Attributes:
  name: of the JobSet, in DNS letters.
  topology: "v5p:4x4x4", or "h100:64".
  slices: of TPUs, or of GPU nodes that start together.
  image: of the container, with the project in it.
  queue: Kueue's LocalQueue; "" for none.
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
    selector = {"cloud.google.com/gke-accelerator": GPUS[kind]}
    return Shape(count // each, each, "nvidia.com/gpu", selector)
  if kind not in TPUS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", sides):
    raise BadInput(
      f"launch: --topology={topology} is none of GKE's. Give one as v5p:4x4x4, v6e:16x16, h100:64."
    )
  label, host = TPUS[kind]
  chips = math.prod(map(int, sides.split("x")))
  if chips <= WHOLE_HOST.get(kind, host):
    host = chips
  if chips % host:
    raise BadInput(f"launch: --topology={topology} has {chips} chips, in hosts of {host}.")
  selector = {
    "cloud.google.com/gke-tpu-accelerator": label,
    "cloud.google.com/gke-tpu-topology": sides,
  }
  return Shape(chips // host, host, "google.com/tpu", selector)


def make_manifest(workload: Workload, words: Sequence[str]) -> dict[str, Any]:
  """The JobSet of a command line.

  Raises:
    BadInput: a name that Kubernetes refuses, or no such topology.
  """
  if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", workload.name):
    raise BadInput(
      f"launch: --name={workload.name} must be 1 to 40 of a-z, 0-9 and -, beginning with a letter."
    )
  shape = shape_of(workload.topology)
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
  is_tpu = shape.resource == "google.com/tpu"
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {
      "name": workload.name,
      "labels": queue,
      "annotations": exclusive if is_tpu else {},
    },
    "spec": {
      "failurePolicy": {
        "maxRestarts": workload.max_restarts,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
      },
      "replicatedJobs": [
        {"name": "workers", "replicas": workload.slices, "template": {"spec": job}}
      ],
    },
  }


def _pod(workload: Workload, shape: Shape, words: Sequence[str]) -> dict[str, Any]:
  asked = str(shape.devices)
  container: dict[str, Any] = {
    "name": "sora",
    "image": workload.image,
    "command": list(words),
    "env": _variables(workload, shape),
    "envFrom": [{"secretRef": {"name": name}} for name in workload.secrets],
    "ports": [{"containerPort": PORT}],
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
  if shape.resource == "google.com/tpu":
    return []
  if workload.slices > 1:
    raise BadInput("launch: --slices is for TPUs. Give --topology all GPUs, as h100:128.")
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
  """The same by xpk (github.com/AI-Hypercomputer/xpk), which knows clusters by their names."""
  kind, _, sides = workload.topology.lower().partition(":")
  if kind in GPUS:
    device = f"--device-type={kind}-{'mega-' if kind == 'h100' else ''}80gb-8"
    if kind != "h100":
      device = f"--device-type={kind}-{'141gb' if kind == 'h200' else '180gb'}-8"
    count = f"--num-nodes={shape_of(workload.topology).pods}"
  else:
    device, count = f"--tpu-type={kind}-{sides}", f"--num-slices={workload.slices}"
  return shlex.join([
    "xpk", "workload", "create", f"--cluster={cluster}", f"--workload={workload.name}",
    device, count, f"--docker-image={workload.image}", f"--max-restarts={workload.max_restarts}",
    "--restart-on-exit-codes=1,42", f"--termination-grace-period-seconds={workload.grace}",
    f"--command={shlex.join(words)}",
  ])  # fmt: skip

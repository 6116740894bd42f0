"""Pods that are not there: their devices to compile for, and what these can do.

Peaks are in `sora_jax.parallel.peaks`. HBM of a TPU is what its compiler lets a program have
(libtpu 0.0.42 says so when it refuses one), of a GPU the three quarters that JAX takes when it
starts (XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise). HBM bandwidth: the vendors' data sheets.
Links of TPUs: cloud.google.com/tpu/docs give a chip's bidirectional bandwidth (v4, v5p, 7x: six
links; v5e, v6e: four), here it is that of one link, one way. DCN: "How to Scale Your Model",
jax-ml.github.io/scaling-book, ch. 2 (egress a chip). GPUs: NVLink 4 and 5 as in the data sheets,
one way; 400 Gbit/s InfiniBand a GPU (DGX reference architectures). Memory of hosts: that of the
machines these are rented in (cloud.google.com/compute/docs, DGX data sheets).
"""

import contextlib
import math
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

from jax.experimental import topologies

from data_pipeline.errors import BadInput
from sora_jax.parallel.peaks import peak_flops
from sora_jax.plan.gpus import memory_bytes, target_config

GIB = 2**30


class Kind(NamedTuple):
  """One kind of device, as JAX counts devices.

  Attributes:
    name, platform, device_kind: for people; of jax.
    hbm: bytes that a program may have.
    hbm_rate: bytes a second.
    link: bytes a second of one link, one way (of a GPU: all of NVLink).
    network: bytes a second a device between slices (TPU) or hosts (GPU), one way.
    torus: physical axes; 0 for GPUs, whose hosts of `host` devices are switched.
    wraps: length of an axis from which on its ends are joined, or multiples of it.
    cores: devices a chip.
    host: devices a host.
    ram: bytes of a host's memory, a device.
  """

  name: str
  platform: str
  device_kind: str
  hbm: float
  hbm_rate: float
  link: float
  network: float
  torus: int
  wraps: int
  cores: int
  host: int
  ram: float

  @property
  def peak(self) -> float:
    """FLOP/s in bfloat16, dense."""
    peak = peak_flops(self.device_kind)
    if peak is None:
      raise ValueError(f"pods: no peak is known of {self.device_kind!r}.")
    return peak


def _tpu(name, device_kind, hbm, hbm_rate, link, network, torus, wraps, cores, host, ram) -> Kind:
  rates = (hbm * GIB, hbm_rate, link, network)
  return Kind(name, "tpu", device_kind, *rates, torus, wraps, cores, host, ram)


def _gpu(name, hbm_rate, link) -> Kind:
  kind, hbm = f"NVIDIA {name.upper()}", 0.75 * memory_bytes(name)
  return Kind(name, "cuda", kind, hbm, hbm_rate, link, 50e9, 0, 0, 1, 8, 256e9)


KINDS = {
  kind.name: kind
  for kind in (
    _tpu("v4", "TPU v4", 30.75, 1.228e12, 50e9, 6.25e9, 3, 4, 1, 4, 101e9),
    _tpu("v5e", "TPU v5 lite", 15.75, 0.819e12, 50e9, 3.125e9, 2, 16, 1, 4, 48e9),
    _tpu("v5p", "TPU v5", 95.74, 2.765e12, 100e9, 6.25e9, 3, 4, 1, 4, 112e9),
    _tpu("v6e", "TPU v6 lite", 31.25, 1.64e12, 100e9, 12.5e9, 2, 16, 1, 4, 180e9),
    # Two devices share a chip's links and its way to other slices.
    _tpu("tpu7x", "TPU7x", 94.75, 3.69e12, 50e9, 6.25e9, 3, 4, 2, 8, 120e9),
    _gpu("h100", 3.35e12, 450e9),
    _gpu("h200", 4.8e12, 450e9),
    _gpu("b200", 8.0e12, 900e9),
  )
}
# Slices as they are sold, by chips: cloud.google.com/tpu/docs.
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
SOLID = {
  4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
  512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16",
}  # fmt: skip


class Pod(NamedTuple):
  """A pod to plan for.

  Attributes:
    kind: of its devices.
    shape: chips along each physical axis of a slice; (devices,) of GPUs.
    slices: that a slower network joins.
  """

  kind: Kind
  shape: tuple[int, ...]
  slices: int

  @property
  def chips(self) -> int:
    return math.prod(self.shape) * self.slices

  @property
  def devices(self) -> int:
    return self.chips * self.kind.cores

  @property
  def name(self) -> str:
    slices = f"{self.slices} x " if self.slices > 1 else ""
    return f"{slices}{self.kind.name}:{'x'.join(map(str, self.shape))}"


def parse_topology(text: str, slices: int = 1) -> Pod:
  """A pod of "v5p:4x4x8", of chips alone ("v6e:256"), or of GPUs ("h100:64").

  Raises:
    BadInput: no such kind or shape.
  """
  name, _, shape = text.lower().partition(":")
  if name not in KINDS:
    raise BadInput(f"plan: --topology={text} is none of {sorted(KINDS)}. Give one, as v6e:256.")
  kind = KINDS[name]
  usual = {2: FLAT, 3: SOLID}.get(kind.torus, {})
  if usual and shape.isdecimal():
    if int(shape) not in usual:
      raise BadInput(
        f"plan: --topology={text}: slices of {name} have {', '.join(map(str, usual))} chips. Give"
        f" one of these, or a shape of your own, as {name}:{list(usual.values())[-1]}."
      )
    shape = usual[int(shape)]
  axes = kind.torus or 1
  if not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{axes - 1}}}", shape):
    example = list(usual.values())[-1] if usual else "64"
    raise BadInput(f"plan: --topology={text} is no shape of {name}. Give one as {name}:{example}.")
  sides = tuple(map(int, shape.split("x")))
  if usual and math.prod(sides) > max(usual):
    raise BadInput(
      f"plan: --topology={text} is larger than any slice of {name} ({max(usual)} chips). Give one"
      " slice, and how many there are by --config.mesh.slices."
    )
  if not kind.torus and sides[0] > kind.host and sides[0] % kind.host:
    raise BadInput(
      f"plan: --topology={text} is no number of hosts of {kind.host} {name}. Give a multiple."
    )
  return Pod(kind, sides, slices)


def describe_devices(pod: Pod) -> list:
  """The devices of a pod, for a mesh to compile on.

  Raises:
    BadInput: what compiles for them is not installed, or knows no such pod.
  """
  kind = pod.kind
  needs, extra = ("libtpu", "plan") if kind.torus else ("jax_cuda13_plugin", "cuda")
  if find_spec(needs) is None and (kind.torus or find_spec("jax_cuda12_plugin") is None):
    raise BadInput(
      f"plan: {kind.name} is compiled for by {needs}, which is not installed. Install"
      f" sora_jax[{extra}]."
    )
  try:
    return list((_tpus if kind.torus else _gpus)(pod).devices)
  except Exception as error:  # libtpu and XLA raise what they like
    reason = str(error).split("\n")[0][:200]
    raise BadInput(
      f"plan: no devices of --topology={pod.name} ({reason}). Give another."
    ) from error


def _tpus(pod: Pod):
  # No metadata server and no TPU here: libtpu would ask for both. Two plans may run side by side.
  quiet = dict(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0")
  for name, value in (quiet | dict(ALLOW_MULTIPLE_LIBTPU_LOAD="1", TPU_MIN_LOG_LEVEL="3")).items():
    os.environ.setdefault(name, value)
  options: dict[str, Any] = {"num_slices": pod.slices} if pod.slices > 1 else {}
  if pod.kind.name == "v4":  # as JAX runs it: two cores are one device
    options["chip_config_name"] = "megachip_tccontrol"
  if min(pod.shape[:2]) < 2:  # smaller than a host's 2x2
    options["chips_per_host_bounds"] = (*pod.shape[:2], 1)
  shape = "x".join(map(str, pod.shape))
  with _muted():
    return topologies.get_topology_desc(
      platform="tpu", topology_name=f"{pod.kind.name}:{shape}", **options
    )


@contextlib.contextmanager
def _muted() -> Iterator[None]:
  """libtpu writes of hosts that it does not find, whatever it is told; what matters it raises."""
  kept, void = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(void, 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(void)


def _gpus(pod: Pod):
  count, host = pod.shape[0], min(pod.shape[0], pod.kind.host)
  return topologies.get_topology_desc(
    platform="cuda",
    topology_name=pod.kind.name,
    topology=f"{pod.slices}x{count // host}x{host}",
    target_config=target_config(pod.kind.name),
  )

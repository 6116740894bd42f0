"""What XLA has to know of a GPU that is not there, to compile for it.

Source: the data sheets and `deviceQuery` of each, as openxla/xla lists them
(backends/gpu/target_config/specs).
"""

from typing import NamedTuple


class _Gpu(NamedTuple):
  name: str
  major: int  # compute capability
  cores: int
  memory: int
  memory_rate: int
  cache: int
  clock_ghz: float


_GPUS = {
  "h100": _Gpu("NVIDIA H100 80GB", 9, 132, 84_942_979_072, 3_352_320_000_000, 52_428_800, 1.98),
  "h200": _Gpu("NVIDIA H200", 9, 132, 151_397_597_184, 4_800_000_000_000, 52_428_800, 1.98),
  "b200": _Gpu("NVIDIA B200", 10, 148, 191_514_411_008, 7_672_320_000_000, 132_644_864, 1.965),
}
_ALIKE = (  # Hopper and Blackwell
  "threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152"
  " shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448"
  " threads_per_core_limit: 2048 fpus_per_core: 128 block_dim_limit_x: 2147483647"
  " block_dim_limit_y: 65535 block_dim_limit_z: 65535 registers_per_core_limit: 65536"
  " registers_per_block_limit: 65536"
)


def memory_bytes(kind: str) -> int:
  """Of a kind of GPU, as its driver tells it."""
  return _GPUS[kind].memory


def target_config(kind: str) -> str:
  """XLA's `GpuTargetConfigProto` of a kind of GPU, as text."""
  gpu = _GPUS[kind]
  return (
    f"gpu_device_info {{ {_ALIKE} core_count: {gpu.cores} memory_bandwidth: {gpu.memory_rate}"
    f" l2_cache_size: {gpu.cache} clock_rate_ghz: {gpu.clock_ghz}"
    f" device_memory_size: {gpu.memory}"
    f" cuda_compute_capability {{ major: {gpu.major} minor: 0 }} }}"
    ' platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 patch: 0 }'
    f' device_description_str: "{gpu.name}"'
  )

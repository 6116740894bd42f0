"""Checks of replicas on eight fake devices; run by its test, the last line is JSON."""

import json
import os
import time

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402

from sora_jax.models.dit import RULES, DiT  # noqa: E402
from sora_jax.parallel.mesh import make_mesh  # noqa: E402
from sora_jax.train.replicas import ReplicasDiffer, coverage, make_replica_check  # noqa: E402
from sora_jax.train.state import init_state, state_shardings  # noqa: E402

MODEL = dict(patch_dim=16, width=64, depth=2, heads=4, mlp="swiglu", mlp_ratio=4.0, vocabulary=9)
MODEL |= dict(state_width=0, pooled_caption=True, zero_init=False)
MODEL |= dict(rotary_seconds=(2.0, 128.0))
MODEL |= dict(dtype="float32", param_dtype="float32")


def damaged(array, device: int, word: int):
  """The array with a flipped bit in a word of one device's copy."""
  parts = []
  for shard in sorted(array.addressable_shards, key=lambda shard: shard.device.id):
    data = np.array(shard.data)
    if shard.device.id == device:
      data.reshape(-1).view(np.uint32)[word] ^= 1
    parts.append(jax.device_put(data, shard.device))
  return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


def complaint(check, state) -> str:
  try:
    check(7, state)
  except ReplicasDiffer as error:
    return str(error)
  return ""


def main() -> None:
  mesh = make_mesh(data=2, fsdp=2, context=1, tensor=2)
  make = lambda: init_state(  # noqa: E731
    nnx.state(DiT(**MODEL, rngs=nnx.Rngs(0))), optax.adam(1e-3), ("ema", "0.9")
  )
  shapes = jax.eval_shape(make)
  places = state_shardings(shapes, RULES, mesh)
  state = jax.jit(make, out_shardings=places)()
  check = make_replica_check(places, shapes, mesh)
  result = {"sound": complaint(check, state)}

  def with_leaf(path, leaf):
    parts = path.split("/")
    here = jax.tree_util.tree_map_with_path(
      lambda p, x: leaf(x) if jax.tree_util.keystr(p, simple=True, separator="/") == path else x,
      state,
    )
    assert parts
    return here

  names = [
    jax.tree_util.keystr(p, simple=True, separator="/")
    for p, _ in jax.tree_util.tree_flatten_with_path(state)[0]
  ]
  for part in ("params", "opt"):
    name = next(n for n in names if n.startswith(part) and "qkv/kernel" in n)
    result[part] = complaint(check, with_leaf(name, lambda x: damaged(x, 5, 3)))
  name = next(n for n in names if n.startswith("params") and "qkv/kernel" in n)
  result["first"] = complaint(check, with_leaf(name, lambda x: damaged(x, 1, 3)))
  result["coverage"] = coverage(places, shapes, mesh)
  alone = make_mesh(data=1, fsdp=8, context=1, tensor=1)
  result["fsdp"] = coverage(state_shardings(shapes, RULES, alone), shapes, alone)
  swap = next(n for n in names if n.startswith("ema") and "table" in n)

  def swapped(array):
    """Two numbers that changed places on one device: their plain sum is the same."""
    parts = []
    for shard in sorted(array.addressable_shards, key=lambda shard: shard.device.id):
      data = np.array(shard.data)
      if shard.device.id == 2:
        flat = data.reshape(-1)
        flat[[0, 1]] = flat[[1, 0]]
      parts.append(jax.device_put(data, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)

  result["swapped"] = complaint(check, with_leaf(swap, swapped))
  begin = time.perf_counter()
  for _ in range(10):
    check(0, state)
  result["milliseconds"] = 100 * (time.perf_counter() - begin)
  print(json.dumps(result))


if __name__ == "__main__":
  main()

"""Prints what collectives of small programs send, as JSON; to be run with eight CPU devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sora_jax.parallel.mesh import make_mesh
from sora_jax.plan import collectives, hlo

MESH = make_mesh(data=2, fsdp=4)


def wire(function, spec: PartitionSpec) -> dict[str, float]:
  """Bytes by kind and axis where the argument [64,64] lies as `spec` and the result is whole."""
  x = jax.ShapeDtypeStruct((64, 64), np.float32, sharding=NamedSharding(MESH, spec))
  whole = NamedSharding(MESH, PartitionSpec())
  module = hlo.parse(jax.jit(function, out_shardings=whole).lower(x).compile().as_text())
  found: dict[str, float] = {}
  for instruction in module.computations[module.entry]:
    for one in collectives.find(module, instruction, dict(MESH.shape)):
      name = f"{one.kind} over {one.axis}"
      found[name] = found.get(name, 0.0) + one.wire
  return found


if __name__ == "__main__":
  double = lambda x: x * 2  # noqa: E731
  print(
    json.dumps(
      {
        "gathered": wire(double, PartitionSpec("fsdp")),
        "gathered by all": wire(double, PartitionSpec(("data", "fsdp"))),
        "summed": wire(lambda x: jnp.sum(x, 0), PartitionSpec("fsdp")),
      }
    )
  )

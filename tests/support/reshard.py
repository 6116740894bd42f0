"""One of several processes that restore a state onto a mesh and save it again; run by its test.

FOLDER FROM TO MESH SLICES: step 0 is a fresh state; the mesh as JSON. Says how often it read.
"""

import json
import sys

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from sora_jax.parallel import hosts
from sora_jax.parallel.mesh import make_mesh
from sora_jax.train.checkpoint import Checkpoints
from sora_jax.train.state import Progress, abstract_state, init_state, state_shardings

folder, begin, end, sizes, slices = sys.argv[1:]
begin, end, slices = int(begin), int(end), int(slices)
hosts.initialize(start_seconds=60)
reads, honest = [], Checkpoints._restore_state
Checkpoints._restore_state = lambda *words: (reads.append(1), honest(*words))[1]
mesh = make_mesh(**json.loads(sizes), slices=slices)


def make():
  kernel = jax.random.normal(jax.random.key(0), (16, 8)).at[0].set(-0.0).at[1, 0].set(jnp.nan)
  params = {"kernel": kernel, "half": kernel.astype(jnp.bfloat16), "bias": jnp.arange(8.0)}
  return init_state(params, optax.adam(1e-3))


shapes = jax.eval_shape(make)
rules = ((r".*kernel|.*half", P("fsdp", "tensor")), (r".*bias", P()))
places = state_shardings(shapes, rules, mesh)
with Checkpoints(folder, seconds=60) as checkpoints:
  if begin:
    abstract = abstract_state(shapes, places)
    state, progress, run = checkpoints.restore(begin, abstract, max(1, slices))
  else:
    state, progress = jax.jit(make, out_shardings=places)(), Progress({"bin": 7}, 5, 6)
    run = {"config": {"version": 2}}
  step_on = jax.jit(lambda s: s._replace(step=s.step + (end - begin)), out_shardings=places)
  checkpoints.save(end, step_on(state), progress, run)
print(json.dumps({"process": hosts.index(), "reads": len(reads)}))

"""Eight devices, simulated in a process of their own: a state moves between meshes bit for bit."""

import os
import subprocess
import sys

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax, pytest
from jax.sharding import PartitionSpec as P
from data_pipeline.errors import BadInput
from sora_jax.parallel.mesh import make_mesh
from sora_jax.parallel.place import make_put
from sora_jax.parallel.rules import shardings
from sora_jax.train.checkpoint import Checkpoints
from sora_jax.train.hashes import checksums, state_hashes
from sora_jax.train.state import Progress, abstract_state, init_state, state_shardings

RULES = ((r".*kernel", P("fsdp", "tensor")), (r".*bias", P()))
optimizer = optax.adam(1e-3)

def make():
  kernel = jax.random.normal(jax.random.key(0), (16, 8))
  state = init_state({"kernel": kernel, "bias": jnp.arange(8.0)}, optimizer)
  return state._replace(step=state.step + 1)

shapes = jax.eval_shape(make)
def places(**sizes):
  return state_shardings(shapes, RULES, make_mesh(**sizes))

first = lambda: make()._replace(step=jnp.int32(1))
state = jax.jit(first, out_shardings=places(data=2, fsdp=2, tensor=2))()
assert len(state.params["kernel"].sharding.device_set) == 8
assert state.params["kernel"].addressable_shards[0].data.shape == (8, 4)
assert state.opt[0].mu["kernel"].addressable_shards[0].data.shape == (8, 4)  # moments lie alike
expected = state_hashes(state)
with Checkpoints(sys.argv[1]) as checkpoints:
  checkpoints.save(1, state, Progress({"bin": 3}), {})
with Checkpoints(sys.argv[1]) as checkpoints:
  moves = (dict(data=1, fsdp=8), (2, 8)), (dict(data=8), (16, 8)), (dict(tensor=4), (16, 2))
  for sizes, shape in moves:
    found, _, _ = checkpoints.restore(1, abstract_state(shapes, places(**sizes)))
    assert found.params["kernel"].addressable_shards[0].data.shape == shape, sizes
    assert state_hashes(found) == expected and checksums(found) == checksums(state), sizes

mesh = make_mesh(data=2, fsdp=2, context=2)
batch = make_put(mesh)({"latents": np.arange(32.0, dtype=np.float32).reshape(8, 4)})["latents"]
assert batch.addressable_shards[0].data.shape == (2, 2)
with pytest.raises(BadInput, match=r"rows=.* do not divide over 4 ranks \\(mesh data=2, fsdp=2\\)"):
  make_put(mesh)({"latents": np.zeros((6, 4))})
with pytest.raises(BadInput, match=r"kernel axis 0 of size 12 .* does not divide over fsdp=8"):
  shardings({"kernel": jnp.zeros((12, 8))}, RULES, make_mesh(data=1, fsdp=8))
with pytest.raises(BadInput, match="data=3, .* does not use 8 devices evenly"):
  make_mesh(data=3)
"""


def test_state_moves_between_meshes(tmp_path):
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
  }
  command = [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path / "checkpoints")]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr

"""Digests of a state, and where its parts lie."""

import hashlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from experiments import common
from sora_jax.models.dit import RULES, DiT
from sora_jax.parallel.mesh import AXES, make_mesh
from sora_jax.parallel.rules import named_leaves
from sora_jax.train.averages import SETTINGS
from sora_jax.train.hashes import checksums, state_hashes, tree_sha256
from sora_jax.train.optim import MOMENTS, OPTIMIZERS, make_optimizer
from sora_jax.train.state import init_state, state_shardings


def test_the_digest_is_what_it_says():
  tree = {"b": np.array([1, -2], np.int32), "a": {"x": np.float32(1.5)}}
  message = b"a/x float32 ()\n" + b"\x00\x00\xc0\x3f"
  message += b"b int32 (2,)\n" + b"\x01\x00\x00\x00\xfe\xff\xff\xff"
  assert tree_sha256(tree) == hashlib.sha256(message).hexdigest()


def test_containers_do_not_matter_but_values_do():
  params = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Param)
  plain = jax.tree.map(np.asarray, nnx.to_pure_dict(params))
  assert tree_sha256(params) == tree_sha256(plain)
  assert tree_sha256((plain["kernel"],)) != tree_sha256((plain["kernel"].T.copy(),))
  assert tree_sha256({"k": plain["kernel"]}) != tree_sha256({"l": plain["kernel"]})
  changed = plain["kernel"].copy()
  changed.view(np.uint32)[2, 1] ^= 1
  assert tree_sha256({"k": plain["kernel"]}) != tree_sha256({"k": changed})


def test_named_state_and_restored_dict_agree():
  state = init_state({"w": jnp.ones((2, 2))}, optax.adam(1e-3))
  moments = {"count": 0, "mu": state.opt[0].mu, "nu": state.opt[0].nu}
  moments["count"] = np.asarray(state.opt[0].count)
  restored = {"params": state.params, "ema": state.ema, "opt": [moments, None]}
  assert state_hashes(state) == state_hashes(restored)


@pytest.mark.parametrize(
  "dtype", [np.float32, ml_dtypes.bfloat16, np.int32, np.uint8, np.bool_, np.uint32]
)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 5)])
def test_checksums_against_numpy(dtype, shape):
  value = np.asarray(np.random.RandomState(0).randn(*shape) * 100).astype(dtype)
  words = value.reshape(-1).view(f"u{value.itemsize}").astype(object)
  expected = [int(sum(words)) % 2**32, int(sum((i + 1) * w for i, w in enumerate(words))) % 2**32]
  assert checksums({"x": value}) == {"x": expected}


@pytest.mark.parametrize("clip_sigmas", [0.0, 3.0])
@pytest.mark.parametrize("momentum", MOMENTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_whatever_an_optimiser_keeps_of_a_parameter_lies_like_it(name, momentum, clip_sigmas):
  settings = common.optimizer(1e-3, 1, name=name, momentum_dtype=momentum, clip_sigmas=clip_sigmas)
  kept = {key: value for key, value in settings.items() if key not in SETTINGS}
  optimizer = make_optimizer(**kept, total_steps=10)
  model = dict(patch_dim=16, width=64, depth=2, heads=4, mlp="swiglu", mlp_ratio=4.0, vocabulary=9)
  model |= dict(state_width=0, pooled_caption=True, zero_init=True, rotary_seconds=(2.0, 128.0))
  model |= dict(dtype="float32", param_dtype="float32")
  make = lambda: nnx.state(DiT(**model, rngs=nnx.Rngs(0)))  # noqa: E731
  shapes = jax.eval_shape(lambda: init_state(make(), optimizer, ("ema", "0.1", "0.99")))
  mesh = jax.sharding.AbstractMesh((2, 2, 1, 2), AXES)
  places = state_shardings(shapes, RULES, mesh)  # pyright: ignore[reportArgumentType]
  parameters = {n: place.spec for n, place in named_leaves(places.params).items()}
  assert sum(spec != P() for spec in parameters.values()) > 10
  for tree in (places.ema, *places.averages.values()):
    assert {n: place.spec for n, place in named_leaves(tree).items()} == parameters
  found = set()
  lying = named_leaves(places.opt)
  for path, leaf in named_leaves(shapes.opt).items():
    parameter = next((n for n in parameters if path.endswith(f"/{n}")), None)
    if leaf.ndim == 0 or path.endswith("ns_coeffs"):  # numbers of the method
      continue
    assert parameter, f"{path} belongs to no parameter"
    assert lying[path].spec == parameters[parameter], path
    found.add(parameter)
  assert found == set(parameters)


def test_moments_and_averages_lie_like_their_parameters():
  params = {"a": {"kernel": jnp.zeros((4, 2))}, "kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}
  state = init_state(params, optax.adam(1e-3))
  rules = ((r"a/kernel", P("fsdp")), (r"kernel", P(None, "tensor")), (r"bias", P()))
  placed = state_shardings(state, rules, make_mesh(devices=jax.devices()[:1]))
  for tree in (placed.params, placed.ema, placed.opt[0].mu, placed.opt[0].nu):
    assert tree["a"]["kernel"].spec == P("fsdp")
    assert tree["kernel"].spec == P(None, "tensor")
  assert placed.opt[0].count.spec == P() == placed.step.spec

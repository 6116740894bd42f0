"""What the backward pass computes again, by policy."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name

from data_pipeline.errors import BadInput
from sora_jax.attention.saved import ATTENDED
from sora_jax.models.remat import BLOCK_INPUT, REMAT, rematerialised


def layer(x, w):
  x = checkpoint_name(x, BLOCK_INPUT)
  x = x + checkpoint_name(jnp.sin(x @ w["attention"]), ATTENDED)
  return x + jnp.tanh(x @ w["mlp"]), None


def loss(weights, x, remat):
  return jnp.sum(jax.lax.scan(rematerialised(layer, remat), x, weights)[0])


def count(program: str, name: str) -> int:
  """Equations of a primitive, those of inner programs included."""
  return len(re.findall(rf"= {name}(\[| )", program))


WEIGHTS = {name: jnp.full((3, 4, 4), 0.1) for name in ("attention", "mlp")}
X = jnp.arange(8.0).reshape(2, 4)


@pytest.mark.parametrize(
  ("remat", "times"),
  [("none", (1, 1)), ("attention", (1, 2)), ("block", (2, 2)), ("offload", (2, 2))],
)
def test_what_is_computed_again(remat, times):
  program = str(jax.make_jaxpr(jax.grad(loss), static_argnums=2)(WEIGHTS, X, remat))
  assert (count(program, "sin"), count(program, "tanh")) == times


@pytest.mark.parametrize("remat", REMAT)
def test_gradients_are_the_same(remat):
  gradient = jax.jit(jax.grad(loss), static_argnums=2)
  found, wanted = gradient(WEIGHTS, X, remat), gradient(WEIGHTS, X, "none")
  assert all(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.allclose(a, b, 1e-6), found, wanted)))


def test_unknown_policy():
  with pytest.raises(BadInput, match="remat='all' is not one of"):
    rematerialised(layer, "all")

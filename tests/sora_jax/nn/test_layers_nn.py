"""Rotary positions, gathers and the block: closed forms, properties, torch as the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.errors import BadInput
from sora_jax.attention.registry import segment_attention
from sora_jax.nn.block import Block, layer_norm
from sora_jax.nn.gather import gather_rows
from sora_jax.nn.rope import rotary_angles, rotary_frequencies, rotate


def test_rotary_scores_depend_on_relative_position_only():
  rng = np.random.default_rng(0)
  q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 32)), jnp.float32) for _ in range(2))
  here, there = (jnp.asarray(rng.normal(size=(1, 1, 4)), jnp.float32) for _ in range(2))
  score = lambda a, b: jnp.sum(rotate(q, rotary_angles(a, 32)) * rotate(k, rotary_angles(b, 32)))  # noqa: E731
  moved = jnp.array([3.0, -2.0, 5.0, 1.0])
  assert float(score(here, there)) == pytest.approx(
    float(score(here + moved, there + moved)), abs=1e-4
  )
  assert abs(float(score(here, there)) - float(score(here, there + moved))) > 1e-2


def test_rotary_is_a_complex_product():
  rng = np.random.default_rng(1)
  x = rng.normal(size=(1, 2, 1, 16)).astype(np.float32)
  position = rng.normal(size=(1, 2, 4)).astype(np.float32)
  angles = np.asarray(rotary_angles(jnp.asarray(position), 16))
  turned = (x[..., :8] + 1j * x[..., 8:]) * np.exp(1j * angles)[:, :, None]
  expected = np.concatenate([turned.real, turned.imag], -1)
  np.testing.assert_allclose(
    rotate(jnp.asarray(x), jnp.asarray(angles)), expected, rtol=1e-5, atol=1e-5
  )


def test_each_pair_turns_with_one_axis():
  table = rotary_frequencies(64)
  assert np.all(np.sum(table > 0, 0) == 1) and np.all(np.sum(table > 0, 1) == 8)
  with pytest.raises(BadInput, match="head_dim=36 is not a multiple of 8"):
    rotary_frequencies(36)


def test_gather_and_its_gradient_match_indexing():
  rng = np.random.default_rng(2)
  values = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
  index = jnp.array([[0, 2, 2, -1], [1, 1, -1, 0]])
  weight = jnp.asarray(rng.normal(size=(2, 4, 4)), jnp.float32)

  def plain(values):
    rows = values[jnp.arange(2)[:, None], jnp.maximum(index, 0)]
    return jnp.sum(weight * jnp.where(index[..., None] >= 0, rows, 0))

  ours = lambda values: jnp.sum(weight * gather_rows(values, index))  # noqa: E731
  assert float(ours(values)) == pytest.approx(float(plain(values)), rel=1e-6)
  np.testing.assert_allclose(jax.grad(ours)(values), jax.grad(plain)(values), rtol=1e-5, atol=1e-6)
  assert "scatter" not in str(jax.make_jaxpr(jax.grad(ours))(values))


def make_block(zero_init):
  return Block(
    32,
    2,
    mlp="swiglu",
    mlp_ratio=4,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    zero_init=zero_init,
    rngs=nnx.Rngs(0),
  )


@pytest.mark.parametrize("zero_init", [True, False])
def test_a_new_block_is_the_identity_only_with_zero_gates(zero_init):
  x = jax.random.normal(jax.random.key(0), (1, 6, 32))
  level, segment = jnp.zeros((1, 6), int), jnp.ones((1, 6), int)
  attend = lambda q, k, v: segment_attention("xla")(q, k, v, segment)  # noqa: E731
  angles = rotary_angles(jnp.zeros((1, 6, 4)), 16)
  y = make_block(zero_init)(x, jnp.zeros((1, 1, 192)), level, angles, attend, lambda f: f)
  assert bool(jnp.array_equal(x, y)) == zero_init


def test_layer_norm_has_unit_variance():
  y = layer_norm(jax.random.normal(jax.random.key(1), (3, 4, 64)) * 5 + 2)
  np.testing.assert_allclose(jnp.mean(y, -1), 0, atol=1e-5)
  np.testing.assert_allclose(jnp.std(y, -1), 1, atol=1e-4)


def test_segment_attention_is_softmax_attention_of_each_segment():
  rng = np.random.default_rng(3)
  q, k, v = (jnp.asarray(rng.normal(size=(1, 7, 2, 8)), jnp.float32) for _ in range(3))
  segment = jnp.array([[1, 1, 1, 2, 2, 0, 0]])
  out = segment_attention("xla")(q, k, v, segment)
  for part in (slice(0, 3), slice(3, 5), slice(5, 7)):
    alone = jax.nn.dot_product_attention(q[:, part], k[:, part], v[:, part])
    np.testing.assert_allclose(out[:, part], alone, rtol=1e-5, atol=1e-5)
  with pytest.raises(BadInput, match="backend='flash9' is not one of"):
    segment_attention("flash9")


def test_angles_ask_for_full_precision():
  """Accelerators would otherwise round positions and frequencies to a few bits."""
  traced = str(jax.make_jaxpr(lambda p: rotary_angles(p, 16))(jnp.zeros((1, 6, 4))))
  assert "precision=(Precision.HIGHEST, Precision.HIGHEST)" in traced.replace("\n", "")

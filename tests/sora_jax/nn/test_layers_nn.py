"""Layers against closed forms in numpy's float64; the whole model meets torch's values in
models/test_dit_reference.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit, softmax

from data_pipeline.errors import BadInput
from sora_jax.attention.registry import segment_attention
from sora_jax.nn.block import MLP, Attention, Block, layer_norm, mlp_hidden
from sora_jax.nn.embed import CaptionPool, LevelEmbedding, sinusoidal
from sora_jax.nn.gather import gather_rows
from sora_jax.nn.rope import fourier_features, rotary_angles, rotary_frequencies, rotate

SECONDS = (2.0, 128.0)  # shortest and longest period in time


def test_rotary_scores_depend_on_relative_position_only():
  rng = np.random.default_rng(0)
  q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 32)), jnp.float32) for _ in range(2))
  here, there = (jnp.asarray(rng.normal(size=(1, 1, 4)), jnp.float32) for _ in range(2))
  turned = lambda x, at: rotate(x, rotary_angles(at, 32, SECONDS))  # noqa: E731
  score = lambda a, b: jnp.sum(turned(q, a) * turned(k, b))  # noqa: E731
  moved = jnp.array([3.0, -2.0, 5.0, 1.0])
  assert float(score(here, there)) == pytest.approx(
    float(score(here + moved, there + moved)), abs=1e-4
  )
  assert abs(float(score(here, there)) - float(score(here, there + moved))) > 1e-2


def test_rotary_is_a_complex_product():
  rng = np.random.default_rng(1)
  x = rng.normal(size=(1, 2, 1, 16)).astype(np.float32)
  position = rng.normal(size=(1, 2, 4)).astype(np.float32)
  angles = np.asarray(rotary_angles(jnp.asarray(position), 16, SECONDS))
  turned = (x[..., :8] + 1j * x[..., 8:]) * np.exp(1j * angles)[:, :, None]
  expected = np.concatenate([turned.real, turned.imag], -1)
  np.testing.assert_allclose(
    rotate(jnp.asarray(x), jnp.asarray(angles)), expected, rtol=1e-5, atol=1e-5
  )


def test_each_pair_turns_with_one_axis():
  table = rotary_frequencies(64, SECONDS)
  assert np.all(np.sum(table > 0, 0) == 1) and np.all(np.sum(table > 0, 1) == 8)
  with pytest.raises(BadInput, match="head_dim=36 is not a multiple of 8"):
    rotary_frequencies(36, SECONDS)


def test_periods_are_whole_turns():
  """Each axis has its shortest and longest period, in seconds, latent cells and caption tokens."""
  table = rotary_frequencies(64, SECONDS)
  periods = [np.sort(2 * np.pi / row[row > 0]) for row in table]
  ends = [(2, 128), (4, 512), (4, 512), (4, 2048)]
  np.testing.assert_allclose([(one[0], one[-1]) for one in periods], ends, rtol=1e-6)
  for one in periods:  # spaced geometrically
    np.testing.assert_allclose(one[1:] / one[:-1], one[1] / one[0], rtol=1e-5)
  once = jnp.asarray(np.diag([2.0, 4.0, 4.0, 4.0])[None], jnp.float32)  # a period along each axis
  turns = np.asarray(rotary_angles(once, 64, SECONDS))[0] / (2 * np.pi)
  assert [row.max() for row in turns] == pytest.approx([1.0] * 4)
  placed = fourier_features(once, 64, SECONDS)
  angles = rotary_angles(once, 64, SECONDS)
  wanted = np.concatenate([np.cos(angles), np.sin(angles)], -1)
  np.testing.assert_allclose(placed, wanted, atol=1e-6)


@pytest.mark.parametrize(
  "seconds", [(0.0, 128.0), (2.0,), (2.0, 2.0), (2.0, float("nan")), "ab", None, (True, 2.0)]
)
def test_refuses_periods_that_are_none(seconds):
  with pytest.raises(BadInput, match=r"rotary_seconds=.* is no \(shortest, longest\) period"):
    rotary_frequencies(64, seconds)


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
  angles = rotary_angles(jnp.zeros((1, 6, 4)), 16, SECONDS)
  y = make_block(zero_init)(x, jnp.zeros((1, 1, 192)), level, angles, attend, lambda f: f)
  assert bool(jnp.array_equal(x, y)) == zero_init


def test_layer_norm_has_unit_variance():
  y = layer_norm(jax.random.normal(jax.random.key(1), (3, 4, 64)) * 5 + 2)
  np.testing.assert_allclose(jnp.mean(y, -1), 0, atol=1e-5)
  np.testing.assert_allclose(jnp.std(y, -1), 1, atol=1e-4)


def attend_alone(q, k, v):
  """Softmax attention of one segment [n,heads,side], float64."""
  q, k, v = (np.asarray(part, np.float64).swapaxes(0, 1) for part in (q, k, v))
  scores = softmax(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]), axis=-1)
  return (scores @ v).swapaxes(0, 1)


def test_segment_attention_is_softmax_attention_of_each_segment():
  rng = np.random.default_rng(3)
  q, k, v = (jnp.asarray(rng.normal(size=(1, 7, 2, 8)), jnp.float32) for _ in range(3))
  segment = jnp.array([[1, 1, 1, 2, 2, 0, 0]])
  out = segment_attention("xla")(q, k, v, segment)
  for part in (slice(0, 3), slice(3, 5), slice(5, 7)):
    alone = attend_alone(q[0, part], k[0, part], v[0, part])
    np.testing.assert_allclose(out[0, part], alone, rtol=1e-5, atol=1e-6)
  with pytest.raises(BadInput, match="backend='flash9' is not one of"):
    segment_attention("flash9")


def test_attention_normalises_and_turns_queries_and_keys():
  rng = np.random.default_rng(4)
  layer = Attention(32, 2, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
  for norm in (layer.norm_q, layer.norm_k):
    norm.scale[...] = jnp.asarray(1 + 0.3 * rng.normal(size=16), jnp.float32)
  x, angles = rng.normal(size=(5, 32)), rng.normal(size=(5, 8))

  def prepare(y, scale):
    y = y / np.sqrt(np.mean(y * y, -1, keepdims=True) + 1e-6) * np.asarray(scale)
    turned = (y[..., :8] + 1j * y[..., 8:]) * np.exp(1j * angles)[:, None]
    return np.concatenate([turned.real, turned.imag], -1)

  q, k, v = np.einsum("nd,dphs->pnhs", x, np.asarray(layer.qkv.kernel, np.float64))
  q, k = prepare(q, layer.norm_q.scale[...]), prepare(k, layer.norm_k.scale[...])
  out = np.einsum("nhs,hsd->nd", attend_alone(q, k, v), np.asarray(layer.out.kernel, np.float64))
  attend = lambda q, k, v: segment_attention("xla")(q, k, v, jnp.ones((1, 5), int))  # noqa: E731
  given = (jnp.asarray(array, jnp.float32)[None] for array in (x, angles))
  found = layer(*given, attend, lambda f: f)[0]
  np.testing.assert_allclose(found, out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "hidden"), [("gelu", 64), ("swiglu", 64)])
def test_mlp_is_gelu_or_swiglu(kind, hidden):
  dtypes = dict(dtype=jnp.float32, param_dtype=jnp.float32)
  layer = MLP(32, ratio=2, kind=kind, **dtypes, rngs=nnx.Rngs(0))
  x = np.random.default_rng(5).normal(size=(3, 32))
  y = np.einsum("nd,dph->pnh", x, np.asarray(layer.into.kernel, np.float64))
  assert y.shape == (1 + (kind == "swiglu"), 3, hidden)
  if kind == "swiglu":  # gate, value
    y = y[0] * expit(y[0]) * y[1]
  else:  # Hendrycks & Gimpel 2016, arXiv:1606.08415, sec. 2
    y = 0.5 * y[0] * (1 + np.tanh(np.sqrt(2 / np.pi) * (y[0] + 0.044715 * y[0] ** 3)))
  found = layer(jnp.asarray(x, jnp.float32)[None], lambda f: f)[0]
  np.testing.assert_allclose(found, y @ np.asarray(layer.out.kernel), rtol=1e-4, atol=1e-5)


def test_swiglu_has_as_many_parameters_as_gelu():
  """Three matrices instead of two, each two thirds as wide; widths are rounded up to 32."""
  assert mlp_hidden(96, 4, "gelu") == 4 * 96 and mlp_hidden(96, 4, "swiglu") == 2 / 3 * 4 * 96
  assert [mlp_hidden(100, 4, kind) for kind in ("gelu", "swiglu")] == [416, 288]


def test_levels_are_waves_of_a_thousand_t():
  t = np.array([[0.0, 0.25, 0.8125, 1.0]])
  angles = 1000 * t[..., None] * 10_000.0 ** (-np.arange(4) / 4)
  waves = np.concatenate([np.cos(angles), np.sin(angles)], -1)
  np.testing.assert_allclose(sinusoidal(jnp.asarray(t, jnp.float32), 8), waves, atol=1e-4)
  layer = LevelEmbedding(16, features=8, rngs=nnx.Rngs(0))
  hidden = waves @ np.asarray(layer.into.kernel)
  expected = (hidden * expit(hidden)) @ np.asarray(layer.out.kernel)
  np.testing.assert_allclose(layer(jnp.asarray(t, jnp.float32)), expected, rtol=1e-3, atol=1e-4)


def test_pooled_caption_is_the_mean_over_the_segments_tokens():
  rng = np.random.default_rng(6)
  layer = CaptionPool(8, dtype=jnp.float32, rngs=nnx.Rngs(0))
  tokens = rng.normal(size=(1, 4, 8))
  text_index = np.array([[0, 1, 2, -1, -1, 3, -1, -1]])
  segment = np.array([[1, 1, 1, 1, 1, 2, 2, 0]])
  hidden = tokens[0] @ np.asarray(layer.into.kernel)
  hidden = hidden * expit(hidden)
  means = np.stack([np.zeros(8), hidden[:3].mean(0), hidden[3], np.zeros(8)])
  given = jnp.asarray(tokens, jnp.float32), jnp.asarray(text_index), jnp.asarray(segment)
  found = layer(*given, 4)[0]
  np.testing.assert_allclose(found, means @ np.asarray(layer.out.kernel), rtol=1e-4, atol=1e-5)


def test_angles_ask_for_full_precision():
  """Accelerators would otherwise round positions and frequencies to a few bits."""
  traced = str(jax.make_jaxpr(lambda p: rotary_angles(p, 16, SECONDS))(jnp.zeros((1, 6, 4))))
  assert "precision=(Precision.HIGHEST, Precision.HIGHEST)" in traced.replace("\n", "")

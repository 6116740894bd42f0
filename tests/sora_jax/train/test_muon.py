"""Muon, matrix by matrix, against its author's publication, written out in numpy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import common
from sora_jax.models.dit import DiT
from sora_jax.models.vae import make_codec
from sora_jax.parallel.rules import named_leaves
from sora_jax.train.muon import MuonState, matrix_axes, orthogonalize
from sora_jax.train.optim import make_optimizer

LR, DECAY, B1, B2, EPS, STEPS = 0.02, 0.5, 0.9, 0.95, 1e-8, 50
# The kernels of two layers, as the models have them, and what AdamW has.
SHAPES = {
  "blocks/attention/qkv/kernel": (2, 8, 3, 2, 4),
  "blocks/attention/out/kernel": (2, 2, 4, 8),
  "blocks/mlp/into/kernel": (2, 8, 2, 12),
  "blocks/mlp/out/kernel": (2, 12, 8),
  "decoder/levels/0/blocks/conv/kernel": (2, 2, 2, 3, 5),
  "blocks/mlp/into/bias": (2, 2, 12),
  "blocks/table": (2, 6, 8),
  "head/kernel": (8, 6),
  "head/bias": (6,),
}
VECTORS = ("blocks/mlp/into/bias", "blocks/table", "head/bias")  # weight decay leaves them alone


def matrices(name: str, leaf: np.ndarray) -> list[np.ndarray]:
  """Views [inputs, outputs] of a leaf, one a layer and part."""
  if name.endswith("qkv/kernel"):
    return [leaf[i, :, part].reshape(8, 8) for i in range(2) for part in range(3)]
  if name.endswith("into/kernel"):
    return [leaf[i, :, part] for i in range(2) for part in range(2)]
  return [layer.reshape(-1, layer.shape[-1]) for layer in leaf]


def newton_schulz(g: np.ndarray) -> np.ndarray:
  """Jordan 2024: five steps of the quintic on G / |G|, transposed where there are more rows."""
  x = (g.T if g.shape[0] > g.shape[1] else g) / np.linalg.norm(g)
  for _ in range(5):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  return x.T if g.shape[0] > g.shape[1] else x


def muon(x, gradients):
  """Momentum, Nesterov's look ahead, orthogonalisation; 0.2 sqrt(max(m, n)) of Liu et al., eq. 4"""
  m = np.zeros_like(x)
  for g in gradients:
    m = 0.95 * m + 0.05 * g
    update = newton_schulz(0.95 * m + 0.05 * g)
    x = x - LR * (0.2 * np.sqrt(max(x.shape)) * update + DECAY * x)
  return x


def adamw(x, gradients, decay):
  """Loshchilov & Hutter 2019, algorithm 2, with a constant schedule multiplier."""
  m = v = np.zeros_like(x)
  for t, g in enumerate(gradients, 1):
    m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
    x = x - LR * (m / (1 - B1**t) / (np.sqrt(v / (1 - B2**t)) + EPS) + decay * x)
  return x


def nested(flat: dict) -> dict:
  tree: dict = {}
  for name, leaf in flat.items():
    *groups, last = name.split("/")
    place = tree
    for group in groups:
      place = place.setdefault(group, {})
    place[last] = leaf
  return tree


def optimizer(**changes):
  settings = common.optimizer(LR, 0, name="muon", schedule="constant", weight_decay=DECAY, b1=B1)
  settings |= dict(b2=B2, eps=EPS, clip_norm=0.0) | changes
  kept = {name: value for name, value in settings.items() if "ema" not in name}
  return make_optimizer(**kept, total_steps=STEPS)


def test_fifty_steps_are_those_of_the_formulas():
  """Muon per layer, and q, k, v, gate and value apart; plain AdamW for all else."""
  rng = np.random.default_rng(0)
  begin = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
  drawn = {name: rng.normal(size=(STEPS, *shape)) for name, shape in SHAPES.items()}
  rule = optimizer()

  def step(carry, gradients):
    params, state = carry
    updates, state = rule.update(gradients, state, params)
    return (jax.tree.map(jnp.add, params, updates), state), None

  params = jax.tree.map(jnp.float32, nested(begin))
  train = jax.jit(lambda carry, all_of_them: jax.lax.scan(step, carry, all_of_them)[0])
  found = train((params, rule.init(params)), jax.tree.map(jnp.float32, nested(drawn)))[0]
  for name, leaf in named_leaves(found).items():
    if name.endswith("kernel") and name != "head/kernel":
      parts = zip(
        matrices(name, np.asarray(leaf)),
        matrices(name, begin[name]),
        zip(*(matrices(name, g) for g in drawn[name]), strict=True),
        strict=True,
      )
      for got, x, gradients in parts:
        np.testing.assert_allclose(got, muon(x, gradients), atol=1e-4, err_msg=name)
    else:
      expected = adamw(begin[name], drawn[name], 0.0 if name in VECTORS else DECAY)
      np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (24, 24)])
def test_updates_have_the_size_of_adamws_whatever_the_shape(shape):
  """RMS 0.2 for singular values of 1; the quintic leaves most between 0.7 and 1.2."""
  rng = np.random.default_rng(1)
  rule = optimizer(lr=1.0, weight_decay=0.0)
  for scale in (1e-6, 1.0):
    gradients = {"blocks": {"kernel": jnp.float32(scale * rng.normal(size=(3, *shape)))}}
    update = rule.update(gradients, rule.init(gradients), gradients)[0]["blocks"]["kernel"]
    values = np.linalg.svd(np.asarray(update) / (0.2 * np.sqrt(max(shape))), compute_uv=False)
    rms = np.sqrt(np.mean(np.square(update), axis=(1, 2)))
    assert np.all((rms > 0.14) & (rms < 0.24)) and 0.9 < values.max() < 1.3


def test_a_gradient_of_zeros_moves_nothing():
  assert not np.any(orthogonalize(jnp.zeros((2, 3, 4)), jnp.ones(3), 1e-15))


def test_every_kernel_of_the_models_says_its_matrices():
  model = dict(patch_dim=16, width=64, depth=2, heads=4, mlp_ratio=4.0, vocabulary=9)
  model |= dict(state_width=0, pooled_caption=True, zero_init=True)
  model |= dict(dtype="float32", param_dtype="float32", rotary_seconds=(2.0, 128.0))
  codec = dict(name="vae", widths=(8, 16), blocks=(1, 3), strides=((2, 4), (2, 2)), taps=2)
  codec |= dict(latent_channels=4, dtype="float32")
  makes = [lambda k=k: DiT(**model, mlp=k, rngs=nnx.Rngs(0)) for k in ("swiglu", "gelu")]
  counts = []
  for make in (*makes, lambda: make_codec(codec, seed=0)):
    leaves = named_leaves(nnx.state(nnx.eval_shape(make)))
    axes = {name: matrix_axes(name, leaf.ndim) for name, leaf in leaves.items()}
    counts.append(sum(one is not None for one in axes.values()))
    assert all(0 not in one.inputs + one.outputs for one in axes.values() if one)  # layers apart
  assert counts == [4, 4, 4 * 2]  # by stack: two kernels of a convolution's, or four of a block's
  with pytest.raises(ValueError, match="nobody says which of the 4 axes of blocks/new/kernel"):
    matrix_axes("blocks/new/kernel", 4)


def test_its_state_has_the_names_of_earlier_checkpoints():
  """Runs that optax' own Muon began go on."""
  params = {"blocks": {"kernel": jnp.zeros((2, 3, 4))}, "head": {"kernel": jnp.zeros((4, 2))}}
  names = {name.split("inner_states/")[-1] for name in named_leaves(optimizer().init(params))}
  adam = {f"adam/inner_state/0/{part}/head/kernel" for part in ("mu", "nu")}
  mine = {f"muon/inner_state/0/{part}" for part in ("count", "mu/blocks/kernel", "ns_coeffs")}
  assert names == adam | mine | {"adam/inner_state/0/count", "1/2/count"}
  assert MuonState._fields == ("count", "mu", "ns_coeffs")
  halved = optimizer(variance_dtype="bfloat16", momentum_dtype="bfloat16").init(params)
  halves = {n for n, leaf in named_leaves(halved).items() if leaf.dtype == jnp.bfloat16}
  assert {name.split("/")[-3] for name in halves} == {"mu", "nu"} and len(halves) == 3

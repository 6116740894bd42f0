"""Every parameter of every model has exactly one rule, and no rule is for nothing."""

import re

import pytest
from flax import nnx

from sora_jax.models import dit, vae
from sora_jax.parallel.rules import match_rule, named_leaves

DIT = dict(
  patch_dim=8, width=32, depth=2, heads=2, mlp_ratio=4.0, zero_init=True,
  dtype="float32", param_dtype="float32", rotary_seconds=(2.0, 128.0),
)


def dit_names(**changes):
  settings = DIT | dict(mlp="gelu", state_width=0, vocabulary=9, pooled_caption=False) | changes
  return named_leaves(nnx.state(nnx.eval_shape(lambda: dit.DiT(**settings, rngs=nnx.Rngs(0)))))


def vae_names(widths, blocks):
  codec = dict(name="vae", widths=widths, blocks=blocks, strides=((2, 2),) * len(widths), taps=2)
  codec |= dict(latent_channels=4, dtype="float32")
  return named_leaves(nnx.state(nnx.eval_shape(lambda: vae.make_codec(codec, seed=0))))


@pytest.mark.parametrize(
  ("rules", "models"),
  [
    (
      dit.RULES,
      [dit_names(), dit_names(mlp="swiglu", state_width=6, vocabulary=0, pooled_caption=True)],
    ),
    (vae.RULES, [vae_names((8,), (0,)), vae_names((8, 16, 16), (1, 2, 0))]),
  ],
  ids=["dit", "vae"],
)
def test_each_parameter_has_one_rule(rules, models):
  names = {name for model in models for name in model}
  for model in models:
    for name, leaf in model.items():
      assert len(match_rule(name, rules)) <= leaf.ndim, name
  for pattern, _ in rules:
    assert any(re.fullmatch(pattern, name) for name in names), pattern

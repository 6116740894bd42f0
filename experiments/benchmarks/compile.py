"""Seconds to trace and to compile the gradient of a DiT and of a VAE, by depth.

  python -m experiments.benchmarks.compile --json     the last line is JSON

Layers are stacked and scanned, so that both should hardly grow.
"""

import argparse
import json
import statistics
import sys
import time

import jax
import numpy as np
from flax import nnx

from data_pipeline.tokens import empty_rows
from sora_jax.attention.registry import segment_attention
from sora_jax.diffusion.time import make_density, make_weighting
from sora_jax.models.dit import DiT
from sora_jax.models.vae import make_codec
from sora_jax.train.dit_loss import make_dit_loss
from sora_jax.train.vae_loss import make_vae_loss

DEPTHS = (4, 40)


def dit(depth: int, remat: str):
  """(loss, parameters' shapes, batch) of a DiT of this many layers."""
  settings = dict(width=256, heads=4, mlp="swiglu", mlp_ratio=4.0, dtype="float32")
  settings |= dict(patch_dim=64, state_width=384, vocabulary=0, pooled_caption=True)
  settings |= dict(rotary_seconds=(2.0, 128.0))
  make = lambda: DiT(**settings, depth=depth, zero_init=True, rngs=nnx.Rngs(0))  # noqa: E731
  structure, params = nnx.split(nnx.eval_shape(make))
  density = make_density(
    name="logit_normal", mean=0.0, std=1.0, base_tokens=64, shift_exponent=0.3, max_shift=12.0
  )
  loss = make_dit_loss(
    structure, density, make_weighting(name="uniform", gamma=5.0),
    prediction="velocity", t_min=0.05, seed=0, attend=segment_attention("xla"), remat=remat,
  )  # fmt: skip
  batch = empty_rows(
    2, slots=256, caption_slots=64, segments_per_row=8, patch_width=64, state_width=384
  )
  return loss, params, batch


def vae(depth: int, remat: str):
  """The same of a VAE with this many blocks in each of two levels."""
  del remat  # it has none
  codec = dict(name="vae", widths=(32, 64), strides=((1, 4), (4, 2)), taps=2, dtype="float32")
  codec |= dict(blocks=(depth, depth), latent_channels=8)
  structure, params = nnx.split(nnx.eval_shape(lambda: make_codec(codec, seed=0)))
  loss = make_vae_loss(structure, seed=0, kl_weight=1e-3, terms={})
  batch = dict(video=np.zeros((1, 9, 32, 32, 3), np.uint8), draw=np.zeros((1, 2), np.uint32))
  return loss, params, batch


def measure(made) -> dict[str, float]:
  loss, params, batch = made
  begin = time.perf_counter()
  lowered = jax.jit(jax.grad(loss, has_aux=True)).lower(params, {}, batch)
  traced = time.perf_counter()
  lowered.compile()
  return {"trace": traced - begin, "compile": time.perf_counter() - traced}


def main(argv=None) -> None:
  p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  p.add_argument("--json", action="store_true", help="only the JSON line")
  p.add_argument("--turns", type=int, default=3)
  args = p.parse_args(argv)
  result = {}
  for name, make in (("dit", dit), ("vae", vae)):
    turns = [{d: measure(make(d, "block")) for d in DEPTHS} for _ in range(args.turns)]
    for depth in DEPTHS:
      seconds = {
        key: statistics.median(turn[depth][key] for turn in turns) for key in turns[0][depth]
      }
      result[f"{name}/{depth}"] = {key: round(value, 2) for key, value in seconds.items()}
      if not args.json:
        print(f"{name}, {depth} layers: {result[f'{name}/{depth}']}", file=sys.stderr)
  print(json.dumps(result))


if __name__ == "__main__":
  main()

"""Loss and gradients of a model on every mesh of eight devices, and on one; run by its test.

  python tests/support/mesh_gradients.py dit|vae     the last line is JSON
"""

import json
import os
import sys
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from jax.sharding import PartitionSpec  # noqa: E402

from data_pipeline.tokens import Segment, pack_row, patchify, stack_rows  # noqa: E402
from sora_jax.attention.registry import segment_attention  # noqa: E402
from sora_jax.attention.ulysses import over_mesh  # noqa: E402
from sora_jax.diffusion.time import make_density, make_weighting  # noqa: E402
from sora_jax.models import dit, vae  # noqa: E402
from sora_jax.parallel.mesh import make_mesh, mesh_ranks  # noqa: E402
from sora_jax.parallel.place import make_put  # noqa: E402
from sora_jax.parallel.rules import named_leaves, shardings  # noqa: E402
from sora_jax.train.accumulate import WEIGHT, make_gradient  # noqa: E402
from sora_jax.train.dit_loss import make_dit_loss, merge_by_time  # noqa: E402
from sora_jax.train.vae_loss import make_vae_loss, merge_vae_metrics  # noqa: E402

ROWS, SLOTS, HEADS, PATCH, STATES = 8, 64, 8, (1, 2, 2), 6
AXES = ("data", "fsdp", "context", "tensor")
MESHES = {
  "dit": [
    *((8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (1, 1, 1, 8), (2, 2, 2, 1), (2, 1, 2, 2)),
    *((1, 2, 2, 2), (2, 1, 4, 1), (1, 2, 1, 4), (1, 1, 2, 4), (4, 1, 1, 2)),
  ],
  "vae": [
    *((8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1), (2, 1, 4, 1), (1, 4, 2, 1), (1, 2, 4, 1)),
    (1, 1, 8, 1),
  ],
}


KERNELS = {"splash": [(1, 2, 2, 2)], "triton": [(2, 1, 4, 1)]}  # in the interpreter, which is slow
ACCUMULATED = [(1, 1, 1, 1, 4), (1, 1, 1, 1, 8), (2, 2, 2, 1, 2)]  # the last is microbatches


def segment(rng, shape: tuple, words: int, draw: int, **fields) -> Segment:
  return Segment(
    patches=patchify(rng.normal(size=(*shape, 3)).astype(np.float32), PATCH),
    shape=shape,
    patch=PATCH,
    fps=8.0,
    time_factor=4,
    text_ids=rng.integers(1, 50, words),
    text_states=rng.normal(size=(words, STATES)).astype(np.float32),
    draw=draw,
    **fields,
  )


def packed_batch() -> dict:
  """Rows of one to five segments, some straddling what a device holds of them, one row padding."""
  rng, rows = np.random.default_rng(0), []
  sizes = [[(3, 4, 4), (1, 4, 8)], [(1, 2, 2)] * 5, [(2, 6, 4), (4, 2, 2), (1, 4, 4)], [(5, 4, 6)]]
  for i, shapes in enumerate([*sizes, *sizes[::-1]]):
    parts = [segment(rng, shape, 3 + j, 100 * i + j) for j, shape in enumerate(shapes)]
    if i == 2:
      given = np.arange(len(parts[0].patches)) < 6
      parts[0] = segment(rng, shapes[0], 4, 7, given=given, weight=2.5)
    rows.append(parts if i != 4 else [segment(rng, shapes[0], 4, 8, dropped=True)])
  rows[-1] = []
  settings = dict(slots=SLOTS, caption_slots=32, segments_per_row=5, patch_width=12)
  return stack_rows([pack_row(row, **settings, state_width=STATES) for row in rows])


def make_dit(attend_on):
  """(parameters, mesh -> loss, batch, rules, merge): every gate and the head are drawn."""
  settings: dict[str, Any] = dict(width=64, depth=2, heads=HEADS, mlp="swiglu", mlp_ratio=4.0)
  settings |= dict(dtype="float32", param_dtype="float32", patch_dim=12, pooled_caption=True)
  settings |= dict(rotary_seconds=(2.0, 128.0))
  settings |= dict(state_width=STATES, vocabulary=50)
  structure, params = nnx.split(dit.DiT(**settings, zero_init=False, rngs=nnx.Rngs(0)))
  density = make_density(
    name="logit_normal", mean=0.0, std=1.0, base_tokens=16, shift_exponent=0.5, max_shift=0.0
  )
  rest = dict(prediction="clean", t_min=0.05, seed=3, remat="attention")
  weighting = make_weighting(name="uniform", gamma=5.0)
  make = lambda mesh: make_dit_loss(  # noqa: E731
    structure, density, weighting, attend=attend_on(mesh), **rest
  )
  return params, make, packed_batch(), dit.RULES, merge_by_time


def attend_on(mesh, backend="xla"):
  attend = segment_attention(backend, interpret=backend in KERNELS)
  return attend if mesh is None else over_mesh(attend, mesh, heads=HEADS)


def kernel_on(backend: str):
  """A Pallas kernel on the devices of a mesh; on one device, plain XLA."""
  return lambda mesh: attend_on(None) if mesh is None else attend_on(mesh, backend)


def mutant(attend):
  """Attention that runs on each device by itself."""
  tokens = PartitionSpec(("data", "fsdp"), "context", "tensor", None)
  specs = (tokens, tokens, tokens, PartitionSpec(("data", "fsdp"), "context"))
  return lambda mesh: (
    segment_attention("xla")
    if mesh is None
    else jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=tokens, check_vma=False)
  )


def own_segments(q, k, v, segment):
  """Whole rows of some heads, but the segments of the slots that the device holds, repeated."""
  q, k, v = (jax.lax.all_to_all(x, "context", 2, 1, tiled=True) for x in (q, k, v))
  segment = jax.numpy.tile(segment, (1, q.shape[1] // segment.shape[1]))
  out = segment_attention("xla")(q, k, v, segment)
  return jax.lax.all_to_all(out, "context", 1, 2, tiled=True)


# What a context-parallel attention may forget: to communicate at all, or the segments.
MUTANTS = {"forgetful": segment_attention("xla"), "own_segments": own_segments}


def make_vae(_):
  codec = dict(name="vae", widths=(8, 16), blocks=(1, 1), strides=((1, 2), (4, 2)), taps=2)
  model = vae.make_codec(codec | dict(latent_channels=8, dtype="float32"), seed=0)
  structure, params = nnx.split(model)
  keys = iter(jax.random.split(jax.random.key(1), 1000))
  params = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), params)
  rng = np.random.default_rng(0)
  batch = dict(video=rng.integers(0, 256, (ROWS, 5, 32, 16, 3), np.uint8))
  batch["draw"] = rng.integers(0, 99, (ROWS, 2)).astype(np.uint32)
  loss = make_vae_loss(structure, seed=3, kl_weight=1e-2, terms={"l2": 2.0})
  return params, lambda mesh: loss, batch, vae.RULES, merge_vae_metrics


def run(made, sizes, steps: int = 1) -> tuple[dict, dict]:
  """Loss and metrics, and gradients by name, on a mesh of these sizes, in so many microbatches."""
  params, make, batch, rules, merge = made
  mesh = make_mesh(**dict(zip(AXES, sizes, strict=True)), devices=jax.devices()[: np.prod(sizes)])
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, shardings(params, rules, mesh))
    loss = make(mesh if mesh.size > 1 else None)
    gradient = jax.jit(make_gradient(loss, merge, steps=steps, ranks=mesh_ranks(mesh)))
    (value, metrics), found = gradient(placed, {}, make_put(mesh)(batch))
    numbers = {name: np.asarray(leaf) for name, leaf in {**metrics, "loss": value}.items()}
    return numbers, {name: np.asarray(leaf) for name, leaf in named_leaves(found).items()}


def compare(made, meshes) -> dict:
  """By mesh: difference of the loss and metrics, and the largest of a leaf's gradient, relative.

  `meshes` are sizes of the axes, and microbatches if there are several.
  """
  value, wanted = run(made, (1, 1, 1, 1))
  norms = {name: float(np.linalg.norm(leaf)) for name, leaf in wanted.items()}
  result = {"leaves": len(norms), "flat": [n for n, norm in norms.items() if norm <= 1e-6]}
  for sizes in meshes:
    other, found = run(made, sizes[:4], *sizes[4:])
    apart = {
      name: float(np.linalg.norm(found[name] - wanted[name])) / norms[name]
      for name in norms
      if norms[name] > 1e-6
    }
    worst = max(apart, key=apart.__getitem__)
    off = max(np.nanmax(abs(other[name] / value[name] - 1)) for name in value)
    assert all((np.isnan(other[name]) == np.isnan(value[name])).all() for name in value)
    result["x".join(map(str, sizes))] = [float(off), apart[worst], worst]
  return result


def mean_of_means(made):
  """The mutant: every microbatch counts alike, whatever it holds."""
  params, make, batch, rules, merge = made

  def alike(mesh):
    loss = make(mesh)

    def constant(params, frozen, batch):
      value, metrics = loss(params, frozen, batch)
      return value, {**metrics, WEIGHT: jax.numpy.ones(())}

    return constant

  return params, alike, batch, rules, merge


if __name__ == "__main__":
  jax.config.update("jax_default_matmul_precision", "highest")
  what = sys.argv[1]
  make = {"dit": make_dit, "vae": make_vae}[what]
  report = {"apart": compare(make(attend_on), MESHES[what])}
  report["accumulated"] = compare(make(attend_on), ACCUMULATED)
  for name, attend in MUTANTS.items() if what == "dit" else ():
    report[name] = compare(make(mutant(attend)), [(1, 1, 2, 1)])
  for name, meshes in KERNELS.items() if what == "dit" else ():
    report[name] = compare(make(kernel_on(name)), meshes)
  if what == "dit":
    report["mean_of_means"] = compare(mean_of_means(make(attend_on)), [(1, 1, 1, 1, 4)])
  print(json.dumps(report))

"""The whole DiT and its gradients against torch in float64, which runs every clip alone.

tests/goldens/dit.npz holds torch's values, made by make_dit_golden.py there. Gates and head are not
zero, and the rows hold captions as ids and as states, a dropped one, and a frame that is given.
"""

from pathlib import Path

import dit_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.tokens import Segment, pack_row, stack_rows
from sora_jax.attention.registry import segment_attention
from sora_jax.models.dit import DiT
from sora_jax.parallel.rules import named_leaves, path_name

GOLDEN = Path(__file__).parents[2] / "goldens" / "dit.npz"
OUTPUT, GRADIENT = 1e-5, 1e-5  # of the largest output; of a gradient's norm


def make_model(case):
  """A model with the parameters of the case, split."""
  model = DiT(
    patch_dim=cases.PATCH_DIM,
    width=cases.WIDTH,
    depth=cases.DEPTH,
    heads=cases.HEADS,
    mlp_ratio=2,
    vocabulary=cases.VOCABULARY,
    dtype="float32",
    param_dtype="float32",
    zero_init=False,
    rotary_seconds=tuple(np.load(GOLDEN)["seconds"].tolist()),
    rngs=nnx.Rngs(0),
    **cases.CASES[case],
  )
  structure, params = nnx.split(model)
  values = cases.make_parameters(case)
  shapes = {name: leaf.shape for name, leaf in named_leaves(params).items()}
  assert shapes == {name: value.shape for name, value in values.items()}
  put = lambda path, _: jnp.asarray(values[path_name(path)])  # noqa: E731
  return structure, jax.tree_util.tree_map_with_path(put, params)


def make_batch(case):
  """All clips in one row, and the cotangent of every slot."""
  segments, cotangents = [], []
  for number, clip in enumerate(cases.CLIPS):
    inputs = cases.make_inputs(case, number)
    first = np.arange(clip.patches) < clip.given * clip.patches // clip.shape[0]
    segment = Segment(
      patches=inputs["z"],
      shape=clip.shape,
      patch=cases.PATCH,
      fps=clip.fps,
      time_factor=4,
      text_ids=inputs["ids"],
      text_states=inputs["states"],
      given=first if clip.given else None,
    )
    segments.append(segment)
    captions = np.zeros((segment.caption_tokens, cases.PATCH_DIM), np.float32)
    cotangents += [captions, inputs["cotangent"]]
  row = pack_row(segments, slots=48, caption_slots=16, segments_per_row=4)
  cotangent = np.zeros((1, 48, cases.PATCH_DIM), np.float32)
  cotangent[0, : sum(map(len, cotangents))] = np.concatenate(cotangents)
  batch = stack_rows([row])
  del batch["segment_record"]  # int64 stays on the host
  return jax.tree.map(jnp.asarray, batch), jnp.asarray(cotangent)


def run_model(case):
  """(output of every slot, gradients by parameter, gradients of patches and of token states)."""
  (structure, params), (batch, cotangent) = make_model(case), make_batch(case)
  t = jnp.array([[0.0, *(clip.t for clip in cases.CLIPS)]])
  attend = segment_attention("xla")

  def scalar(params, inputs):
    told = {**batch, **inputs}
    model = nnx.merge(structure, params)
    output = model(told["latents"], t, told, attend=attend, remat="none")
    return jnp.sum(output * cotangent), output

  inputs = {key: batch[key] for key in ("latents", "text_states") if key in batch}
  run = jax.jit(jax.grad(scalar, argnums=(0, 1), has_aux=True))
  (gradients, of_inputs), output = run(params, inputs)
  return batch, np.asarray(output)[0], named_leaves(gradients), of_inputs


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN) as file:
    return dict(file)


@pytest.mark.parametrize("case", list(cases.CASES))
def test_outputs_and_gradients_equal_those_of_torch(golden, case):
  batch, output, gradients, of_inputs = run_model(case)
  patches = np.asarray(batch["token_index"][0]) >= 0
  told = {name.removeprefix(f"{case}/"): v for name, v in golden.items() if case in name}
  numbers = range(len(cases.CLIPS))
  wanted = np.concatenate([told[f"output/{i}"] for i in numbers])
  assert abs(output[patches] - wanted).max() <= OUTPUT * abs(wanted).max()
  wanted = np.concatenate([told[f"gradient/z/{i}"] for i in numbers])
  found = np.asarray(of_inputs["latents"][0])[patches]
  assert abs(found - wanted).max() <= GRADIENT * abs(wanted).max()
  if "text_states" in of_inputs:
    held = np.asarray(batch["text_ids"][0]) > 0
    captioned = [i for i in numbers if cases.CLIPS[i].tokens]
    wanted = np.concatenate([told[f"gradient/states/{i}"] for i in captioned])
    found = np.asarray(of_inputs["text_states"][0])[held]
    assert abs(found - wanted).max() <= GRADIENT * abs(wanted).max()
  for name, gradient in gradients.items():
    norm = told[f"norm/{name}"]
    assert norm > 1e-2, f"{name} has no gradient: the test would be vacuous"
    error = cases.project(name, np.asarray(gradient)) - told[f"projection/{name}"]
    assert abs(error).max() <= GRADIENT * norm * 3, name

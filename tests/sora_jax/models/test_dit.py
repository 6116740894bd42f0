"""A packed row gives every segment the output and the gradients that it has alone.

These are properties: what a segment alone has to give is held by test_dit_reference.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.errors import BadInput
from data_pipeline.tokens import Segment, pack_row, patchify, stack_rows
from sora_jax.attention.registry import segment_attention
from sora_jax.diffusion.noise import token_normal
from sora_jax.models.dit import DiT
from sora_jax.nn.embed import CaptionPool
from sora_jax.parallel.rules import named_leaves
from sora_jax.train.dit_loss import dit_errors, noisy_patches

PATCH = (1, 2, 2)
SHAPES = [(3, 4, 4), (1, 4, 8), (2, 6, 4), (4, 2, 2)]
ATTEND = segment_attention("xla")
POOL = CaptionPool.__call__
STATES = 6  # k of the models that are told token states


def leaky(q, k, v, segment):
  """The mutant: padding is masked, but segments see each other."""
  return ATTEND(q, k, v, jnp.minimum(segment, 1))


def leaky_pool(self, tokens, text_index, segment, levels):
  """The mutant: a caption tells all segments of its row."""
  shared = jnp.broadcast_to(jnp.minimum(segment, 1).max(1, keepdims=True), segment.shape)
  pooled = POOL(self, tokens, text_index, shared, levels)
  return jnp.broadcast_to(pooled[:, 1:2], pooled.shape)


def make_segments(state_width=None):
  rng = np.random.default_rng(0)
  captions = [rng.integers(1, 50, n) for n in (5, 3, 7, 2)]
  states = lambda n: rng.normal(size=(n, state_width)).astype(np.float32)  # noqa: E731
  return [
    Segment(
      patches=patchify(rng.normal(size=(*shape, 3)).astype(np.float32), PATCH),
      shape=shape,
      patch=PATCH,
      fps=8.0 + i,
      time_factor=4,
      text_ids=ids,
      text_states=states(len(ids)) if state_width else None,
      dropped=i == 3,
      draw=2**32 * i + 11 * i,
    )
    for i, (shape, ids) in enumerate(zip(SHAPES, captions, strict=True))
  ]


def batch_of(rows, state_width=None):
  """Four rows of 80 slots, the missing ones empty: one shape, so one compilation."""
  rows = rows + [[]] * (4 - len(rows))
  settings = dict(slots=80, caption_slots=24, segments_per_row=4, patch_width=12)
  settings |= dict(state_width=state_width)
  packed = [pack_row(row, **settings) for row in rows]
  return {k: jnp.asarray(v) for k, v in stack_rows(packed).items() if k != "segment_record"}


SETTINGS = dict(
  patch_dim=12,
  width=64,
  depth=2,
  heads=2,
  mlp="swiglu",
  mlp_ratio=4,
  state_width=0,
  vocabulary=50,
  pooled_caption=True,
  rotary_seconds=(2.0, 128.0),
  dtype="float32",
  param_dtype="float32",
  zero_init=False,
)


def make_model(**changes):
  return nnx.split(DiT(**SETTINGS | changes, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def model():
  return make_model()


@pytest.fixture(scope="module")
def model_of_states():
  return make_model(state_width=STATES)


@functools.cache
def segment_errors(structure, attend=ATTEND, remat="none", prediction="velocity"):
  """(params, batch) -> velocity errors [b,n] with fixed per-draw times, and its sum's gradient."""

  def errors(params, batch):
    times = 0.2 + 0.1 * (batch["draw"][..., 1] % 7).astype(jnp.float32)
    error, weight, _ = dit_errors(
      params,
      structure,
      batch,
      times,
      prediction=prediction,
      t_min=0.05,
      seed=0,
      attend=attend,
      remat=remat,
    )
    error = jnp.where(weight > 0, error, 0.0)
    return jnp.sum(error), error

  return jax.jit(jax.value_and_grad(errors, has_aux=True))


def largest_difference(model, attend=ATTEND, state_width=None, traced=segment_errors):
  """Loss and gradient difference between one packed row and the sum of its segments alone."""
  segments, (structure, params) = make_segments(state_width), model
  run = traced(structure, attend) if attend is leaky else traced(structure)
  (packed_loss, _), packed_gradient = run(params, batch_of([segments], state_width))
  (alone_loss, _), alone_gradient = run(params, batch_of([[s] for s in segments], state_width))
  worst = abs(float(packed_loss - alone_loss) / float(alone_loss))
  others = named_leaves(alone_gradient)
  for name, leaf in named_leaves(packed_gradient).items():
    norm = float(jnp.linalg.norm(others[name]))
    assert norm > 1e-6, f"{name} has no gradient: the test would be vacuous"
    worst = max(worst, float(jnp.linalg.norm(leaf - others[name])) / norm)
  return worst


def test_packed_equals_alone(model):
  assert largest_difference(model) <= 1e-5


def test_packed_equals_alone_with_token_states(model_of_states):
  assert largest_difference(model_of_states, state_width=STATES) <= 1e-5


def test_mutant_that_attends_across_segments_fails(model):
  assert largest_difference(model, leaky) > 1e-3


def test_mutant_that_pools_across_segments_fails(model, monkeypatch):
  monkeypatch.setattr(CaptionPool, "__call__", leaky_pool)
  untraced = segment_errors.__wrapped__  # what is cached was traced without the mutant
  assert largest_difference(model, traced=untraced) > 1e-3


def test_outputs_of_each_segment_equal_those_alone(model):
  segments, (structure, params) = make_segments(), model
  errors = lambda rows: segment_errors(structure)(params, batch_of(rows))[0][1]  # noqa: E731
  packed, slot = errors([segments]), 0
  for segment in segments:
    alone = errors([[segment]])[0, : segment.tokens]
    np.testing.assert_allclose(packed[0, slot : slot + segment.tokens], alone, rtol=1e-5, atol=1e-5)
    slot += segment.tokens


@pytest.mark.parametrize(("attend", "leaks"), [(ATTEND, False), (leaky, True)])
def test_no_gradient_crosses_segments(model, attend, leaks):
  structure, params = model
  batch = batch_of([make_segments()])
  first = np.asarray(batch["segment"] == 1)

  def loss(latents):
    errors, weight, _ = dit_errors(
      params,
      structure,
      {**batch, "latents": latents},
      jnp.full((4, 4), 0.5),
      prediction="velocity",
      t_min=0.05,
      seed=0,
      attend=attend,
      remat="none",
    )
    return jnp.sum(jnp.where(first & (weight > 0), errors, 0.0))

  gradient = np.asarray(jax.jit(jax.grad(loss))(batch["latents"]))
  assert np.any(gradient[first] != 0)
  assert np.any(gradient[~first] != 0) == leaks


def test_no_caption_reaches_another_segment(model_of_states):
  structure, params = model_of_states
  batch = batch_of([make_segments(STATES)], STATES)
  model, t = nnx.merge(structure, params), jnp.full((4, 5), 0.5)
  first = (batch["segment"] == 1)[..., None]

  def output_of_first(states):
    told = {**batch, "text_states": states}
    output = model(batch["latents"], t, told, attend=ATTEND, remat="none")
    return jnp.sum(jnp.where(first, output, 0.0))

  gradient = np.asarray(jax.jit(jax.grad(output_of_first))(batch["text_states"]))
  assert np.all(np.any(gradient[0, :5], axis=-1)), "its own five caption tokens"
  assert not np.any(gradient[0, 5:]) and not np.any(gradient[1:])


def test_a_dataset_without_captions_has_null_tokens_alone(model_of_states):
  structure, params = model_of_states
  segments = [Segment(**{**vars(s), "dropped": True}) for s in make_segments(STATES)]
  batch = batch_of([segments], STATES)
  bare = {key: value for key, value in batch.items() if key != "text_states"}
  model, t = nnx.merge(structure, params), jnp.full((4, 5), 0.5)
  run = jax.jit(lambda b: model(b["latents"], t, b, attend=ATTEND, remat="none"))
  np.testing.assert_array_equal(run(batch), run(bare))


@pytest.mark.parametrize("prediction", ["velocity", "clean"])
def test_remat_changes_nothing(model, prediction):
  structure, params = model
  batch = batch_of([make_segments()])
  results = [
    segment_errors(structure, remat=r, prediction=prediction)(params, batch)
    for r in ("none", "block")
  ]
  assert float(results[0][0][0]) == pytest.approx(float(results[1][0][0]), rel=1e-6)
  for a, b in zip(jax.tree.leaves(results[0][1]), jax.tree.leaves(results[1][1]), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_given_tokens_are_clean_and_cost_nothing(model):
  structure, params = model
  segment = make_segments()[0]
  given = np.arange(len(segment.patches)) < 4
  batch = batch_of([[Segment(**{**vars(segment), "given": given})]])
  parts = noisy_patches(batch, jnp.full((4, 4), 0.5), 0)
  slots = batch["draw"], batch["segment"], batch["token_index"]
  np.testing.assert_array_equal(parts[1], token_normal(0, "noise", *slots, 12))
  x, _, z, t = (np.asarray(part)[0] for part in parts)
  first = segment.caption_tokens
  np.testing.assert_array_equal(z[first : first + 4], x[first : first + 4])
  assert not np.any(t[: first + 4]) and np.all(t[first + 4 : segment.tokens] == 0.5)
  assert not np.any(np.all(z == x, -1)[first + 4 : segment.tokens])
  (_, error), gradient = segment_errors(structure, prediction="clean")(params, batch)
  patches = np.asarray(error)[0][segment.caption_tokens : segment.tokens]
  assert np.all(patches[:4] == 0) and np.all(patches[4:] > 0)
  assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


def test_zero_init_predicts_nothing_and_bad_settings_are_named():
  settings = SETTINGS | dict(depth=1, mlp="gelu", zero_init=True)
  model = DiT(**settings, rngs=nnx.Rngs(0))
  batch = batch_of([make_segments()])
  output = nnx.jit(
    lambda m: m(batch["latents"], jnp.ones((4, 5)), batch, attend=ATTEND, remat="none")
  )(model)
  assert not np.any(output)
  for change, text in [
    (dict(dtype="float8"), "dtype='float8' is not one of"),
    (dict(mlp="relu"), "mlp='relu' is not one of"),
    (dict(heads=5), "width=64 is not a multiple of heads=5"),
    (dict(heads=0), "heads=0 must be at least 1"),
    (dict(depth=-1), "depth=-1, .* must be at least 1"),
    (dict(mlp_ratio=float("nan")), "mlp_ratio=nan above 0"),
  ]:
    with pytest.raises(BadInput, match=text):
      DiT(**{**settings, **change}, rngs=nnx.Rngs(0))
  with pytest.raises(BadInput, match="remat='all' is not one of"):
    model(batch["latents"], jnp.ones((4, 5)), batch, attend=ATTEND, remat="all")


def test_bfloat16_compute_stays_close(model):
  structure, params = model
  batch = batch_of([make_segments()])
  half = nnx.merge(*make_model(dtype="bfloat16"))
  run = nnx.jit(
    lambda m: m(batch["latents"], jnp.full((4, 5), 0.5), batch, attend=ATTEND, remat="none")
  )
  full = run(nnx.merge(structure, params))
  valid = np.asarray(batch["token_index"] >= 0)
  assert float(jnp.linalg.norm((run(half) - full)[valid]) / jnp.linalg.norm(full[valid])) < 0.05

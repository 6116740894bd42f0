"""Two segments in a row give the guided velocity that rows of their own give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.errors import BadInput
from data_pipeline.tokens import Segment, pack_row, patchify, stack_rows
from sora_jax.attention.registry import segment_attention
from sora_jax.diffusion.noise import token_normal
from sora_jax.diffusion.samplers import time_grid
from sora_jax.diffusion.time import make_density
from sora_jax.generate.sample import Caption, Sampler, Settings, Shape, slots_of_patches
from sora_jax.models.dit import DiT

PATCH, SHAPE, WIDTH, SEED = (1, 2, 2), Shape(2, 2, 4, 8.0), 6, 5
PATCHES, PATCH_DIM = 4, 12  # 2·1·2 patches of 3 channels
ATTEND = segment_attention("xla")
DENSITY = make_density(
  name="logit_normal", mean=0.5, std=1.0, base_tokens=1, shift_exponent=0.5, max_shift=12.0
)
DRAWS = (7, 2**40 + 3, 0)


def caption(tokens: int, seed: int) -> Caption:
  states = np.random.default_rng(seed).normal(size=(tokens, WIDTH)).astype(np.float32)
  return Caption(np.arange(1, tokens + 1, dtype=np.int32), states)


CAPTIONS = [caption(3, 0), caption(11, 1), caption(6, 2)]
NEGATIVES = [None, caption(2, 3), None]


@pytest.fixture(scope="module")
def dit():
  """Structure and parameters of a model; all parameters drawn, so that the gates are open."""
  settings = dict(patch_dim=PATCH_DIM, width=32, depth=2, heads=2, mlp="gelu", mlp_ratio=2.0)
  settings |= dict(state_width=WIDTH, vocabulary=50, zero_init=False)
  settings |= dict(dtype="float32", param_dtype="float32")
  settings |= dict(pooled_caption=True, rotary_seconds=(2.0, 128.0))
  structure, shapes = nnx.split(nnx.eval_shape(lambda: DiT(**settings, rngs=nnx.Rngs(0))))
  rng = np.random.default_rng(3)
  draw = lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
  return structure, jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def sampler(dit):
  return Sampler(
    *dit,
    patch=PATCH,
    latent_channels=3,
    time_factor=4,
    state_width=WIDTH,
    prediction="velocity",
    t_min=0.05,
    density=DENSITY,
    attend=ATTEND,
  )


def segment_alone(said: Caption | None, draw: int) -> Segment:
  return Segment(
    patches=np.zeros((PATCHES, PATCH_DIM), np.float32),
    shape=SHAPE[:3],
    patch=PATCH,
    fps=SHAPE.fps,
    time_factor=4,
    text_ids=said.ids if said else np.zeros(0, np.int32),
    text_states=said.states if said else np.zeros((0, WIDTH), np.float32),
    draw=draw,
  )


@pytest.fixture(scope="module")
def separately(dit):
  """Euler steps where every caption has a row to itself, written out for one sample at a time."""
  said = CAPTIONS + NEGATIVES
  rows = [
    pack_row([segment_alone(s, d)], slots=40, caption_slots=16, segments_per_row=1)
    for s, d in zip(said, DRAWS * 2, strict=True)
  ]
  batch = {k: jnp.asarray(v) for k, v in stack_rows(rows).items() if k != "segment_record"}
  first = [int(np.argmax(row["token_index"] == 0)) for row in rows]
  place = jnp.asarray([np.arange(f, f + PATCHES) for f in first])

  @jax.jit
  def velocity(z, t):
    slots = jnp.zeros((6, 40, PATCH_DIM)).at[jnp.arange(6)[:, None], place].set(z)
    levels = jnp.stack([jnp.zeros(6), jnp.full(6, t)], 1)
    output = nnx.merge(*dit)(slots, levels, batch, attend=ATTEND, remat="none")
    return jnp.take_along_axis(output, place[..., None], 1)

  def run(steps: int, guidance: float) -> np.ndarray:
    draw = np.array([divmod(d, 2**32) for d in DRAWS], np.uint32)[:, None]
    ones, index = jnp.ones((3, PATCHES), jnp.int32), jnp.tile(jnp.arange(PATCHES), (3, 1))
    z = np.asarray(token_normal(SEED, "sample", jnp.asarray(draw), ones, index, PATCH_DIM))
    times = time_grid(steps)
    for t, following in zip(times[:-1], times[1:], strict=True):
      twice = np.concatenate([z, z])
      both = np.asarray(velocity(twice, t))
      conditional, unconditional = both[:3], both[3:]
      v = unconditional + guidance * (conditional - unconditional)
      z = z + (following - t) * v
    return z

  return run


def patches_of(latents: np.ndarray) -> np.ndarray:
  return np.stack([patchify(latent, PATCH) for latent in latents])


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_two_segments_in_a_row_equal_two_rows(sampler, separately, guidance):
  settings = Settings(4, guidance, "euler", 1.0, SEED)
  found = patches_of(sampler(CAPTIONS, NEGATIVES, DRAWS, SHAPE, settings))
  expected = separately(4, guidance)
  assert np.abs(expected - separately(4, 2.0)).max() > 0.1  # the captions matter
  np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_a_sample_depends_on_its_own_caption_and_draw_alone(sampler):
  settings = Settings(4, 3.0, "euler", 1.0, SEED)
  order = [2, 0, 1]
  latents = sampler(CAPTIONS, NEGATIVES, DRAWS, SHAPE, settings)
  moved = sampler(
    *([each[i] for i in order] for each in (CAPTIONS, NEGATIVES, DRAWS)), SHAPE, settings
  )
  np.testing.assert_allclose(moved, latents[order], atol=1e-5 * np.abs(latents).max())
  drawn = sampler(CAPTIONS, NEGATIVES, (8, *DRAWS[1:]), SHAPE, settings)
  assert np.abs(drawn[0] - latents[0]).max() > 0.1
  np.testing.assert_array_equal(drawn[1:], latents[1:])


class Oracle(nnx.Module):
  """Knows the clean patches: a constant for each patch of a segment, whatever is asked."""

  def __init__(self):
    self.clean = nnx.Param(jnp.arange(PATCHES * PATCH_DIM, dtype=jnp.float32) / 9 - 2)

  def __call__(self, z, t, batch, *, attend, remat):
    return self.clean[...].reshape(PATCHES, PATCH_DIM)[jnp.maximum(batch["token_index"], 0)]


@pytest.fixture(scope="module")
def oracle():
  return Sampler(
    *nnx.split(Oracle()),
    patch=PATCH,
    latent_channels=3,
    time_factor=4,
    state_width=WIDTH,
    prediction="clean",
    t_min=0.05,
    density=DENSITY,
    attend=ATTEND,
  )


@pytest.mark.parametrize("steps", [25, 50, 100])
def test_lands_on_the_clean_patches(oracle, steps):
  """Also where the last steps begin below t_min."""
  settings = Settings(steps, 1.0, "euler", 1.0, SEED)
  found = patches_of(oracle(CAPTIONS, NEGATIVES, DRAWS, SHAPE, settings))
  clean = np.asarray(oracle.params["clean"][...]).reshape(PATCHES, PATCH_DIM)
  np.testing.assert_allclose(found, np.broadcast_to(clean, found.shape), atol=1e-5)


def test_a_new_seed_is_not_a_new_program(sampler):
  settings = Settings(4, 3.0, "euler", 1.0, SEED)
  drawn = [
    sampler(CAPTIONS, NEGATIVES, DRAWS, SHAPE, settings._replace(seed=seed))
    for seed in (SEED, 0, 2**32 - 1)
  ]
  programs = sampler._run._cache_size()
  sampler(CAPTIONS, NEGATIVES, DRAWS, SHAPE, settings._replace(seed=1))
  assert sampler._run._cache_size() == programs
  assert all(np.abs(drawn[0] - other).max() > 0.1 for other in drawn[1:])


@pytest.mark.parametrize("guidance, segments", [(1.0, 1), (3.0, 2)])
def test_packs_what_is_asked_of_the_network(oracle, monkeypatch, guidance, segments):
  seen = {}

  def run(params, batch, *rest, **settings):
    seen.update(batch)
    return np.zeros((len(DRAWS), PATCHES, PATCH_DIM))

  monkeypatch.setattr(oracle, "_run", run)
  oracle(CAPTIONS, NEGATIVES, DRAWS, SHAPE, Settings(1, guidance, "euler", 1.0, SEED))
  assert seen["draw"].shape[1] == seen["segment"].max() == segments
  assert (seen["token_index"] >= 0).sum(1).tolist() == [segments * PATCHES] * len(DRAWS)
  settings = Settings(1, guidance, "euler", 1.0, SEED)
  needed = [
    oracle.caption_slots(*pair, settings) for pair in zip(CAPTIONS, NEGATIVES, strict=True)
  ]
  assert seen["text_ids"].shape[1] == max(needed)  # what groups are made by is what is packed


@pytest.mark.parametrize(("fps", "alpha"), [(8.0, 0.0), (24.0, 1.0), (6.0, 2.5)])
def test_times_and_places_are_those_of_the_sample(oracle, monkeypatch, fps, alpha):
  """The shift that was asked for, or that of training at 4 patches: sqrt(4 / 1), over the mean."""
  seen = {}

  def run(params, batch, times, *rest, **settings):
    seen.update(batch, times=times)
    return np.zeros((len(DRAWS), PATCHES, PATCH_DIM))

  monkeypatch.setattr(oracle, "_run", run)
  settings, shape = Settings(3, 1.0, "euler", alpha, SEED), SHAPE._replace(fps=fps)
  oracle(CAPTIONS, NEGATIVES, DRAWS, shape, settings)
  shift = alpha or 2 * np.exp(0.5)
  assert oracle.choose_shift(settings, shape) == pytest.approx(shift)
  even = np.array([1, 2 / 3, 1 / 3, 0])
  np.testing.assert_allclose(seen["times"], shift * even / (1 + (shift - 1) * even), rtol=1e-5)
  seconds = seen["position"][0][seen["token_index"][0] >= 0, 0]
  np.testing.assert_allclose(seconds, [0, 0, 2.5 / fps, 2.5 / fps], rtol=1e-6)


def test_finds_the_patches_of_each_segment():
  batch = {
    "segment": jnp.asarray([[1, 1, 1, 2, 2, 2, 0], [1, 2, 2, 2, 2, 0, 0]]),
    "token_index": jnp.asarray([[-1, 0, 1, -1, 0, 1, -1], [0, -1, 0, 1, 2, -1, -1]]),
  }
  first, second = (np.asarray(slots_of_patches(batch, i)) for i in (1, 2))
  assert first.tolist() == [[1, 2, -1, -1, -1, -1, -1], [0, -1, -1, -1, -1, -1, -1]]
  assert second.tolist() == [[4, 5, -1, -1, -1, -1, -1], [2, 3, 4, -1, -1, -1, -1]]


@pytest.mark.parametrize(
  "change, text",
  [
    (dict(guidance=float("inf")), "guidance=inf must be finite"),
    (dict(alpha=-1.0), "shift=-1.0 must be positive"),
    (dict(alpha=float("nan")), "shift=nan must be positive"),
    (dict(seed=-1), "seed=-1 is not between 0 and"),
    (dict(seed=2**32), "seed=4294967296 is not between 0 and"),
    (dict(steps=0), "steps=0 must be at least 1"),
    (dict(solver="midpoint"), "solver='midpoint' is not one of"),
  ],
)
def test_refuses_settings_that_make_no_video(sampler, change, text):
  settings = Settings(2, 3.0, "euler", 1.0, SEED)._replace(**change)
  with pytest.raises(BadInput, match=text):
    sampler(CAPTIONS, NEGATIVES, DRAWS, SHAPE, settings)

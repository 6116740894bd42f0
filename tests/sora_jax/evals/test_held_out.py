"""The held-out loss is the training loss at fixed times, the same each time it is asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.errors import BadInput
from data_pipeline.tokens import Segment, pack_row, patchify, stack_rows
from sora_jax.attention.registry import segment_attention
from sora_jax.build.evaluation import check_held_out, first_batches
from sora_jax.build.run import build_schedule
from sora_jax.diffusion.noise import token_normal
from sora_jax.diffusion.time import make_weighting
from sora_jax.evals.held_out import TIMES, make_held_out_loss, make_reconstruction_score
from sora_jax.models.dit import DiT
from sora_jax.train.dit_loss import make_dit_loss, patch_weights

PATCH, SHAPES = (1, 2, 2), [(2, 2, 4), (1, 4, 4), (3, 2, 2)]
ATTEND = segment_attention("xla")
UNIFORM = make_weighting(name="uniform", gamma=5.0)
SHARED = dict(prediction="velocity", t_min=0.05, seed=4, attend=ATTEND, remat="none")


def make_batch(seed: int, weights) -> dict:
  rng = np.random.default_rng(seed)
  segments = [
    Segment(
      patches=patchify(rng.normal(size=(*shape, 3)).astype(np.float32), PATCH),
      shape=shape,
      patch=PATCH,
      fps=8.0,
      time_factor=4,
      text_ids=rng.integers(1, 20, 3 + i),
      weight=weight,
      draw=10 * seed + i,
    )
    for i, (shape, weight) in enumerate(zip(SHAPES, weights, strict=True))
  ]
  settings = dict(slots=40, caption_slots=16, segments_per_row=3)
  rows = [pack_row(segments[:2], **settings), pack_row(segments[2:], **settings)]
  return {k: jnp.asarray(v) for k, v in stack_rows(rows).items() if k != "segment_record"}


@pytest.fixture(scope="module")
def dit():
  """Structure and parameters of a model; all parameters drawn, so that the gates are open."""
  settings = dict(patch_dim=12, width=32, depth=1, heads=2, mlp="gelu", mlp_ratio=2.0)
  settings |= dict(state_width=0, vocabulary=20, zero_init=False)
  settings |= dict(dtype="float32", param_dtype="float32")
  settings |= dict(pooled_caption=True, rotary_seconds=(2.0, 128.0))
  structure, shapes = nnx.split(nnx.eval_shape(lambda: DiT(**settings, rngs=nnx.Rngs(0))))
  rng = np.random.default_rng(3)
  draw = lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
  return structure, jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def batches():
  return [make_batch(0, (1.0, 1.0, 1.0)), make_batch(1, (1.0, 0.5, 2.0))]


@pytest.fixture(scope="module")
def score(dit, batches):
  return make_held_out_loss(dit[0], batches, **SHARED)


@pytest.fixture(scope="module")
def by_hand(dit):
  """Mean of weighted errors at a time over the noisy patches of batches, in numpy."""

  @jax.jit
  def predict(z, levels, batch):
    return nnx.merge(*dit)(z, levels, batch, attend=ATTEND, remat="none")

  @jax.jit
  def noise(batch):
    return token_normal(4, "noise", batch["draw"], batch["segment"], batch["token_index"], 12)

  def measure(batch, t: float) -> tuple[float, float]:
    host = {key: np.asarray(value) for key, value in batch.items()}
    e, patch = np.asarray(noise(batch)), host["token_index"] >= 0
    at = np.where(patch, t, 0.0)[..., None]
    z = ((1 - at) * host["latents"] + at * e).astype(np.float32)
    levels = jnp.full((2, 4), t, jnp.float32).at[:, 0].set(0.0)
    v = np.asarray(predict(z, levels, batch), np.float64)
    error = ((v - (e.astype(np.float64) - host["latents"])) ** 2).mean(-1)
    weight = np.take_along_axis(host["segment_weight"], np.maximum(host["segment"] - 1, 0), 1)
    weight = np.where(patch, weight, 0.0)
    return float((weight * error).sum()), float(weight.sum())

  return measure


def test_is_the_error_by_hand(batches, score, dit, by_hand):
  found = score(dit[1])
  for i in (0, 7):
    errors, weights = zip(*(by_hand(batch, TIMES[i]) for batch in batches), strict=True)
    expected = sum(errors) / sum(weights)
    assert found["held_out_loss_by_t"][i] == pytest.approx(expected, rel=1e-5)
  assert found["held_out_loss"] == pytest.approx(np.mean(found["held_out_loss_by_t"]))


def test_is_the_training_loss_at_fixed_t(dit, batches, score, by_hand):
  at = lambda u, tokens: jnp.full_like(u, TIMES[3])  # noqa: E731
  loss = jax.jit(make_dit_loss(dit[0], at, UNIFORM, **SHARED))
  values = [float(loss(dit[1], {}, batch)[0]) for batch in batches]
  weights = [by_hand(batch, 0.0)[1] for batch in batches]
  expected = np.average(values, weights=weights)
  assert score(dit[1])["held_out_loss_by_t"][3] == pytest.approx(expected, rel=1e-6)


def test_is_the_same_each_time_and_sees_the_parameters(dit, score):
  assert score(dit[1]) == score(dit[1])
  other = jax.tree.map(lambda leaf: 1.1 * leaf, dit[1])
  assert score(other)["held_out_loss"] != score(dit[1])["held_out_loss"]


class ByBin:
  """Weight 1 in the first tenth of t, 10 in the last: 5.5 in the mean over uniform t."""

  def __call__(self, t):
    return jnp.floor(10 * t) + 1

  def expected(self, density, tokens):
    return jnp.full_like(tokens, 5.5)


def test_a_weighting_over_t_weighs_the_training_loss(dit, batches):
  density = lambda u, tokens: u  # noqa: E731
  _, plain = jax.jit(make_dit_loss(dit[0], density, UNIFORM, **SHARED))(dit[1], {}, batches[1])
  loss, _ = jax.jit(make_dit_loss(dit[0], density, ByBin(), **SHARED))(dit[1], {}, batches[1])
  means, weights = np.asarray(plain["loss_by_t"]), np.asarray(plain["weight_by_t"])
  full = weights > 0
  assert full.sum() > 1  # else any weighting gives the same
  weighted = np.sum((means * weights * np.arange(1, 11))[full])
  expected = weighted / (5.5 * weights.sum())  # not by the weights that these few t happen to have
  assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_only_noisy_patches_weigh_and_as_their_segment_does():
  batch = {
    "segment": jnp.array([[1, 1, 1, 2, 2, 0]]),
    "segment_weight": jnp.array([[0.5, 3.0]]),
    "level_index": jnp.array([[0, 0, 1, 2, 2, 0]]),  # a caption token, a given patch, noisy ones
    "token_index": jnp.array([[-1, 0, 1, 0, 1, -1]]),
  }
  weights = patch_weights(batch, batch["segment_weight"])
  np.testing.assert_array_equal(weights, [[0, 0, 0.5, 3.0, 3.0, 0]])


class Louder(nnx.Module):
  """A codec whose only loss is that of the clip and the rounding to uint8."""

  def __init__(self, gain: float):
    self.gain = nnx.Param(jnp.float32(gain))

  def encode(self, video):
    return video * self.gain[...], None

  def decode(self, latent):
    return latent


def test_reconstruction_is_that_of_uint8_frames_pooled_over_batches():
  videos = [np.full((1, 1, 2, 2, 3), value, np.uint8) for value in (250, 100)]
  structure, params = nnx.split(Louder(1.3))
  score = make_reconstruction_score(structure, [{"video": jnp.asarray(v)} for v in videos])
  # 127.5 + 1.3 · 122.5 = 286.75 -> 255; 127.5 - 1.3 · 27.5 = 91.75 -> 92
  expected = 10 * np.log10(255**2 / ((5**2 + 8**2) / 2))
  assert score(params)["held_out_psnr_db"] == pytest.approx(expected, rel=1e-6)
  assert score(nnx.state(Louder(1.0)))["held_out_psnr_db"] == np.inf


class Loader:
  """Three batches an epoch, without end."""

  def __init__(self):
    self.step, self.closed = 0, False

  @property
  def cursor(self) -> dict:
    return {"epoch": self.step // 3}

  def __next__(self) -> int:
    self.step += 1
    return self.step

  def close(self):
    self.closed = True


@pytest.mark.parametrize(("count", "expected"), [(2, [1, 2]), (9, [1, 2, 3])])
def test_evaluates_on_one_epoch_at_most_and_ends_the_readers(count, expected):
  loader = Loader()
  assert first_batches(loader, count, lambda batch: batch) == expected
  assert loader.closed


class Clips:
  path = "runs/clips"

  def __init__(self, held_out: int):
    self.held_out = held_out

  @property
  def splits(self):
    return {"held_out": self.held_out} if self.held_out else {}


@pytest.mark.parametrize(
  ("held_out", "batches", "text"),
  [(0, 1, "runs/clips has none. Set every.evaluate_steps=0"), (3, 0, "evaluate.batches=0")],
)
def test_refuses_to_evaluate_on_nothing(held_out, batches, text):
  config = ConfigDict(dict(every=dict(evaluate_steps=5), evaluate=dict(batches=batches)))
  with pytest.raises(BadInput, match=text):
    check_held_out(config, [Clips(held_out)])  # pyright: ignore[reportArgumentType]


def test_refuses_to_keep_no_checkpoint():
  every = dict(log_steps=1, checkpoint_steps=1, evaluate_steps=0)
  keep = dict(checkpoints=0, period_steps=0)
  with pytest.raises(BadInput, match="keep.checkpoints=0 would keep none"):
    build_schedule(ConfigDict(dict(total_steps=1, every=every, keep=keep)))

"""Clips of any number of shapes are encoded by few programs; tiles and chunks equal the whole."""

import math
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import BadInput
from sora_jax.generate import programs as programs_module
from sora_jax.generate.batches import (
  Batch,
  Placed,
  encode_batches,
  plan_batches,
  read_ahead,
)
from sora_jax.generate.programs import (
  MAX_PROGRAMS,
  Programs,
  choose_programs,
  count_programs,
  cut_side,
  encoder_radius,
)
from sora_jax.models.frozen_vae import FrozenVAE
from sora_jax.models.vae import make_codec

WHOLE = Programs(time_factor=4, space_factor=8, rows=64, devices=1, radius=1)


def make_vae(strides, blocks, seed=0):
  """A small one that looks around in time and space, every parameter drawn."""
  config = dict(name="vae", widths=[4] * len(strides), blocks=blocks, strides=strides, taps=3)
  config |= dict(latent_channels=2, dtype="float32")
  rng = np.random.default_rng(seed)
  shapes = nnx.state(nnx.eval_shape(lambda: make_codec(config, seed=0)))
  params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32) * 0.5, shapes)
  return FrozenVAE(config, params, {"mean": np.zeros(2), "std": np.ones(2)})


@pytest.fixture(scope="module")
def vae():
  return make_vae([[2, 4]], [2])


def of(vae, **changes) -> Programs:
  """Its programs, without limits."""
  found = Programs(vae.time_factor, vae.space_factor, 4, 1, encoder_radius(vae.config))
  return replace(found, **changes)


def reach(vae, side: int) -> int:
  """Latents beside the ones it lies in that a pixel changes."""
  video = np.zeros((1, 1, vae.space_factor * side, vae.space_factor * side, 3), np.uint8)
  middle = side // 2
  at = vae.space_factor * middle
  changed = video.copy()
  changed[:, :, at : at + vae.space_factor, at : at + vae.space_factor] = 255
  differs = (np.asarray(vae.encode(video)) != np.asarray(vae.encode(changed))).any((0, 1, 4))
  rows = np.flatnonzero(differs.any(1))
  return int(max(middle - rows[0], rows[-1] - middle))


@pytest.mark.parametrize(
  "strides, blocks, radius",
  [
    ([[4, 8]], [1], 1),
    ([[2, 2], [2, 2]], [2, 1], 2),  # 2 x 2 + 1 x 4 pixels of cells of 4
    ([[2, 2], [1, 2], [1, 2]], [1, 1, 2], 3),  # 2 + 4 + 16 of cells of 8
    ([[2, 4], [1, 2]], [0, 0], 0),
  ],
)
def test_radius_is_how_far_the_encoder_looks(strides, blocks, radius):
  vae = make_vae(strides, blocks)
  assert encoder_radius(vae.config) == radius == reach(vae, 2 * radius + 5)


def test_radius_of_other_codecs():
  assert encoder_radius(dict(name="space_to_depth", time_factor=4, space_factor=8)) == 0
  assert encoder_radius(dict(name="some_attention_vae")) is None


def encode(vae, programs, videos):
  """Latents of whole videos, uint8 [F,H,W,3]."""
  shapes = [video.shape[:3] for video in videos]

  def load(number, sizes):
    video, first = videos[number], 0
    for size in sizes:
      rows = np.minimum(np.arange(first, first + size), len(video) - 1)
      yield video[rows]
      first += size

  batches = plan_batches(shapes, programs)
  found = dict(encode_batches(vae, batches, shapes, load, programs))
  assert sorted(found) == list(range(len(videos)))
  return [found[i] for i in range(len(videos))], batches


def videos_of(shapes):
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]


SHAPES = [(1, 40, 36), (5, 40, 36), (23, 40, 36), (7, 24, 36), (1, 8, 8)]


@pytest.fixture(scope="module")
def wholes(vae):
  return [np.asarray(vae.encode(video[None]))[0] for video in videos_of(SHAPES)]


@pytest.mark.parametrize(
  "changes",
  [
    {},
    dict(steps=(4, 2, 1)),
    dict(steps=(4, 2, 1), tiles=(2, 5, 7)),
    dict(steps=(2, 1), tiles=(2, 5), rows=3),
  ],
)
def test_chunks_and_tiles_equal_the_whole(vae, wholes, changes):
  found, batches = encode(vae, of(vae, **changes), videos_of(SHAPES))
  for latent, whole in zip(found, wholes, strict=True):
    assert latent.shape == whole.shape
    np.testing.assert_allclose(latent, whole, atol=1e-5)
  if "tiles" in changes:
    sides = {row.stop - row.start for batch in batches for _, row, _ in batch.pieces}
    pieces = Counter(piece.clip for batch in batches for piece in batch.pieces)
    assert sides <= set(changes["tiles"]) and max(pieces.values()) > 3


def test_a_smaller_overlap_would_show(vae, wholes):
  """The mutant: tiles cut as if the encoder looked one latent less far."""
  programs = of(vae, steps=(1,), tiles=(2, 5), radius=1)
  found, _ = encode(vae, programs, videos_of(SHAPES[:1]))
  assert np.abs(found[0] - wholes[0]).max() > 1e-3


@settings(deadline=None, max_examples=200)
@given(
  side=st.integers(1, 300),
  radius=st.integers(0, 6),
  tiles=st.lists(st.integers(1, 300), max_size=6),
)
def test_tiles_cover_a_side_once(side, radius, tiles):
  tiles = tuple(sorted({*tiles, side if side <= 2 * radius else 2 * radius + 1}))
  spans = cut_side(side, tiles, radius)
  kept = [cell for span in spans for cell in range(span.first, span.last)]
  assert kept == list(range(side))
  assert len({span.stop - span.start for span in spans}) == 1
  for span in spans:
    assert 0 <= span.start and span.stop <= side
    assert span.start == 0 or span.first - span.start >= radius
    assert span.stop == side or span.stop - span.last >= radius


@settings(deadline=None, max_examples=200)
@given(
  latents=st.integers(0, 400),
  sides=st.tuples(st.integers(1, 100), st.integers(1, 100)),
  ratio=st.sampled_from([2, 4, 16, 0]),
  devices=st.integers(1, 3),
)
def test_a_ladder_has_the_frames_and_few_lengths(latents, sides, ratio, devices):
  steps = tuple(ratio**i for i in reversed(range(10))) if ratio else (1,)
  programs = replace(WHOLE, steps=steps, devices=devices)
  shape = 1 + 4 * latents, 8 * sides[0], 8 * sides[1]
  first, *others = chunks = programs.chunks_of(shape)
  assert sum(chunks) == shape[0] and first % 4 == 1 and not any(n % 4 for n in others)
  assert others == sorted(others, reverse=True)
  assert {first // 4, *(n // 4 for n in others)} <= {0, *steps}
  rows = programs.rows_of(shape)
  assert rows % devices == 0
  pixels = rows // devices * max(chunks) * shape[1] * shape[2]
  assert pixels <= programs_module.PIXELS_AT_ONCE or (rows == devices and max(chunks) <= 5)


def mixture(kind):
  """Shapes of renditions that a job may meet."""
  rng = np.random.default_rng(0)
  if kind == "lengths":  # one size, any length
    return np.array([(1 + 4 * k, 32, 48) for k in range(300)])
  aspect = np.exp(rng.uniform(-1.2, 1.2, 3000))
  height = np.maximum(1, np.round(np.sqrt(512**2 / aspect) / 16)) * 16
  width = np.maximum(1, np.round(np.sqrt(512**2 * aspect) / 16)) * 16
  frames = np.ones(3000) if kind == "images" else 1 + 4 * rng.integers(0, 60, 3000)
  if kind == "any":
    height, width = 16 * rng.integers(1, 90, (2, 3000))
  return np.stack([frames, height, width], axis=1).astype(int)


@pytest.mark.parametrize(
  "kind, tiled, waste", [("lengths", False, 1), ("images", True, 1.05), ("any", True, 1.4)]
)
def test_any_mixture_needs_few_programs(kind, tiled, waste):
  shapes = mixture(kind)
  clips = [(f, h, w) for f, h, w in shapes.tolist()]
  assert count_programs(clips, WHOLE) > MAX_PROGRAMS
  found = choose_programs(np.repeat(shapes, 100, axis=0), WHOLE, patch_side=2)
  assert found.steps and bool(found.tiles) == tiled
  assert count_programs(clips, found) <= MAX_PROGRAMS
  shown = sum(math.prod(clip) for clip in clips)
  encoded = sum(count * math.prod(piece) for piece, count in map(found.piece_of, clips))
  assert shown <= encoded <= waste * shown


def test_what_is_planned_is_what_is_compiled(monkeypatch):
  """Shapes that reach the VAE, for a mixture that needs tiles, on a lower limit."""
  monkeypatch.setattr(programs_module, "MAX_PROGRAMS", 24)
  shapes = mixture("any")[:150]
  programs = choose_programs(shapes, WHOLE, patch_side=2)
  clips = [tuple(shape) for shape in shapes.tolist()]
  batches = plan_batches(clips, programs)
  seen = set()
  for batch in batches:
    row, column = batch.pieces[0].row, batch.pieces[0].column
    size = 8 * (row.stop - row.start), 8 * (column.stop - column.start)
    seen |= {(batch.rows, n, i == 0, *size) for i, n in enumerate(batch.chunks)}
    assert len(batch.pieces) <= batch.rows
  assert len(seen) <= 24
  pieces = Counter(piece for batch in batches for piece in batch.pieces)
  assert set(pieces.values()) == {1}
  assert {piece.clip for piece in pieces} == set(range(len(clips)))


def test_few_clips_are_not_worth_many_programs():
  shapes = np.array([(1, 16, 16 * (i + 1)) for i in range(65)])
  found = choose_programs(shapes, WHOLE, patch_side=2)
  assert found.tiles and count_programs(map(tuple, shapes.tolist()), found) < 5


def test_few_shapes_are_encoded_whole():
  shapes = np.array([(9, 32, 32), (5, 32, 48), (1, 48, 32)] * 50)
  assert choose_programs(shapes, WHOLE, patch_side=2) is WHOLE


def test_a_codec_that_looks_anywhere_cannot_take_every_size():
  text = r"3000 clips have \d+ sizes after cropping to multiples of 16 pixels, .* the 64 programs "
  text += r".*cannot be cut into tiles\). Raise --patch-side, or give renditions a size"
  with pytest.raises(BadInput, match=text):
    choose_programs(mixture("any"), replace(WHOLE, radius=None), patch_side=2)


def test_clips_of_near_lengths_share_a_batch():
  programs = replace(WHOLE, steps=(2, 1), rows=2)
  lengths = [9, 1, 13, 1, 9]
  batches = plan_batches([(n, 64, 64) for n in lengths], programs)
  assert [[lengths[p.clip] for p in batch.pieces] for batch in batches] == [[1, 1], [9, 9], [13]]
  assert [batch.chunks for batch in batches] == [[1], [9], [9, 4]]


def test_reading_goes_ahead_and_ends_with_its_user():
  made, ended = [], []

  def items():
    try:
      for i in range(1000):
        made.append(i)
        yield i
    finally:
      ended.append(True)

  stream = read_ahead(items(), 3)
  assert [next(stream) for _ in range(10)] == list(range(10))
  stream.close()
  assert ended and len(made) <= 10 + 3 + 2
  assert list(read_ahead((i for i in range(5)), 2)) == [0, 1, 2, 3, 4]


def test_what_goes_wrong_in_reading_is_raised(vae):
  def load(number, sizes):
    raise BadInput(f"clip {number} is damaged")
    yield

  batch = Batch(plan_batches([(1, 8, 8)], of(vae))[0].pieces, [1], 4)
  with pytest.raises(BadInput, match="clip 0 is damaged"):
    list(encode_batches(Placed(vae, jax.devices()), [batch], [(1, 8, 8)], load, of(vae)))

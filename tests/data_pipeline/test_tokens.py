"""Patches, positions and row layout: closed forms, round trips and invariants."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import tokens
from data_pipeline.errors import BadInput

SIDES = st.integers(1, 3)
LIGHT = settings(max_examples=40, deadline=None)


def draw_segment(rng, shape, patch=(1, 1, 1), *, c=2, caption=3, k=None, **more):
  latent = rng.standard_normal((*shape, c)).astype(np.float32)
  return tokens.Segment(
    patches=tokens.patchify(latent, patch),
    shape=shape,
    patch=patch,
    fps=8.0,
    time_factor=4,
    text_ids=np.arange(1, caption + 1),
    text_states=None if k is None else rng.standard_normal((caption, k)),
    **more,
  )


@LIGHT
@given(st.tuples(SIDES, SIDES, SIDES), st.tuples(SIDES, SIDES, SIDES), SIDES)
def test_patchify_and_back(sizes, patch, c):
  shape = tuple(a * b for a, b in zip(sizes, patch, strict=True))
  latent = np.arange(np.prod(shape) * c, dtype=np.float32).reshape(*shape, c)
  patches = tokens.patchify(latent, patch)
  assert patches.shape == (tokens.token_count(shape, patch), c * np.prod(patch))
  np.testing.assert_array_equal(tokens.unpatchify(patches, shape, patch), latent)


@pytest.mark.parametrize("patch", [(1, 1, 1), (2, 3, 2)])
def test_jax_arrays_take_the_same_path(patch):
  shape = (4, 6, 2)
  latent = np.random.default_rng(0).standard_normal((*shape, 3)).astype(np.float32)
  patches = tokens.patchify(latent, patch)
  on_device = tokens.patchify(jnp.asarray(latent), patch)
  assert isinstance(on_device, jnp.ndarray)
  np.testing.assert_array_equal(on_device, patches)
  np.testing.assert_array_equal(tokens.unpatchify(on_device, shape, patch), latent)


def test_a_patch_is_a_block_of_the_latent_in_channel_major_order():
  latent = np.random.default_rng(0).standard_normal((4, 6, 8, 3))
  patches = tokens.patchify(latent, (2, 3, 2))
  assert tokens.grid(latent.shape, (2, 3, 2)) == (2, 2, 4)
  index = np.ravel_multi_index((1, 0, 3), (2, 2, 4))  # row-major f,h,w
  block = latent[2:4, 0:3, 6:8]
  np.testing.assert_array_equal(patches[index], np.moveaxis(block, -1, 0).ravel())


def test_a_side_that_the_patch_does_not_divide_is_named():
  text = (
    r"patchify: h=9 is not a multiple of its patch side 2 \(latent \(4, 9, 8, 16\), "
    r"patch \(1, 2, 2\)\)\. Crop the clip, or set patch=\(1,1,1\)\."
  )
  with pytest.raises(BadInput, match=text):
    tokens.patchify(np.zeros((4, 9, 8, 16)), (1, 2, 2))


@LIGHT
@given(
  st.tuples(SIDES, SIDES, SIDES),
  st.tuples(SIDES, SIDES, SIDES),
  st.sampled_from([8.0, 30.0]),
  st.sampled_from([1, 2, 3, 4, 8]),
)
def test_positions_are_the_mean_over_the_pixels_that_a_patch_covers(sizes, patch, fps, factor):
  shape = tuple(a * b for a, b in zip(sizes, patch, strict=True))
  positions = tokens.patch_positions(shape, patch, fps, factor)
  assert positions.dtype == np.float32 and positions.shape == (np.prod(sizes), 4)
  ends = [factor * i for i in range(shape[0])]  # the last frame that each latent covers
  frames = [np.arange(0 if i == 0 else ends[i - 1] + 1, ends[i] + 1) for i in range(shape[0])]
  for token, (i, j, k) in enumerate(np.ndindex(*sizes)):
    seconds = np.mean([np.mean(frames[i * patch[0] + a]) for a in range(patch[0])]) / fps
    row = np.mean(np.arange(shape[1])[j * patch[1] : (j + 1) * patch[1]]) - (shape[1] - 1) / 2
    column = np.mean(np.arange(shape[2])[k * patch[2] : (k + 1) * patch[2]]) - (shape[2] - 1) / 2
    np.testing.assert_allclose(positions[token], [seconds, row, column, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
  ("factor", "last"), [(1, 8 / 8), (2, 7.5 / 8), (4, 6.5 / 8), (8, 4.5 / 8)]
)
def test_the_last_latent_of_nine_frames_sits_at_the_centre_of_its_own(factor, last):
  latents = 1 + 8 // factor
  seconds = tokens.latent_seconds(latents, 8.0, factor)
  assert len(seconds) == latents and seconds[0] == 0.0
  assert seconds[-1] == pytest.approx(last, abs=1e-12)


def test_a_picture_is_centred_whatever_its_size():
  for shape in [(1, 4, 6), (3, 8, 2)]:
    middle = tokens.patch_positions(shape, (1, 2, 2), 8.0, 4)[:, 1:3].mean(axis=0)
    np.testing.assert_allclose(middle, 0, atol=1e-6)


def test_a_row_by_hand():
  rng = np.random.default_rng(0)
  mask = np.array([True, False])
  first = draw_segment(rng, (2, 1, 1), caption=2, k=5, given=mask, record=7, draw=2**32 + 3)
  second = draw_segment(rng, (1, 1, 3), caption=4, k=5, dropped=True, weight=0.5, record=9)
  row = tokens.pack_row([first, second], slots=10, caption_slots=6, segments_per_row=3)
  expected = {
    "segment": [1, 1, 1, 1, 2, 2, 2, 2, 0, 0],
    "text_ids": [1, 2, -1, 0, 0, 0],
    "text_index": [0, 1, -1, -1, 2, -1, -1, -1, -1, -1],
    "token_index": [-1, -1, 0, 1, -1, 0, 1, 2, -1, -1],
    "level_index": [0, 0, 0, 1, 0, 2, 2, 2, 0, 0],
    "segment_tokens": [1, 3, 0],
    "segment_fps": [8, 8, 0],
    "segment_weight": [1, 0.5, 0],
    "segment_dropped": [False, True, False],
    "segment_record": [7, 9, -1],
    "segment_shape": [[2, 1, 1], [1, 1, 3], [0, 0, 0]],
    "draw": [[1, 3], [0, 0], [0, 0]],
  }
  for key, value in expected.items():
    np.testing.assert_array_equal(row[key], value, err_msg=key)
  np.testing.assert_allclose(row["position"][:, 3], [1, 2, 0, 0, 1, 0, 0, 0, 0, 0])
  np.testing.assert_allclose(row["position"][:4, 0], [0, 0, 0, 2.5 / 8])
  np.testing.assert_allclose(row["position"][5:8, 2], [-1, 0, 1])
  np.testing.assert_array_equal(row["latents"][2:4], first.patches)
  np.testing.assert_array_equal(row["latents"][5:8], second.patches)
  assert not row["latents"][[0, 1, 4, 8, 9]].any()
  np.testing.assert_allclose(row["text_states"][:2], first.text_states, rtol=1e-6)
  assert not row["text_states"][2:].any()


def test_dtypes_and_shapes_are_the_contract():
  segment = draw_segment(np.random.default_rng(0), (1, 2, 2), k=5)
  sizes = dict(slots=9, caption_slots=6, segments_per_row=3)
  row = tokens.pack_row([segment], **sizes)
  table = {
    "latents": (np.float32, (2, 9, 2)),
    "text_ids": (np.int32, (2, 6)),
    "text_states": (np.float32, (2, 6, 5)),
    "text_index": (np.int32, (2, 9)),
    "position": (np.float32, (2, 9, 4)),
    "segment": (np.int32, (2, 9)),
    "token_index": (np.int32, (2, 9)),
    "level_index": (np.int32, (2, 9)),
    "segment_tokens": (np.int32, (2, 3)),
    "segment_fps": (np.float32, (2, 3)),
    "segment_weight": (np.float32, (2, 3)),
    "segment_dropped": (np.bool_, (2, 3)),
    "segment_dataset": (np.int32, (2, 3)),
    "segment_record": (np.int64, (2, 3)),
    "segment_shape": (np.int32, (2, 3, 3)),
    "draw": (np.uint32, (2, 3, 2)),
  }
  empty = tokens.pack_row([], **sizes, patch_width=2, state_width=5)
  batch = tokens.stack_rows([row, empty])
  assert {key: (value.dtype.type, value.shape) for key, value in batch.items()} == table
  assert not batch["segment"][1].any()
  assert "text_states" not in tokens.pack_row([], **sizes, patch_width=2)


@LIGHT
@given(st.lists(st.tuples(SIDES, SIDES, SIDES, st.integers(0, 4), st.booleans()), max_size=4))
def test_rows_give_their_latents_back(kinds):
  rng = np.random.default_rng(len(kinds))
  segments = [
    draw_segment(rng, (f, 2 * h, w), (1, 2, 1), caption=m, dropped=drop)
    for f, h, w, m, drop in kinds
  ]
  row = tokens.pack_row(segments, slots=128, caption_slots=16, segments_per_row=4, patch_width=4)
  latents = tokens.unpack_row(row["latents"], row, (1, 2, 1))
  assert len(latents) == len(segments)
  for latent, segment in zip(latents, segments, strict=True):
    assert latent.shape == (*segment.shape, 2)
    np.testing.assert_array_equal(tokens.patchify(latent, (1, 2, 1)), segment.patches)


def test_an_empty_caption_counts_as_dropped():
  segment = draw_segment(np.random.default_rng(0), (1, 1, 1), caption=0)
  row = tokens.pack_row([segment], slots=2, caption_slots=1, segments_per_row=1)
  assert row["text_ids"].tolist() == [-1] and row["segment_dropped"].tolist() == [True]


@pytest.mark.parametrize(
  "name, room", [("slots", (7, 6, 2)), ("caption_slots", (8, 5, 2)), ("segments", (8, 6, 1))]
)
def test_a_row_that_is_too_small_says_which_capacity(name, room):
  segments = [draw_segment(np.random.default_rng(0), (1, 1, 1)) for _ in range(2)]
  sizes = dict(zip(("slots", "caption_slots", "segments_per_row"), room, strict=True))
  with pytest.raises(BadInput, match=rf"pack_row: {name}=\d is less than the \d that 2 segments"):
    tokens.pack_row(segments, **sizes)


def test_wrong_use_is_refused():
  rng = np.random.default_rng(0)
  sizes = dict(slots=20, caption_slots=8, segments_per_row=2)
  mixed = [draw_segment(rng, (1, 1, 1), k=5), draw_segment(rng, (1, 1, 1))]
  with pytest.raises(ValueError, match="some have none"):
    tokens.pack_row(mixed, **sizes)
  with pytest.raises(ValueError, match="no patch width"):
    tokens.pack_row([], **sizes)

"""Clips are cropped, grouped by shape and encoded; lengths and sizes asked for become latents."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import BadInput
from sora_jax.generate import programs
from sora_jax.generate.encode import (
  centre_crop,
  decode_latents,
  encode_clips,
  fit_clip,
  latent_shape,
)
from sora_jax.generate.programs import plan_batch
from sora_jax.models.frozen_vae import FrozenVAE
from sora_jax.models.vae import make_codec

FACTORS = SimpleNamespace(time_factor=4, space_factor=8)


class Corners:
  """Stands in for a VAE: each latent is the first pixel of what it covers."""

  time_factor, space_factor = 4, 8

  def __init__(self):
    self.batches = []

  def encode_stream(self, chunks):
    first = 0
    for video in chunks:
      self.batches.append(video.shape)
      yield video[:, first::4, ::8, ::8].astype(np.float32)
      first = 3  # a later chunk has the last frame of each latent


@settings(deadline=None, max_examples=60)
@given(
  frames=st.integers(1, 70),
  height=st.integers(1, 90),
  width=st.integers(1, 90),
  patch_side=st.integers(1, 3),
)
def test_crops_less_than_a_patch(frames, height, width, patch_side):
  side = 8 * patch_side
  if min(height, width) < side:
    with pytest.raises(BadInput, match=rf"smaller than one patch \({side}x{side} pixels\)"):
      fit_clip(frames, height, width, FACTORS, patch_side)
    return
  f, h, w = fit_clip(frames, height, width, FACTORS, patch_side)
  assert f % 4 == 1 and 0 <= frames - f < 4
  assert h % side == w % side == 0 and 0 <= height - h < side and 0 <= width - w < side
  top, left, bottom, right = centre_crop(height, width, h, w)
  assert top + h + bottom == height and left + w + right == width
  assert 0 <= bottom - top <= 1 and 0 <= right - left <= 1


def test_encodes_in_groups_of_one_shape():
  rng = np.random.default_rng(0)
  shapes = [(9, 19, 24), (1, 16, 16), (9, 16, 24), (9, 16, 24), (2, 16, 16)]
  videos = [rng.integers(0, 255, (*shape, 3), np.uint8) for shape in shapes]
  vae = Corners()
  found = {item.key: item for item in encode_clips(vae, enumerate(videos), rows=2, patch_side=1)}
  assert vae.batches == [(2, 9, 16, 24, 3), (2, 1, 16, 16, 3), (2, 9, 16, 24, 3)]
  assert list(found) == [0, 2, 1, 4, 3]  # a group when it is full, the rest at the end
  assert found[0].crop == (1, 0, 2, 0) and found[0].shape == (9, 16, 24)
  assert found[4].crop == (0, 0, 0, 0) and found[4].shape == (1, 16, 16)
  for i, (top, left) in enumerate([(1, 0), (0, 0), (0, 0), (0, 0), (0, 0)]):
    f, h, w = found[i].shape
    inside = videos[i][:f:4, top : top + h : 8, left : left + w : 8]
    np.testing.assert_array_equal(found[i].latent, inside)


@settings(deadline=None, max_examples=200)
@given(
  latents=st.integers(0, 300),
  height=st.integers(1, 60),
  width=st.integers(1, 60),
  rows=st.integers(1, 100),
)
def test_batches_are_as_large_as_memory_allows(latents, height, width, rows):
  frames, pixels = 1 + 4 * latents, 64 * height * width
  planned, chunk = plan_batch((frames, 8 * height, 8 * width), 4, rows)
  at_once = min(frames, 1 + chunk)
  assert chunk >= 4 and chunk % 4 == 0 and 1 <= planned <= rows
  fits = planned * at_once * pixels <= programs.PIXELS_AT_ONCE
  assert fits or (planned == 1 and at_once <= 5)
  more = planned + 1 if at_once == frames else planned
  frames_more = at_once if at_once == frames else at_once + 4
  assert planned == rows or more * frames_more * pixels > programs.PIXELS_AT_ONCE


def test_the_demos_clips_are_encoded_64_at_a_time():
  assert plan_batch((9, 32, 32), 4, 64)[0] == 64


@pytest.fixture(scope="module")
def vae():
  """A small one that looks at earlier frames, every parameter drawn."""
  config = dict(
    name="vae", widths=[4], blocks=[1], strides=[[4, 8]], taps=3, latent_channels=2, dtype="float32"
  )
  rng = np.random.default_rng(0)
  shapes = nnx.state(nnx.eval_shape(lambda: make_codec(config, seed=0)))
  params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32) * 0.3, shapes)
  return FrozenVAE(config, params, {"mean": np.zeros(2), "std": np.ones(2)})


@pytest.mark.parametrize(
  "frames, chunks",
  [(1, [1]), (5, [5]), (9, [9]), (13, [9, 4]), (17, [9, 8]), (21, [9, 8, 4]), (27, [9, 8, 8])],
)
def test_chunks_equal_the_whole(vae, monkeypatch, frames, chunks):
  video = np.random.default_rng(frames).integers(0, 256, (frames, 16, 24, 3), np.uint8)
  (whole,) = encode_clips(vae, [("a", video)], rows=1, patch_side=1)
  assert whole.latent.shape == (1 + (frames - 1) // 4, 2, 3, 2)
  monkeypatch.setattr(programs, "PIXELS_AT_ONCE", 9 * 16 * 24)
  lengths, step = [], FrozenVAE.encode_stream

  def watched(self, chunks):
    for chunk in chunks:
      lengths.append(chunk.shape[1])
      yield chunk

  monkeypatch.setattr(FrozenVAE, "encode_stream", lambda self, c: step(self, watched(self, c)))
  (found,) = encode_clips(vae, [("a", video)], rows=4, patch_side=1)
  assert lengths == chunks and sum(chunks) == found.shape[0]
  np.testing.assert_allclose(found.latent, whole.latent, atol=1e-5)


def test_memory_grows_neither_with_length_nor_with_shapes(monkeypatch):
  """Clips of many shapes and lengths: what is encoded at once and what waits stays bounded."""
  monkeypatch.setattr(programs, "PIXELS_AT_ONCE", 2**13)
  rng, vae, held = np.random.default_rng(0), Corners(), {}
  shapes = rng.permutation([(f, 16, w) for f in (1, 5, 65, 257) for w in (16, 24, 40)] * 9)

  def clips():
    for i, shape in enumerate(shapes):
      held[i] = int(np.prod(shape))
      yield i, np.zeros((*shape, 3), np.uint8)

  for done in encode_clips(vae, clips(), rows=64, patch_side=1):
    del held[done.key]
    assert sum(held.values()) <= 2**13 * 12 + 257 * 16 * 40  # 12 shapes, and the clip in hand
  assert not held
  assert max(np.prod(shape[:4]) for shape in vae.batches) <= 2**13


@pytest.mark.parametrize(
  "seconds, fps, patch, latents",
  [
    (0.0, 8.0, (1, 2, 2), 1),  # an image
    (1.125, 8.0, (1, 2, 2), 3),  # 9 frames
    (1.0, 8.0, (1, 2, 2), 3),  # 8 frames, nearest 9
    (0.1, 8.0, (1, 2, 2), 1),
    (2.0, 16.0, (1, 2, 2), 9),  # 32 frames, nearest 33
    (1.125, 8.0, (2, 2, 2), 4),  # whole patches
    (0.0, 8.0, (2, 2, 2), 2),
  ],
)
def test_length_asked_for(seconds, fps, patch, latents):
  assert latent_shape(seconds, 48, 32, fps, FACTORS, patch) == (latents, 4, 6)


@pytest.mark.parametrize(
  "change, text",
  [
    (dict(seconds=-1.0), "seconds=-1.0, fps=8.0 must be positive"),
    (dict(seconds=float("inf")), "seconds=inf"),
    (dict(fps=0.0), "fps=0.0 must be positive"),
    (dict(width=50), "size=50x32 has width=50, not a multiple of 8"),
    (dict(height=0), "height=0"),
    (dict(fps=5000.0), "fps=5000.0 is not between 0.01 and 1000"),
    (
      dict(height=40),
      "size=48x40: latent h=5 is not a multiple of its patch side 2. Choose another --size",
    ),
  ],
)
def test_refuses_what_cannot_be_made(change, text):
  asked = dict(seconds=1.0, width=48, height=32, fps=8.0) | change
  with pytest.raises(BadInput, match=text):
    latent_shape(**asked, vae=FACTORS, patch=(1, 2, 2))


def test_decodes_in_chunks():
  """The decoder sees every latent once, in order, never more than a chunk of them."""
  seen = []

  def decode_stream(chunks):
    for chunk in chunks:
      seen.append(chunk.shape[1])
      yield np.repeat(chunk, 2, axis=1)

  latents = np.random.default_rng(0).normal(size=(2, 7, 2, 2, 3))
  video = decode_latents(SimpleNamespace(decode_stream=decode_stream), latents, chunk_frames=3)
  assert seen == [3, 3, 1]
  np.testing.assert_array_equal(video, np.repeat(latents, 2, axis=1))

"""The codecs: chunks equal the whole, the future leaves the past alone, bad shapes are named."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage
from scipy.special import expit

from data_pipeline.errors import BadInput
from sora_jax.models.vae import (
  decode_step,
  decode_stream,
  encode_step,
  encode_stream,
  make_codec,
  pixels_to_float,
  pixels_to_uint8,
)
from sora_jax.nn.conv import CausalConv3D, Past, depth_to_space, space_to_depth
from sora_jax.parallel.rules import named_leaves

SMALL = dict(
  name="vae", widths=[8, 12], blocks=[1, 1], strides=[[2, 2], [2, 2]], taps=3, latent_channels=3,
  dtype="float32",
)  # fmt: skip
PIXELS = dict(name="space_to_depth", time_factor=4, space_factor=4)
CONFIGS = {"vae": SMALL, "space_to_depth": PIXELS}


def abstract(config):
  """The codec without numbers: enough for shapes and messages, at no cost."""
  return nnx.eval_shape(lambda: make_codec(config, seed=0))


def randomised(config, seed=0):
  """(structure, params), every parameter drawn at random: zeros and ones would hide mistakes."""
  structure, params = nnx.split(abstract(config))
  rng = np.random.default_rng(seed)
  draw = lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.3, jnp.float32)  # noqa: E731
  return structure, jax.tree.map(draw, params)


def make_video(frames, height=8, width=12, seed=1):
  shape = (2, frames, height, width, 3)
  return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


@cache
def whole(name):
  """A codec and 33 frames at once; shorter videos must come out as its beginnings."""
  structure, params = randomised(CONFIGS[name])
  video = make_video(33)
  (mean, logvar), _ = encode_step(structure, params, video, None)
  return structure, params, video, mean, logvar, decode_step(structure, params, mean, None)[0]


def cut(x, lengths):
  """Pieces of the given lengths along time."""
  assert sum(lengths) == x.shape[1]
  return jnp.split(x, np.cumsum(lengths)[:-1], axis=1)


@pytest.mark.parametrize("frames", [1, 5, 9, 13, 17, 33])
def test_beginnings_of_every_length_equal_those_of_a_longer_video(frames):
  structure, params, video, mean, logvar, decoded = whole("vae")
  f = 1 + (frames - 1) // 4
  (m, v), _ = encode_step(structure, params, video[:, :frames], None)
  y, _ = decode_step(structure, params, mean[:, :f], None)
  assert m.shape == (2, f, 2, 3, 3) and y.shape == (2, frames, 8, 12, 3)
  np.testing.assert_allclose(m, mean[:, :f], atol=1e-5)
  np.testing.assert_allclose(v, logvar[:, :f], atol=1e-5)
  np.testing.assert_allclose(y, decoded[:, :frames], atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
  "lengths",
  [(1,), (1, 4), (5, 4), (1, 8), (1, 4, 4, 4), (9, 8), (17, 8, 8), (5, 4, 8), (1, *[4] * 8)],
)
def test_chunks_equal_the_whole(name, lengths):
  structure, params, video, mean, logvar, decoded = whole(name)
  frames = sum(lengths)
  latent_lengths = [1 + (lengths[0] - 1) // 4, *(n // 4 for n in lengths[1:])]
  f = sum(latent_lengths)
  posteriors = list(encode_stream(structure, params, cut(video[:, :frames], lengths)))
  means, logvars = (jnp.concatenate(x, axis=1) for x in zip(*posteriors, strict=True))
  videos = list(decode_stream(structure, params, cut(mean[:, :f], latent_lengths)))
  assert [x.shape[1] for x in videos] == list(lengths)
  np.testing.assert_allclose(means, mean[:, :f], atol=1e-5)
  np.testing.assert_allclose(logvars, logvar[:, :f], atol=1e-5)
  np.testing.assert_allclose(jnp.concatenate(videos, axis=1), decoded[:, :frames], atol=1e-5)


def test_a_forgotten_cache_is_noticed():
  structure, params, video, mean, _, decoded = whole("vae")
  _, cache = encode_step(structure, params, video[:, :5], None)
  forgot = jax.tree.map(jnp.zeros_like, cache)
  (m, _), _ = encode_step(structure, params, video[:, 5:9], forgot)
  assert np.abs(m - mean[:, 2:3]).max() > 1e-2
  _, cache = decode_step(structure, params, mean[:, :2], None)
  y, _ = decode_step(structure, params, mean[:, 2:3], jax.tree.map(jnp.zeros_like, cache))
  assert np.abs(y - decoded[:, 5:9]).max() > 1e-2


@pytest.mark.parametrize("latent_frame", [1, 3])
def test_the_future_leaves_the_past_exactly_alone(latent_frame):
  structure, params, video, mean, _, decoded = whole("vae")
  frame = 1 + 4 * (latent_frame - 1)  # the first frame that this latent covers
  changed = video.at[:, frame:].set(make_video(33, seed=2)[:, frame:])
  (m, _), _ = encode_step(structure, params, changed, None)
  np.testing.assert_array_equal(m[:, :latent_frame], mean[:, :latent_frame])
  assert (m[:, latent_frame] != mean[:, latent_frame]).all()
  y, _ = decode_step(structure, params, mean.at[:, latent_frame:].add(1.0), None)
  np.testing.assert_array_equal(y[:, :frame], decoded[:, :frame])
  assert ((y != decoded)[:, frame : frame + 4].any((0, 2, 3, 4))).all()


@pytest.mark.parametrize("strides, factor", [([[1, 4]], 1), ([[1, 2], [2, 2]], 2), ([[4, 4]], 4)])
def test_time_factor_is_the_product_of_the_strides(strides, factor):
  levels = len(strides)
  config = dict(SMALL, strides=strides, widths=[8] * levels, blocks=[1] * levels)
  codec = abstract(config)
  assert (codec.time_factor, codec.space_factor) == (factor, 4)
  structure, params = nnx.split(codec)
  video = make_video(1 + 2 * factor)
  (mean, _), _ = jax.eval_shape(partial(encode_step, structure), params, video, None)
  decoded, _ = jax.eval_shape(partial(decode_step, structure), params, mean, None)
  assert mean.shape == (2, 3, 2, 3, 3) and decoded.shape == video.shape


def test_bfloat16_computes_near_float32_with_float32_parameters_and_outputs():
  structure, params, video, mean, _, _ = whole("vae")
  low = nnx.graphdef(abstract(dict(SMALL, dtype="bfloat16")))
  (m, _), _ = encode_step(low, params, video, None)
  y, _ = decode_step(low, params, mean, None)
  assert m.dtype == y.dtype == jnp.float32
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  assert 0 < np.abs(m - mean).mean() < 0.05 * float(jnp.std(mean))


def test_causal_convolution_is_a_correlation_with_zeros_before_and_around():
  conv = CausalConv3D(2, 1, taps=3, side=3, dtype=jnp.float32, rngs=nnx.Rngs(0))
  x = np.asarray(jax.random.normal(jax.random.key(0), (1, 5, 4, 6, 2)))
  kernel = np.asarray(conv.kernel[...]).reshape(3, 3, 3, 2)  # rows, columns, time, channel
  kernel = np.moveaxis(kernel, 2, 0)
  expected = sum(
    ndimage.correlate(x[0, ..., c], kernel[..., c], mode="constant", origin=(1, 0, 0))
    for c in range(2)
  )
  y = jax.jit(lambda x: conv(x, Past()))(x)
  np.testing.assert_allclose(y[0, ..., 0], expected, atol=1e-5)


def convolve(x, kernel, bias):
  """Causal convolution of [F,h,w,c] with [rows,columns,taps·c,d]: zeros before and around."""
  taps = kernel.shape[2] // x.shape[-1]
  x = np.pad(x, [(taps - 1, 0), (1, 1), (1, 1), (0, 0)])
  windows = sliding_window_view(x, (taps, 3, 3), axis=(0, 1, 2))  # [F,h,w,c,taps,3,3]
  kernel = kernel.reshape(3, 3, taps, x.shape[-1], -1)
  return np.einsum("fhwctij,ijtcd->fhwd", windows, kernel) + bias


def add_residual(p, name, x):
  """x + linear(silu(convolution(x over its root mean square)))."""
  norm, conv, out = (f"{name}/blocks/{part}" for part in ("norm", "conv", "out"))
  y = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6) * p[f"{norm}/scale"][0]
  y = convolve(y, p[f"{conv}/kernel"][0], p[f"{conv}/bias"][0])
  return x + (y * expit(y)) @ p[f"{out}/kernel"][0] + p[f"{out}/bias"][0]


def test_encoder_and_decoder_equal_a_plain_one():
  """In numpy's float64, from pixels to posterior and back; frame 0 alone fills its group."""
  structure, params, video, mean, logvar, decoded = whole("vae")
  p = {name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(params).items()}
  x = np.asarray(video[0, :9], np.float64)
  for i in range(2):
    x = np.concatenate([x[:1], x])  # frame 0 twice
    f, h, w = (side // 2 for side in x.shape[:3])
    x = x.reshape(f, 2, h, 2, w, 2, -1)
    x = np.transpose(x, (0, 2, 4, 1, 3, 5, 6)).reshape(f, h, w, -1)  # frame, row, column, channel
    x = x @ p[f"encoder/down/{i}/linear/kernel"] + p[f"encoder/down/{i}/linear/bias"]
    x = add_residual(p, f"encoder/levels/{i}", x)
  x = x @ p["encoder/head/kernel"] + p["encoder/head/bias"]
  np.testing.assert_allclose(mean[0, :3], x[..., :3], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(logvar[0, :3], x[..., 3:] - 6, rtol=1e-4, atol=1e-5)
  x = convolve(x[..., :3], p["decoder/stem/kernel"], p["decoder/stem/bias"])
  for i in range(2):
    x = add_residual(p, f"decoder/levels/{i}", x)
    x = x @ p[f"decoder/up/{i}/linear/kernel"] + p[f"decoder/up/{i}/linear/bias"]
    f, h, w, c = x.shape
    x = np.transpose(x.reshape(f, h, w, 2, 2, 2, c // 8), (0, 3, 1, 4, 2, 5, 6))
    x = x.reshape(2 * f, 2 * h, 2 * w, c // 8)[1:]
  np.testing.assert_allclose(decoded[0, :9], x, rtol=1e-4, atol=1e-4)


def test_a_new_model_has_little_posterior_noise():
  codec = make_codec(SMALL, seed=0)
  _, logvar = codec.encode(jnp.zeros((1, 1, 4, 4, 3)))
  np.testing.assert_allclose(logvar, -6.0)  # a standard deviation of 0.05


def test_space_to_depth_is_lossless_and_repeats_the_first_frame():
  codec = make_codec(PIXELS, seed=0)
  video = make_video(9)
  mean, logvar = codec.encode(video)
  assert mean.shape == (2, 3, 2, 3, 192) and (np.exp(logvar) < 1e-12).all()
  np.testing.assert_array_equal(codec.decode(mean), video)
  first = mean[:, 0].reshape(2, 2, 3, 4, 48)
  np.testing.assert_array_equal(first, jnp.repeat(first[:, :, :, :1], 4, axis=3))
  # latent 1 covers frames 1..4: frame-major channels, then the cell's pixels row by row
  cell = mean[0, 1, 1, 2].reshape(4, 4, 4, 3)
  np.testing.assert_array_equal(cell, video[0, 1:5, 4:8, 8:12])


def test_depth_to_space_inverts_space_to_depth():
  x = make_video(3)
  np.testing.assert_array_equal(depth_to_space(space_to_depth(x, 4), 4), x)


def test_every_pixel_value_survives_the_float_range():
  pixels = jnp.arange(256, dtype=jnp.uint8)
  floats = pixels_to_float(pixels)
  assert floats.min() == -1 and floats.max() == 1
  np.testing.assert_array_equal(pixels_to_uint8(floats), pixels)
  np.testing.assert_array_equal(pixels_to_uint8(jnp.array([-1.5, 1.5])), [0, 255])


@pytest.mark.parametrize("name", CONFIGS)
def test_bad_shapes_are_named(name):
  codec = abstract(CONFIGS[name])
  with pytest.raises(BadInput, match=r"vae: frames=8 is not 1\+4k\. Cut the video"):
    codec.encode(make_video(8))
  with pytest.raises(BadInput, match=r"vae: frames=5 is not 4k \(a chunk after the first\)"):
    codec.encode_chunk(make_video(5), ())
  with pytest.raises(BadInput, match="vae: width=10 is not a multiple of 4, the codec's space"):
    codec.encode(make_video(5, width=10))
  with pytest.raises(BadInput, match="vae: height=6 is not a multiple of 4"):
    jax.eval_shape(codec.encode, make_video(5, height=6))
  channels = codec.latent_channels
  message = rf"vae: latent \(1, 2, 2, 2, 5\) is not \[b,f,h,w,{channels}\]"
  with pytest.raises(BadInput, match=message):
    codec.decode(jnp.zeros((1, 2, 2, 2, 5)))


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(name="gan"), r"vae: name='gan' is not one of \['space_to_depth', 'vae'\]"),
    (dict(dtype="int8"), "vae: dtype='int8' is not one of"),
    (dict(blocks=[1]), "vae: 2 widths, 1 blocks and 2 strides do not describe the same levels"),
    (dict(depth=3), "vae: settings .* do not fit name='vae' .*depth"),
  ],
)
def test_bad_settings_are_named(change, message):
  with pytest.raises(BadInput, match=message):
    abstract(dict(SMALL, **change))

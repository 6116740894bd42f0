"""Video codecs: pixels to latents and back, whole or chunk by chunk, behind one interface.

A codec has `time_factor`, `space_factor`, `latent_channels` and the methods

    encode(video [b,F,H,W,3]) -> (mean, logvar) [b,f,h,w,c]
    decode(latent [b,f,h,w,c]) -> video [b,F,H,W,3]
    encode_chunk(chunk, cache) -> ((mean, logvar), cache)     cache None begins a video
    decode_chunk(chunk, cache) -> (video, cache)

with F = 1 + time_factor·k for f = 1 + k, H = space_factor·h and W = space_factor·w. Video is float
in [-1, 1]; decoded video may leave it a little. The first frame has a latent of its own: an image
is a video of one frame. Chunks put together equal the whole for every way of cutting.
"""

import math
from collections.abc import Iterable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from data_pipeline.errors import BadInput
from sora_jax.nn.conv import (
  CausalConv3D,
  Downsample,
  Past,
  ResidualStack,
  Upsample,
  depth_to_space,
  group_frames,
  space_to_depth,
  ungroup_frames,
)
from sora_jax.typed import Array, Float, typed

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Where parameters lie: kernels in shards of what they read (those of `down`, whose inputs may be
# few, of what they write), vectors whole. Nothing lies along `tensor`: see docs/parallelism.md.
RULES = (
  (r".*/levels/\d+/blocks/conv/kernel", PartitionSpec(None, None, None, "fsdp")),
  (r".*/levels/\d+/blocks/out/kernel", PartitionSpec(None, "fsdp")),
  (r"decoder/stem/kernel", PartitionSpec(None, None, "fsdp")),
  (r"encoder/down/\d+/linear/kernel", PartitionSpec(None, "fsdp")),
  (r"decoder/up/\d+/linear/kernel|encoder/head/kernel", PartitionSpec("fsdp")),
  (r".*/(bias|scale)", PartitionSpec()),
)
LOGVAR_RANGE = (-30.0, 20.0)
INITIAL_LOGVAR = -6.0  # a new model starts with little posterior noise; the KL term adds more


def pixels_to_float(video):
  """uint8 to float32 in [-1, 1]."""
  return jnp.asarray(video, jnp.float32) / 127.5 - 1


def pixels_to_uint8(video):
  """Float in [-1, 1] (what lies outside is clipped) to uint8; inverse of `pixels_to_float`."""
  return jnp.round(jnp.clip((video + 1) * 127.5, 0, 255)).astype(jnp.uint8)


class Encoder(nnx.Module):
  """Levels of (strided convolution, residual blocks), then mean and log-variance."""

  def __init__(self, *, widths, blocks, strides, taps, latent_channels, dtype, rngs: nnx.Rngs):
    into = (3, *widths[:-1])
    self.down = nnx.List([
      Downsample(i, o, stride=s, dtype=dtype, rngs=rngs)
      for i, o, s in zip(into, widths, strides, strict=True)
    ])
    self.levels = make_levels(widths, blocks, taps=taps, dtype=dtype, rngs=rngs)
    self.head = nnx.Linear(widths[-1], 2 * latent_channels, dtype=jnp.float32, rngs=rngs)

  def __call__(self, x, past: Past):
    for down, level in zip(self.down, self.levels, strict=True):
      x = down(x, past)
      x = x if level is None else level(x, past)
    mean, logvar = jnp.split(self.head(x), 2, -1)
    return mean, jnp.clip(logvar + INITIAL_LOGVAR, *LOGVAR_RANGE)


class Decoder(nnx.Module):
  """Mirrors the encoder: levels of (residual blocks, transposed strided convolution)."""

  def __init__(self, *, widths, blocks, strides, taps, latent_channels, dtype, rngs: nnx.Rngs):
    widths, blocks, strides = widths[::-1], blocks[::-1], strides[::-1]
    self.stem = CausalConv3D(latent_channels, widths[0], taps=taps, side=3, dtype=dtype, rngs=rngs)
    self.levels = make_levels(widths, blocks, taps=taps, dtype=dtype, rngs=rngs)
    self.up = nnx.List([
      Upsample(i, o, stride=s, dtype=dtype, rngs=rngs)
      for i, o, s in zip(widths, (*widths[1:], 3), strides, strict=True)
    ])

  def __call__(self, z, past: Past):
    x = self.stem(z, past)
    for level, up in zip(self.levels, self.up, strict=True):
      x = x if level is None else level(x, past)
      x = up(x, past)
    return x.astype(jnp.float32)


def make_levels(widths, blocks, **settings) -> nnx.List:
  """The residual blocks of each level; None of a level without any."""
  return nnx.List([
    ResidualStack(count, width, **settings) if count else None
    for width, count in zip(widths, blocks, strict=True)
  ])


class VAE(nnx.Module):
  """Causal 3D variational autoencoder (Kingma & Welling 2014, arXiv:1312.6114).

  Norms stand inside the residual branches only, which are zero in a new model: it starts as a
  linear autoencoder and soon finds principal components (with norms at the ends and drawn branches,
  a small one was 6 dB behind after 350 steps).

  Args:
    widths: channels of each level, finest first.
    blocks: residual blocks of each level, in the encoder and again in the decoder.
    strides: (time, space) by which each level is coarser than the one before, the first one than
      pixels; their products are `time_factor` and `space_factor`.
    taps: frames that a convolution sees, itself included; 1 keeps latent frames independent.
    latent_channels: c.
    dtype: of matrix products, "float32" or "bfloat16"; parameters, norms and outputs are float32.
  Raises:
    BadInput: levels of different number, or an unknown dtype.
  """

  def __init__(
    self, *, widths, blocks, strides, taps: int, latent_channels: int, dtype: str, rngs: nnx.Rngs
  ):
    if not 0 < len(widths) == len(blocks) == len(strides):
      raise BadInput(
        f"vae: {len(widths)} widths, {len(blocks)} blocks and {len(strides)} strides do not"
        " describe the same levels. Give each level one of each."
      )
    if dtype not in DTYPES:
      raise BadInput(f"vae: dtype={dtype!r} is not one of {sorted(DTYPES)}.")
    sides = (side for stride in strides for side in stride)
    if min(*widths, *sides, taps, latent_channels) < 1 or min(blocks) < 0:
      raise BadInput(
        f"vae: widths={widths}, blocks={blocks}, strides={strides}, taps={taps}, "
        f"latent_channels={latent_channels} must be at least 1 (blocks 0). Set them so."
      )
    settings = dict(
      widths=tuple(widths), blocks=tuple(blocks), strides=tuple(tuple(s) for s in strides),
      taps=taps, latent_channels=latent_channels, dtype=DTYPES[dtype], rngs=rngs,
    )  # fmt: skip
    self.time_factor = math.prod(s[0] for s in strides)
    self.space_factor = math.prod(s[1] for s in strides)
    self.latent_channels = latent_channels
    self.encoder, self.decoder = Encoder(**settings), Decoder(**settings)

  @typed
  def encode(
    self, video: Float[Array, "b F H W 3"]
  ) -> tuple[Float[Array, "b f h w c"], Float[Array, "b f h w c"]]:
    """Posterior mean and log-variance of a whole video in [-1, 1]."""
    return self.encode_chunk(video, None)[0]

  @typed
  def decode(self, latent: Float[Array, "b f h w c"]) -> Float[Array, "b F H W 3"]:
    """Video of a whole latent (as encoded, not normalised)."""
    return self.decode_chunk(latent, None)[0]

  def encode_chunk(self, chunk, cache):
    """One chunk of a stream: ((mean, logvar), cache for the next chunk)."""
    check_video(self, chunk.shape, is_first=cache is None)
    past = Past(cache)
    return self.encoder(chunk, past), tuple(past.kept)

  def decode_chunk(self, chunk, cache):
    """One chunk of latent frames: (video, cache for the next chunk)."""
    check_latent(self, chunk.shape)
    past = Past(cache)
    return self.decoder(chunk, past), tuple(past.kept)


class SpaceToDepth(nnx.Module):
  """Lossless codec without parameters: a latent holds the pixels of its frames, row-major.

  It has c = 3·time·space² channels. The first latent covers one frame, repeated to fill its
  channels, and is decoded from its last repetition. The log-variance is that of no noise (its lower
  limit).
  """

  def __init__(self, *, time_factor: int, space_factor: int, rngs: nnx.Rngs):
    del rngs  # no parameters
    self.time_factor, self.space_factor = time_factor, space_factor
    self.latent_channels = 3 * time_factor * space_factor**2

  @typed
  def encode(
    self, video: Float[Array, "b F H W 3"]
  ) -> tuple[Float[Array, "b f h w c"], Float[Array, "b f h w c"]]:
    """The video's pixels as latents, and their log-variance."""
    return self.encode_chunk(video, None)[0]

  @typed
  def decode(self, latent: Float[Array, "b f h w c"]) -> Float[Array, "b F H W 3"]:
    """Exact inverse of `encode`."""
    return self.decode_chunk(latent, None)[0]

  def encode_chunk(self, chunk, cache):
    """One chunk of a stream: ((mean, logvar), cache for the next chunk, which is empty)."""
    check_video(self, chunk.shape, is_first=cache is None)
    mean = group_frames(space_to_depth(chunk, self.space_factor), self.time_factor, Past(cache))
    return (mean, jnp.full_like(mean, LOGVAR_RANGE[0])), ()

  def decode_chunk(self, chunk, cache):
    """One chunk of latent frames: (video, cache for the next chunk, which is empty)."""
    check_latent(self, chunk.shape)
    video = ungroup_frames(chunk, self.time_factor, Past(cache))
    return depth_to_space(video, self.space_factor), ()


CODECS = {"vae": VAE, "space_to_depth": SpaceToDepth}


def make_codec(config: dict, *, seed: int):
  """Builds the codec of `config`: `name`, a key of CODECS, and that constructor's arguments.

  Raises:
    BadInput: unknown name, or settings that the codec does not have or lacks.
  """
  settings = dict(config)
  name = settings.pop("name", None)
  if name not in CODECS:
    raise BadInput(f"vae: name={name!r} is not one of {sorted(CODECS)}.")
  try:
    return CODECS[name](**settings, rngs=nnx.Rngs(seed))
  except TypeError as error:
    raise BadInput(
      f"vae: settings {sorted(settings)} do not fit name={name!r} ({error}). Correct the config."
    ) from error


def check_video(codec, shape, *, is_first: bool):
  """Raises BadInput when a chunk of pixels is no whole number of latents."""
  _, frames, height, width, _ = shape
  r, side, start = codec.time_factor, codec.space_factor, int(is_first)
  if frames < 1 or (frames - start) % r:
    rule = f"1+{r}k" if is_first else f"{r}k (a chunk after the first)"
    raise BadInput(f"vae: frames={frames} is not {rule}. Cut the video to a length that is.")
  for name, size in (("height", height), ("width", width)):
    if size % side or size < 1:
      raise BadInput(
        f"vae: {name}={size} is not a multiple of {side}, the codec's space factor"
        f" (video {width}x{height}). Crop or resize the video."
      )


def check_latent(codec, shape):
  """Raises BadInput when a latent is not this codec's."""
  if len(shape) != 5 or shape[1] < 1 or shape[-1] != codec.latent_channels:
    raise BadInput(
      f"vae: latent {tuple(shape)} is not [b,f,h,w,{codec.latent_channels}]."
      " Decode it with its own codec."
    )


@partial(jax.jit, static_argnums=0)
def encode_step(structure, params, chunk, cache):
  """Compiled `encode_chunk`; one program for the first chunk, one for each later length."""
  return nnx.merge(structure, params).encode_chunk(chunk, cache)


@partial(jax.jit, static_argnums=0)
def decode_step(structure, params, chunk, cache):
  """Compiled `decode_chunk`."""
  return nnx.merge(structure, params).decode_chunk(chunk, cache)


def encode_stream(structure, params, chunks: Iterable) -> Iterator[tuple]:
  """Encodes a video of any length in constant memory.

  Args:
    structure, params: of `nnx.split(codec)`.
    chunks: float video [b,F,H,W,3] in [-1, 1]; the first has 1+time_factor·k frames, the others
      time_factor·k. Equal lengths compile once.
  Yields:
    (mean, logvar) of each chunk.
  """
  cache = None
  for chunk in chunks:
    posterior, cache = encode_step(structure, params, chunk, cache)
    yield posterior


def decode_stream(structure, params, chunks: Iterable) -> Iterator:
  """Decodes latent chunks [b,f,h,w,c] with f ≥ 1 to video chunks, in constant memory."""
  cache = None
  for chunk in chunks:
    video, cache = decode_step(structure, params, chunk, cache)
    yield video

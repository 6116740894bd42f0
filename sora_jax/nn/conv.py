"""Causal layers of the video codec: what they do to a whole video they also do chunk by chunk.

A video has 1 + r·k frames: frame 0 alone, then groups of r. A chunk is the video's beginning
(1 + r·k frames) or a later piece (r·k frames). Only convolutions look at other frames, and only at
earlier ones; what they need of earlier chunks is carried in `Past`. Norms mix no frames.
"""

import jax
import jax.numpy as jnp
from flax import nnx

# Blocks of a stack in a row without a loop. In loops, XLA's CPU backend runs convolutions nine
# times as slow (a step of the demo's VAE: 135 ms instead of 15).
_UNROLLED = 4


class Past:
  """The last frames that each causal convolution saw, listed in the order of the calls: arrays, or
  of a stack of layers a tuple of stacked ones.

  Args:
    frames: `kept` of the chunk before, None at the beginning of a video (zeros stand before it).
  """

  def __init__(self, frames: tuple | None = None):
    self.frames, self.kept = frames, []

  @property
  def is_first(self) -> bool:
    """Whether the chunk in hand begins the video."""
    return self.frames is None

  def extend(self, x, count: int):
    """Puts the `count` frames before x [b,f,h,w,c] in front of it, and keeps its last ones."""
    if self.frames is None:
      before = jnp.zeros((x.shape[0], count, *x.shape[2:]), x.dtype)
    else:
      before = self.frames[len(self.kept)]
    x = jnp.concatenate([before, x], axis=1)
    self.kept.append(x[:, x.shape[1] - count :])
    return x


def group_frames(x, size: int, past: Past):
  """[b,F,h,w,c] to [b,F/size,h,w,size·c]; frame 0 of a video is repeated to fill a group."""
  if past.is_first:
    x = jnp.concatenate([jnp.repeat(x[:, :1], size - 1, axis=1), x], axis=1)
  b, frames, h, w, c = x.shape
  x = x.reshape(b, frames // size, size, h, w, c)
  return jnp.moveaxis(x, 2, 4).reshape(b, frames // size, h, w, size * c)


def ungroup_frames(x, size: int, past: Past):
  """Inverse of `group_frames`; of a video's first group the last frame is taken."""
  b, f, h, w, c = x.shape
  x = jnp.moveaxis(x.reshape(b, f, h, w, size, c // size), 4, 2)
  x = x.reshape(b, f * size, h, w, c // size)
  return x[:, size - 1 :] if past.is_first else x


def space_to_depth(x, size: int):
  """[b,f,H,W,c] to [b,f,H/size,W/size,size²·c], row-major in the cell."""
  b, f, height, width, c = x.shape
  h, w = height // size, width // size
  x = x.reshape(b, f, h, size, w, size, c)
  return jnp.moveaxis(x, 3, 4).reshape(b, f, h, w, size * size * c)


def depth_to_space(x, size: int):
  """Inverse of `space_to_depth`."""
  b, f, h, w, c = x.shape
  x = x.reshape(b, f, h, w, size, size, c // size**2)
  return jnp.moveaxis(x, 4, 3).reshape(b, f, h * size, w * size, c // size**2)


class CausalConv3D(nnx.Module):
  """Stride 1 convolution over `taps` frames, the newest being the present, and side² pixels.

  It runs as a 2D convolution over frames whose channels are those of `taps` frames: the same sums,
  on the path that backends have tuned best (on a CPU up to twice the speed of a 3D convolution).
  """

  def __init__(self, into: int, out: int, *, taps: int, side: int, dtype, rngs: nnx.Rngs):
    shape = (side, side, taps * into, out)
    scale = nnx.initializers.lecun_normal()
    self.kernel = nnx.Param(scale(rngs.params(), shape, jnp.float32))
    self.bias = nnx.Param(jnp.zeros((out,), jnp.float32))
    self.taps, self.dtype = taps, dtype

  def __call__(self, x, past: Past):
    b, f, h, w, _ = x.shape
    x = x.astype(self.dtype)
    if self.taps > 1:
      x = past.extend(x, self.taps - 1)
      x = jnp.concatenate([x[:, i : i + f] for i in range(self.taps)], axis=-1)
    kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
    y = jax.lax.conv_general_dilated(
      x.reshape(b * f, h, w, -1), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return (y + bias).reshape(b, f, h, w, -1)


class ChannelNorm(nnx.Module):
  """Root-mean-square norm over the channels of one position (Zhang & Sennrich 2019), in float32."""

  def __init__(self, width: int, *, dtype):
    self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
    self.dtype = dtype

  def __call__(self, x):
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-6)
    return (y * self.scale[...]).astype(self.dtype)


class ResidualBlock(nnx.Module):
  """x + linear(silu(causal convolution(norm(x)))), the identity in a new model."""

  def __init__(self, width: int, *, taps: int, dtype, rngs: nnx.Rngs):
    self.norm = ChannelNorm(width, dtype=dtype)
    self.conv = CausalConv3D(width, width, taps=taps, side=3, dtype=dtype, rngs=rngs)
    zeros = nnx.initializers.zeros_init()
    self.out = nnx.Linear(width, width, kernel_init=zeros, dtype=dtype, rngs=rngs)

  def __call__(self, x, past: Past):
    return x + self.out(nnx.silu(self.conv(self.norm(x), past)))


class ResidualStack(nnx.Module):
  """`count` residual blocks of one width, stacked: compile time does not grow with their number."""

  def __init__(self, count: int, width: int, *, taps: int, dtype, rngs: nnx.Rngs):
    blocks = [ResidualBlock(width, taps=taps, dtype=dtype, rngs=rngs) for _ in range(count)]
    states = [nnx.state(block) for block in blocks]
    self.blocks = nnx.merge(
      nnx.graphdef(blocks[0]), jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    )

  def __call__(self, x, past: Past):
    structure, stacked = nnx.split(self.blocks)

    def layer(x, own):
      parameters, before = own
      inner = Past(before)
      return nnx.merge(structure, parameters)(x, inner), tuple(inner.kept)

    before = None if past.frames is None else past.frames[len(past.kept)]
    x, kept = jax.lax.scan(layer, x, (stacked, before), unroll=_UNROLLED)
    past.kept.append(kept)
    return x


class Downsample(nnx.Module):
  """Learned strided causal convolution, its kernel as large as its stride (time, space)."""

  def __init__(self, into: int, out: int, *, stride: tuple[int, int], dtype, rngs: nnx.Rngs):
    self.time, self.space = stride
    self.linear = nnx.Linear(into * self.time * self.space**2, out, dtype=dtype, rngs=rngs)

  def __call__(self, x, past: Past):
    return self.linear(group_frames(space_to_depth(x, self.space), self.time, past))


class Upsample(nnx.Module):
  """Learned transpose of `Downsample`."""

  def __init__(self, into: int, out: int, *, stride: tuple[int, int], dtype, rngs: nnx.Rngs):
    self.time, self.space = stride
    self.linear = nnx.Linear(into, out * self.time * self.space**2, dtype=dtype, rngs=rngs)

  def __call__(self, x, past: Past):
    return depth_to_space(ungroup_frames(self.linear(x), self.time, past), self.space)

"""Clips to latents, grouped by shape so that each shape is compiled once."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.errors import BadInput
from sora_jax.generate.media import exact_fps

MAX_SHAPES = 64  # compiled programs of one job


class Encoded(NamedTuple):
  """A clip that went through the VAE.

  Attributes:
    key: the caller's.
    latent: float32 [f,h,w,c], normalised.
    shape: (frames, height, width) in pixels that were encoded.
    crop: pixels cut off at top, left, bottom, right.
  """

  key: Any
  latent: np.ndarray
  shape: tuple[int, int, int]
  crop: tuple[int, int, int, int]


def fit_clip(frames: int, height: int, width: int, vae, patch_side: int) -> tuple[int, int, int]:
  """The largest (frames, height, width) inside a clip that the VAE takes and patches divide.

  Args:
    frames, height, width: of the clip.
    vae: has `time_factor` and `space_factor`.
    patch_side: rows and columns that a patch covers in latents.
  Raises:
    BadInput: the clip is smaller than one patch.
  """
  side = vae.space_factor * patch_side
  if frames < 1 or height < side or width < side:
    raise BadInput(
      f"encode: a clip of {width}x{height}, {frames} frames is smaller than one patch "
      f"({side}x{side} pixels). Leave it out, or use a smaller patch."
    )
  return (
    1 + (frames - 1) // vae.time_factor * vae.time_factor,
    height // side * side,
    width // side * side,
  )


def centre_crop(height: int, width: int, h: int, w: int) -> tuple[int, int, int, int]:
  """(top, left, bottom, right) pixels to cut off a picture so that h by w remain."""
  top, left = (height - h) // 2, (width - w) // 2
  return top, left, height - h - top, width - w - left


def encode_clips(vae, clips: Iterable, *, rows: int, patch_side: int) -> Iterator[Encoded]:
  """Encodes clips of any shape in batches of one shape.

  Args:
    vae: a `FrozenVAE`.
    clips: pairs of (key, video uint8 [F,H,W,3]).
    rows: clips a batch; a last batch is filled up with repetitions, which are dropped.
    patch_side: see `fit_clip`.
  Yields:
    `Encoded`, grouped by shape; the order within a shape is that of `clips`.
  Raises:
    BadInput: more than MAX_SHAPES shapes.
  """
  waiting: dict[tuple, list] = {}
  for key, video in clips:
    frames, height, width = video.shape[:3]
    shape = fit_clip(frames, height, width, vae, patch_side)
    crop = centre_crop(height, width, *shape[1:])
    video = video[: shape[0], crop[0] : crop[0] + shape[1], crop[1] : crop[1] + shape[2]]
    group = waiting.setdefault(shape, [])
    if len(waiting) > MAX_SHAPES:
      raise BadInput(
        f"encode: the clips have more than {MAX_SHAPES} shapes, each compiled on its own. "
        "Cut them to fewer sizes and lengths."
      )
    group.append((key, video, crop))
    if len(group) == rows:
      yield from _encode_group(vae, group, rows)
      group.clear()
  for group in waiting.values():
    if group:
      yield from _encode_group(vae, group, rows)


def _encode_group(vae, group, rows):
  videos = [video for _, video, _ in group]
  batch = np.stack(videos + videos[-1:] * (rows - len(videos)))
  latents = np.asarray(vae.encode(batch))
  for (key, _, crop), latent in zip(group, latents, strict=False):
    yield Encoded(key, latent, batch.shape[1:4], crop)


def latent_shape(
  seconds: float, width: int, height: int, fps: float, vae, patch
) -> tuple[int, int, int]:
  """Latent (f, h, w) of a video of about `seconds`: at least one frame, 1 + time_factor·k of them.

  Raises:
    BadInput: a size that VAE and patch cannot make, or a length or rate that is not positive.
  """
  if not 0 <= seconds < math.inf or not 0 < fps < math.inf:
    raise BadInput(
      f"sample: seconds={seconds}, fps={fps} must be positive (0 seconds is an image)."
    )
  exact_fps(fps)  # a rate that no file can have is refused before any work is done
  for name, value in (("width", width), ("height", height)):
    if value < 1 or value % vae.space_factor:
      raise BadInput(
        f"sample: size={width}x{height} has {name}={value}, not a multiple of {vae.space_factor} "
        f"(the VAE's side). Choose another --size."
      )
  pt = patch[0]
  latents = 1 + round(max(0.0, seconds * fps - 1) / vae.time_factor)
  latents = max(pt, round(latents / pt) * pt)
  shape = latents, height // vae.space_factor, width // vae.space_factor
  for name, side, part in zip("fhw", shape, patch, strict=True):
    if side % part:
      raise BadInput(
        f"sample: size={width}x{height}: latent {name}={side} is not a multiple of its patch side "
        f"{part}. Choose another --size."
      )
  return shape


def decode_latents(vae, latents: np.ndarray, chunk_frames: int = 16) -> np.ndarray:
  """Normalised latents [b,f,h,w,c] to uint8 video, in chunks: device memory does not grow."""
  chunks = (latents[:, i : i + chunk_frames] for i in range(0, latents.shape[1], chunk_frames))
  return np.concatenate([np.asarray(video) for video in vae.decode_stream(chunks)], axis=1)

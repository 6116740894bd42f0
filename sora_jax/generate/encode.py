"""Clips at hand to latents, and back; `generate.batches` encodes whole datasets."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.errors import BadInput
from data_pipeline.renditions import centre_crop, snap_length
from sora_jax.generate.media import exact_fps
from sora_jax.generate.programs import plan_batch


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
    snap_length(frames, vae.time_factor),
    height // side * side,
    width // side * side,
  )


def encode_clips(vae, clips: Iterable, *, rows: int, patch_side: int) -> Iterator[Encoded]:
  """Encodes clips of any shape in batches of one shape.

  A batch is a chunk of each of its clips and has about PIXELS_AT_ONCE pixels (`plan_batch`), so
  that memory does not grow with the length of a clip. Fewer pixels of each shape wait for their
  batch to fill.

  Args:
    vae: has `encode_stream`, `time_factor` and `space_factor`: a `FrozenVAE`.
    clips: pairs of (key, video uint8 [F,H,W,3]), of few shapes.
    rows: the most clips a batch; a last batch is filled up with repetitions, which are dropped.
    patch_side: see `fit_clip`.
  Yields:
    `Encoded`, grouped by shape; the order within a shape is that of `clips`.
  Raises:
    BadInput: a clip is smaller than one patch.
  """
  waiting: dict[tuple[int, int, int], list] = defaultdict(list)
  for key, video in clips:
    frames, height, width = video.shape[:3]
    shape = fit_clip(frames, height, width, vae, patch_side)
    crop = centre_crop(height, width, *shape[1:])
    video = video[: shape[0], crop[0] : crop[0] + shape[1], crop[1] : crop[1] + shape[2]]
    waiting[shape].append((key, np.ascontiguousarray(video), crop))  # what is cut off does not wait
    batch_rows, chunk_frames = plan_batch(shape, vae.time_factor, rows)
    if len(waiting[shape]) == batch_rows:
      yield from _encode_group(vae, waiting.pop(shape), batch_rows, chunk_frames)
  for shape, group in waiting.items():
    yield from _encode_group(vae, group, *plan_batch(shape, vae.time_factor, rows))


def _encode_group(vae, group, rows: int, chunk_frames: int) -> Iterator[Encoded]:
  videos = [video for _, video, _ in group]
  shape = videos[0].shape[:3]
  videos += videos[-1:] * (rows - len(videos))
  edges = [0, *range(1 + chunk_frames, shape[0], chunk_frames), shape[0]]
  chunks = (np.stack([video[a:b] for video in videos]) for a, b in pairwise(edges))
  parts = [np.asarray(part) for part in vae.encode_stream(chunks)]
  for (key, _, crop), latent in zip(group, np.concatenate(parts, axis=1), strict=False):
    yield Encoded(key, latent, shape, crop)


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

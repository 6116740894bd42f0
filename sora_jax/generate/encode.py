"""Clips to latents, grouped by shape so that no shape is compiled again.

A batch is a chunk of each of its clips and has about PIXELS_AT_ONCE pixels, so that memory grows
neither with the length of a clip nor with the number of shapes (see `plan_batch`).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.errors import BadInput
from sora_jax.generate.media import exact_fps

MAX_SHAPES = 64  # of the clips of one job, each with programs of its own
PIXELS_AT_ONCE = 2**20  # frames x height x width x rows of a batch


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


def check_clips(index: Mapping[str, np.ndarray], vae, patch_side: int) -> None:
  """Refuses what `encode_clips` could not end, by sizes alone: before anything is encoded.

  Args:
    index: has the columns `frames`, `height` and `width` of the clips.
    vae, patch_side: see `fit_clip`.
  Raises:
    BadInput: a clip is smaller than one patch, or there are more than MAX_SHAPES shapes.
  """
  sizes = np.stack([index[side] for side in ("frames", "height", "width")], axis=1)
  sizes, counts = np.unique(sizes, axis=0, return_counts=True)
  side = vae.space_factor * patch_side
  small = (sizes < (1, side, side)).any(1)
  if small.any():
    f, h, w = sizes[small][0]
    raise BadInput(
      f"encode: {counts[small].sum()} of {counts.sum()} clips are smaller than one patch "
      f"({side}x{side} pixels; one is {w}x{h}, {f} frames). "
      "Leave them out, or use a smaller patch."
    )
  shapes = {fit_clip(f, h, w, vae, patch_side) for f, h, w in sizes.tolist()}
  if len(shapes) > MAX_SHAPES:
    raise BadInput(
      f"encode: the {counts.sum()} clips have {len(shapes)} shapes after cropping to {side} pixels "
      f"and 1+{vae.time_factor}k frames, over the {MAX_SHAPES} that are compiled, each on its own. "
      "Cut them to fewer sizes and lengths, or raise the patch side."
    )


def plan_batch(shape: tuple[int, int, int], time_factor: int, rows: int) -> tuple[int, int]:
  """Clips of a batch, and frames of each of their chunks; the first chunk has one frame more.

  A batch holds at most PIXELS_AT_ONCE pixels, or 1 + time_factor frames where those are more.
  Chunks are as long as that allows, and a clip that is cut is alone in its batch: a long clip does
  not wait for others of its shape.

  Args:
    shape: (frames, height, width) to encode.
    time_factor: frames of a latent.
    rows: the most clips.
  """
  frames, height, width = shape
  room = PIXELS_AT_ONCE // (height * width)  # frames
  chunk_frames = max(1, (room - 1) // time_factor) * time_factor
  if frames > 1 + chunk_frames:
    return 1, chunk_frames
  return max(1, min(rows, room // frames)), chunk_frames


def encode_clips(vae, clips: Iterable, *, rows: int, patch_side: int) -> Iterator[Encoded]:
  """Encodes clips of any shape in batches of one shape.

  Fewer than PIXELS_AT_ONCE pixels of each shape wait for their batch to fill.

  Args:
    vae: has `encode_stream`, `time_factor` and `space_factor`: a `FrozenVAE`.
    clips: pairs of (key, video uint8 [F,H,W,3]), of at most MAX_SHAPES shapes (`check_clips`).
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

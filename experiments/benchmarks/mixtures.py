"""Indexes of latent datasets with heavy-tailed lengths, drawn for the benchmarks: columns only.

Tokens are patches of 1x2x2 latents of 4 frames of 8x8 pixels: a 256x256 image is 256 tokens.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

CHUNK = 2**20
CAPTIONS = dict(median=60, sigma=0.6, least=5, most=250)  # tokens, log-normal
Sides = tuple[np.ndarray, np.ndarray, np.ndarray]


def images_and_long_videos(rng: np.random.Generator, count: int) -> Sides:
  """90 % images of 256 tokens, 10 % videos of 30,240 (21 x 60 x 96 latents)."""
  is_video = rng.random(count) < 0.1
  pairs = ((21, 1), (60, 32), (96, 32))
  f, h, w = (np.where(is_video, video, image) for video, image in pairs)
  return f, h, w


def web_video(rng: np.random.Generator, count: int) -> Sides:
  """Half images; videos log-normal in time (median 3 s at 16 fps), at most 30,000 tokens; five
  aspect ratios at four areas, 256 to 1,020 tokens a latent frame.
  """
  aspect = rng.choice([16 / 9, 9 / 16, 4 / 3, 3 / 4, 1.0], count, p=[0.45, 0.2, 0.15, 0.1, 0.1])
  area = rng.choice([1024, 2304, 3600, 4080], count, p=[0.4, 0.3, 0.2, 0.1])
  h, w = (
    np.maximum(2, np.sqrt(area * ratio) // 2 * 2).astype(int) for ratio in (1 / aspect, aspect)
  )
  seconds = np.exp(rng.normal(np.log(3), 0.9, count))
  frames = np.where(rng.random(count) < 0.5, 1, 1 + (4 * seconds).astype(int))
  return np.minimum(frames, np.maximum(1, 30_000 * 4 // (h * w))), h, w


def power_law(rng: np.random.Generator, count: int) -> Sides:
  """16 tokens a latent frame, Pareto in time with exponent 0.9, 64 to 30,000 tokens."""
  frames = np.minimum(4 * (1 + rng.pareto(0.9, count)), 30_000 // 16).astype(int)
  return frames, np.full(count, 8), np.full(count, 8)


def small_pieces(rng: np.random.Generator, count: int) -> Sides:
  """Thumbnails and short clips, 16 to 4,096 tokens, log-uniform."""
  frames = np.exp2(rng.uniform(0, 8, count)).astype(int)
  return frames, np.full(count, 8), np.full(count, 8)


MIXTURES: dict[str, Callable[[np.random.Generator, int], Sides]] = {
  make.__name__: make for make in (images_and_long_videos, web_video, power_law, small_pieces)
}


def make_columns(name: str, clips: int, seed: int = 0, folder: Path | None = None) -> dict:
  """Index columns of so many clips, one caption each.

  Args:
    name: of MIXTURES.
    folder: where they are put as memory-mapped files; None keeps them in memory.
  """
  types = dict(f=np.int32, h=np.int32, w=np.int32, caption_tokens=np.int32)
  lengths = dict.fromkeys(types, clips) | {"caption_offsets": clips + 1}
  columns = {
    column: _empty(folder, column, types.get(column, np.int64), length)
    for column, length in lengths.items()
  }
  for start in range(0, clips, CHUNK):
    rng = np.random.default_rng([seed, start])
    part = slice(start, min(start + CHUNK, clips))
    count = part.stop - start
    for column, side in zip("fhw", MIXTURES[name](rng, count), strict=True):
      columns[column][part] = side
    tokens = rng.lognormal(np.log(CAPTIONS["median"]), CAPTIONS["sigma"], count)
    columns["caption_tokens"][part] = np.clip(tokens, CAPTIONS["least"], CAPTIONS["most"])
    columns["caption_offsets"][start + 1 : part.stop + 1] = np.arange(start + 1, part.stop + 1)
  return columns


def _empty(folder: Path | None, name: str, dtype, length: int) -> np.ndarray:
  if folder is None:
    return np.zeros(length, dtype)
  return np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype=dtype, shape=(length,))

"""Paints bodies over the set: antialiased, all frames at once, only inside the bodies' boxes."""

import numpy as np

from data_pipeline.worlds import palette
from data_pipeline.worlds.scenes import Body

_CHUNK_PIXELS = 1 << 20  # bounds memory: a box times frames


def _box(body: Body, centre: np.ndarray, side: int, axis: int, unit: int) -> tuple[np.ndarray, int]:
  """First pixel [F] and length of a box round the body with a margin, kept inside the frame."""
  before, after = np.array(body.reach[2 * axis : 2 * axis + 2]) * unit
  length = min(int(np.ceil(before + after)) + 3, side)
  first = np.floor(centre - before).astype(int) - 1
  return np.clip(first, 0, side - length), length


def paint_body(
  video: np.ndarray,
  masks: np.ndarray,
  body: Body,
  position: np.ndarray,
  instance: int,
  occluder: np.ndarray | None,
) -> np.ndarray:
  """Paints one body into all frames, in place.

  Args:
    video: uint8 [F, H, W, 3].
    masks: uint8 [F, H, W]: receives `instance` where more than half a pixel is the visible body.
    position: centroid (x, y) in world units, [F, 2].
    occluder: coverage [H, W] of what stands in front, or None.
  Returns:
    visible fraction [F].
  """
  frames, height, width = masks.shape
  unit = min(height, width)
  centre = position * unit
  (left, wide), (top, high) = (
    _box(body, centre[:, axis], side, axis, unit) for axis, side in ((0, width), (1, height))
  )
  visible = np.empty(frames)
  step = max(1, _CHUNK_PIXELS // (wide * high))
  for begin in range(0, frames, step):
    part = slice(begin, begin + step)
    x, y = left[part, None] + np.arange(wide), top[part, None] + np.arange(high)
    dx = (x + 0.5 - centre[part, :1]).astype(np.float32)[:, None, :]
    dy = (y + 0.5 - centre[part, 1:]).astype(np.float32)[:, :, None]
    inside = palette.signed_distance(body.shape, dx, dy, body.radius * unit, body.angle)
    alpha = np.clip(np.float32(0.5) - inside, 0, 1)
    seen = alpha
    pixel = y[:, :, None] * width + x[:, None, :]  # within a frame
    if occluder is not None:
      seen = alpha * (1 - occluder.reshape(-1)[pixel])
    visible[part] = seen.sum((1, 2)) / np.maximum(alpha.sum((1, 2)), 1e-6)
    pixel = pixel + (np.arange(frames)[part] * (height * width))[:, None, None]
    _blend(video.reshape(-1, 3), masks.reshape(-1), pixel, seen, body.colour, instance)
  return visible


def _blend(
  video: np.ndarray,
  masks: np.ndarray,
  pixel: np.ndarray,
  seen: np.ndarray,
  colour: str,
  instance: int,
) -> None:
  """Covers whole pixels and mixes those of the edge; `pixel` is a flat index, `seen` coverage."""
  pixel, seen = pixel.reshape(-1), seen.reshape(-1)
  ink = np.array(palette.COLOURS[colour], np.uint8)
  whole = pixel[seen >= 1]
  video[whole] = ink
  masks[whole] = instance
  edge = np.flatnonzero((seen > 0) & (seen < 1))
  at, share = pixel[edge], seen[edge]
  old = video[at].astype(np.float32)
  video[at] = (old + share[:, None] * (ink - old) + np.float32(0.5)).astype(np.uint8)
  masks[at[share > 0.5]] = instance

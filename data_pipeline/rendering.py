"""Makes the pixels of a rendition (`data_pipeline.renditions`), chunk by chunk.

Frames are resized by Pillow's bicubic filter, widened when it shrinks (no aliasing), then cropped.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from data_pipeline.renditions import choose_frames


def render(video, rendition, sizes: Iterable[int]) -> Iterator[np.ndarray]:
  """The frames of a rendition in chunks.

  Args:
    video: uint8 [F,H,W,3], or an `EncodedVideo`, which is decoded frame by frame.
    rendition: a row of RENDITION.
    sizes: frames of each chunk. What they ask for beyond the rendition repeats its last frame.
  Yields:
    uint8 [size, height, width, 3].
  """
  frames = _shown(video, rendition)
  last = np.empty(0, np.uint8)
  for size in sizes:
    chunk = np.empty((size, rendition["height"], rendition["width"], 3), np.uint8)
    for i in range(size):
      last = next(frames, last)
      chunk[i] = last
    yield chunk


def _shown(video, rendition) -> Iterator[np.ndarray]:
  """Every frame of the rendition, cropped and resized."""
  rows = choose_frames(int(rendition["first"]), int(rendition["frames"]), float(rendition["step"]))
  top, left, bottom, right = rendition["crop"].tolist()
  height, width = rendition["resized"].tolist()
  for frame in _pick(video, rows.tolist()):
    frame = _resize(frame, height, width)
    yield frame[top : height - bottom, left : width - right]


def _pick(video, rows: list[int]) -> Iterator[np.ndarray]:
  """Frames of the given numbers, ascending."""
  if isinstance(video, np.ndarray):
    yield from (video[row] for row in rows)
    return
  wanted = iter(rows)
  row = next(wanted)
  for number, frame in enumerate(video.frames(rows[0], rows[-1] + 1), rows[0]):
    if number == row:
      yield frame
      row = next(wanted, None)


def _resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
  if frame.shape[:2] == (height, width):
    return frame
  from PIL import Image

  image = Image.fromarray(np.ascontiguousarray(frame))
  return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))

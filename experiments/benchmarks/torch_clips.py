"""Windows of encoded clips as a torch user reads them: PyAV, up to the last frame that is needed.

The same records and windows as our loader, the same number of workers. Needs torch.
"""

import io
from collections.abc import Callable

import av
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data_pipeline.dataset import Dataset as Records

STEPS = 10_000  # batches at most


class Windows(Dataset):
  """Window by (record, (frame, top, left)): uint8 [F,H,W,3]."""

  def __init__(self, folder: str, frames: int, height: int, width: int) -> None:
    self._records = Records.open(folder, kind="clip")
    self._sides = frames, height, width

  def __getitem__(self, place) -> dict:
    record, (first, top, left) = place
    frames, height, width = self._sides
    data = self._records.read(record).video.data
    shown = []
    with av.open(io.BytesIO(data)) as container:
      for i, frame in enumerate(container.decode(video=0)):
        if i >= first:
          picture = frame.to_ndarray(format="rgb24")
          shown.append(picture[top : top + height, left : left + width])
        if len(shown) == frames:
          break
    return {"video": torch.from_numpy(np.stack(shown))}


class Batches(Sampler):
  """Places of the stream, in batches."""

  def __init__(self, choose: Callable, rows: int) -> None:
    self._choose, self._rows = choose, rows

  def __iter__(self):
    for step in range(STEPS):
      yield [self._choose(step * self._rows + row) for row in range(self._rows)]

  def __len__(self) -> int:
    return STEPS


def torch_clips(
  folder: str,
  choose: Callable,
  *,
  rows: int,
  frames: int,
  height: int,
  width: int,
  workers: int,
  prefetch: int,
) -> DataLoader:
  """Batches of windows by a `DataLoader` of so many worker processes."""
  return DataLoader(
    Windows(folder, frames, height, width),
    batch_sampler=Batches(choose, rows),
    num_workers=workers,
    prefetch_factor=prefetch,
  )

"""Whether a run's rotary periods tell its patches apart."""

from collections.abc import Sequence

import numpy as np

from data_pipeline.dataset import Dataset
from sora_jax.nn.rope import CELLS

_CHUNK = 2**20  # rows of the index looked at at once


def warn_aliasing(config, datasets: Sequence[Dataset]) -> list[str]:
  """One line for each kind of patches that lie further apart than half the shortest period.

  Such a period turns by more than half a circle from one patch to the next, so it looks like a
  longer one, or like one that runs backwards (Nyquist). A run goes on: it has the longer periods.
  """
  (pt, *sides), (shortest, _) = config.model.patch, config.model.rotary_seconds
  lines = []
  for dataset in datasets:
    apart = slowest_patches(dataset, pt)
    if 2 * apart > shortest:
      lines.append(
        f"patches of {dataset.path} lie up to {apart:.3g} s apart, more than half of the shortest"
        f" rotary period, {shortest:g} s: it does not tell their order. A new run should have"
        f" model.rotary_seconds[0]={2 * apart:.3g} or more."
      )
  if 2 * max(sides) > CELLS[0]:
    lines.append(
      f"patches of model.patch={tuple(config.model.patch)} lie up to {max(sides)} latents apart,"
      f" more than half of the shortest rotary period, {CELLS[0]:g}: it does not tell their order."
    )
  return lines


def slowest_patches(dataset: Dataset, patch_frames: int) -> float:
  """Seconds between patches that follow each other in the slowest clip; 0 where all are images."""
  slowest, index = np.inf, dataset.index
  for start in range(0, len(dataset), _CHUNK):
    rows = slice(start, start + _CHUNK)
    rates = index["fps"][rows][index["f"][rows] > patch_frames]
    slowest = min(slowest, float(rates.min(initial=np.inf)))
  return patch_frames * dataset.time_factor / slowest

"""Randomness of one generated clip: draws from the counter-based hash, one stream a purpose."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from data_pipeline import hashing

_SALT = 0x706879  # keeps physworld's draws apart from those of a pack plan with the same seed
PURPOSES = ("family", "object", "motion", "background", "split")
_COUNT = 16
T = TypeVar("T")


class Draws:
  """Hands out a clip's draws in order; those of one purpose do not depend on the others."""

  def __init__(self, seed: int, index: int):
    purposes = np.arange(len(PURPOSES))[:, None]
    table = hashing.uniform(_SALT, seed, index, purposes, np.arange(_COUNT)[None])
    self._streams = {name: iter(row) for name, row in zip(PURPOSES, table.tolist(), strict=True)}

  def unit(self, purpose: str) -> float:
    """Uniform in [0, 1)."""
    return next(self._streams[purpose])

  def between(self, purpose: str, low: float, high: float) -> float:
    return low + (high - low) * self.unit(purpose)

  def choose(self, purpose: str, options: Sequence[T]) -> T:
    return options[int(self.unit(purpose) * len(options))]

  def weighted(self, purpose: str, weights: Mapping[str, float]) -> str:
    """One key, with probability proportional to its weight."""
    edges = np.cumsum(list(weights.values()))
    place = int(np.searchsorted(edges, self.unit(purpose) * edges[-1], side="right"))
    return list(weights)[min(place, len(weights) - 1)]

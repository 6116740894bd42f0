"""Batches on their way to the devices, each with the progress of the state after it."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from data_pipeline.tokens import Totals
from sora_jax.train.metrics import Counts, Meter
from sora_jax.train.state import Progress


class Fed(NamedTuple):
  """A batch whose copy to the devices has begun.

  Attributes:
    arrays: on the devices.
    counts: what is in it.
    progress: of a state that has seen it; the loader itself may be further.
  """

  arrays: Any
  counts: Counts
  progress: Progress


def is_running(arrays: Any) -> bool:
  """Whether a device has still to finish one of the arrays of a tree."""
  leaves = jax.tree.leaves(arrays)
  return any(isinstance(leaf, jax.Array) and not _is_ready(leaf) for leaf in leaves)


def _is_ready(array: jax.Array) -> bool:
  return array.is_ready()  # pyright: ignore[reportAttributeAccessIssue]


class Feed:
  """Takes batches one by one and counts what goes by.

  Args:
    batches: iterator of host batches with `totals` of the last one's step, over all hosts, and a
      JSON-able `cursor`: the position after it.
    put: host batch -> device arrays, without waiting.
    count: totals of a step -> its `Counts`.
    progress: where the run stands.
    meter: told of the time spent waiting for `batches`.
  """

  def __init__(
    self,
    batches,
    *,
    put: Callable[[dict], Any],
    count: Callable[[Totals], Counts],
    progress: Progress,
    meter: Meter,
  ):
    self._batches, self._put, self._count = batches, put, count
    self._progress, self._meter = progress, meter

  def take(self, in_flight: Any = None) -> Fed:
    """The next batch.

    Args:
      in_flight: arrays that the devices are working on meanwhile. While one of them is not ready
        when the batch is here, no device has waited for it.
    """
    begin = time.perf_counter()
    batch = next(self._batches)
    cursor = dict(self._batches.cursor)  # a copy: the prefetch moves on before the state is saved
    if not is_running(in_flight):
      self._meter.waited(time.perf_counter() - begin)
    counts = self._count(self._batches.totals)
    seen = self._progress
    self._progress = Progress(
      cursor, seen.tokens_seen + counts.tokens, seen.clips_seen + counts.clips
    )
    arrays = self._put(batch)
    self._meter.worked(time.perf_counter() - begin)
    return Fed(arrays, counts, self._progress)

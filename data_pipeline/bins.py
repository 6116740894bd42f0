"""Bins of segments under the capacities of a row (slots, caption slots, segments), and their steps.

Two decreasing heuristics, and the one that needs fewer steps wins:

- balanced: as many bins as the capacities ask for, in whole steps, are opened at once, and each
  item, longest first, goes into the emptiest. Long items are thus spread out and short ones end up
  beside them, which is what the segment and caption capacities want (longest processing time:
  Graham 1969, SIAM J. Appl. Math. 17(2)).
- tight: an item goes where it leaves the fewest free slots; a bin is opened when none has room
  (best fit decreasing: Johnson et al. 1974, SIAM J. Comput. 3(4)). Better where few items fill a
  bin.
"""

from collections import defaultdict

import numpy as np

_MORE = 0.01  # of the steps of the lower bound: within so many more nothing else is tried
_MANY = 256  # steps
_TRIES = 8  # bins looked at for caption room before a new one is opened


class _OpenBins:
  """Bins with room, found by their free slots: bit i of `mask` says that a bin has i free slots."""

  def __init__(self, count: int, slots: int, caption_slots: int, segments: int) -> None:
    self.capacity = slots, caption_slots, segments
    self.mask = 0
    self.by_free: dict[int, list[int]] = defaultdict(list)
    self.caption_room: list[int] = []
    self.segment_room: list[int] = []
    for _ in range(count):
      self._put(self._open(), slots)

  def __len__(self) -> int:
    return len(self.segment_room)

  def add(self, length: int, caption: int, *, tight: bool) -> int:
    """Puts an item into the fullest (tight) or emptiest bin with room; returns the bin."""
    index, free = self._take(length, caption, tight) or (self._open(), self.capacity[0])
    self.caption_room[index] -= caption
    self.segment_room[index] -= 1
    if self.segment_room[index]:
      self._put(index, free - length)
    return index

  def _open(self) -> int:
    _, caption_slots, segments = self.capacity
    self.caption_room.append(caption_slots)
    self.segment_room.append(segments)
    return len(self) - 1

  def _put(self, index: int, free: int) -> None:
    self.by_free[free].append(index)
    self.mask |= 1 << free

  def _take(self, length: int, caption: int, tight: bool) -> tuple[int, int] | None:
    """Removes and returns (bin, free slots) of the bin to use; None when no bin looked at fits."""
    fitting = self.mask >> length
    for _ in range(_TRIES):
      if not fitting:
        return None
      step = ((fitting & -fitting) if tight else fitting).bit_length() - 1
      bins = self.by_free[length + step]
      for place in range(len(bins) - 1, max(len(bins) - 1 - _TRIES, -1), -1):
        if self.caption_room[bins[place]] >= caption:
          return self._remove(length + step, place), length + step
      fitting ^= 1 << step
    return None

  def _remove(self, free: int, place: int) -> int:
    bins = self.by_free[free]
    index = bins.pop(place)
    if not bins:
      self.mask ^= 1 << free
    return index


def pack(
  lengths: np.ndarray,
  captions: np.ndarray,
  *,
  slots: int,
  caption_slots: int,
  segments: int,
  rows: int,
) -> np.ndarray:
  """Packs items into bins.

  Args:
    lengths: int64 [N], slots an item takes, caption included; none above `slots`.
    captions: int64 [N], caption slots an item takes; none above `caption_slots`.
    slots: slots of a bin.
    caption_slots: caption slots of a bin.
    segments: items of a bin.
    rows: bins of a step. Bins that would be empty rows are used, so that all are equally full.
  Returns:
    int64 [N]: the bin of every item, numbered from 0 without gaps. Among items of one length and
    caption the order given decides.
  """
  capacities = slots, caption_slots, segments
  totals = lengths.sum(), captions.sum(), len(lengths)
  bound = max(-(-int(total) // room) for total, room in zip(totals, capacities, strict=True))
  steps = -(-bound // rows)
  best = _pack_one_way(lengths, captions, capacities, steps * rows, tight=False)
  spilt = _steps(best, rows) - steps
  if spilt and (steps < _MANY or spilt > _MORE * steps):  # among many one more is no matter
    # Opens the spilt bins too, from the beginning, so that they are as full as the others.
    count = _steps(best, rows) * rows
    again = _pack_one_way(lengths, captions, capacities, count, tight=False)
    best = min(again, best, key=lambda bin_of: _steps(bin_of, rows))
  if _steps(best, rows) > (1 + _MORE) * steps:
    other = _pack_one_way(lengths, captions, capacities, 0, tight=True)
    best = min(best, other, key=lambda bin_of: _steps(bin_of, rows))
  return np.unique(best, return_inverse=True)[1]


def _steps(bin_of: np.ndarray, rows: int) -> int:
  return -(-(int(bin_of.max()) + 1) // rows)


def _pack_one_way(lengths, captions, capacities, count: int, *, tight: bool) -> np.ndarray:
  order = np.lexsort((-captions, -lengths))
  open_bins = _OpenBins(count, *capacities)
  bin_of = np.empty(len(lengths), np.int64)
  bin_of[order] = [
    open_bins.add(length, caption, tight=tight)
    for length, caption in zip(lengths[order].tolist(), captions[order].tolist(), strict=True)
  ]
  return bin_of


def place_in_steps(costs: np.ndarray, rows: int, step_order: np.ndarray) -> np.ndarray:
  """Groups bins of near-equal cost into steps of `rows` rows, whatever the number of ranks.

  Bins sorted by cost are cut into steps; the rows that are missing for whole steps are spread over
  the cheapest ones, one each as far as they reach. Within a step costly and cheap bins alternate,
  so that equal shares of the rows cost about the same.

  Args:
    costs: float64 [bins].
    rows: rows of a step.
    step_order: a permutation of the steps: place in the stream -> step by falling cost.
  Returns:
    int64 [bins]: the row of every bin, counted over all steps; rows that no bin takes are empty.
  """
  steps = len(step_order)
  missing = steps * rows - len(costs)
  sizes = rows - missing // steps - (np.arange(steps) >= steps - missing % steps)
  step = np.repeat(np.arange(steps), sizes)
  rank = np.arange(len(costs)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  row = np.where(rank < (rows + 1) // 2, 2 * rank, 2 * (rows - 1 - rank) + 1)
  place = np.empty(len(costs), np.int64)
  place[np.argsort(-costs, kind="stable")] = np.argsort(step_order)[step] * rows + row
  return place

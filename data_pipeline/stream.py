"""The stream of draws: which clip comes when, in an endless mixture of datasets.

Draw i of a stage is the j-th of one pool; draws j = pass * size .. of that pool show each of its
clips once, in an order of that pass. So a pool has exactly-once epochs of its own, whatever its
weight and however the stream is cut into windows. All of it is a pure function of a few numbers.
"""

import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np

from data_pipeline import hashing
from data_pipeline.errors import BadInput


class Purpose(enum.IntEnum):
  """Names the streams of the hash; a number never changes its meaning."""

  PERMUTATION = 1
  CAPTION = 2
  DROPOUT = 3
  STEP_ORDER = 4
  MIX = 5
  GIVEN = 6


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Pool:
  """Clips of one dataset that are drawn from: a split.

  Attributes:
    columns: index columns `f`, `h`, `w`, `caption_offsets` of a latent dataset, and as
      `caption_tokens` those of the tokenizer that is read.
    rows: rows of the index: integers [N], or a `range` from 0.
    weight: share of the draws, relative to the other pools'; positive.
    caption_weights: relative probability of a clip's first, second ... caption; the last number
      holds for all further ones. Empty: all alike.
    fingerprint: of the dataset.
  Raises:
    BadInput: no clip, or weights that are none.
  """

  columns: Mapping[str, np.ndarray]
  rows: np.ndarray | range
  weight: float = 1.0
  caption_weights: tuple[float, ...] = ()
  fingerprint: str = ""

  def __post_init__(self) -> None:
    if len(self.rows) == 0:
      raise BadInput("packing: clips=0, so there is nothing to pack. Choose a split with clips.")
    if not 0 < self.weight < float("inf"):
      raise BadInput(f"packing: weight={self.weight} of a dataset is not positive. Correct it.")
    weights = self.caption_weights
    if weights and not (min(weights) >= 0 and 0 < sum(weights) < float("inf")):
      raise BadInput(
        f"packing: caption_weights={weights} are no relative probabilities. Set none below 0, "
        "and some above."
      )

  def __len__(self) -> int:
    return len(self.rows)

  def select(self, places: np.ndarray) -> np.ndarray:
    """int64: rows of the index at places 0 .. N-1 of the pool."""
    return places if isinstance(self.rows, range) else self.rows[places].astype(np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
  """Successive draws of one pool: within one pass over it, or so many whole passes.

  Attributes:
    pool: number of the pool.
    counters: of the hash: seed, stage, number of the pass (of each draw, [n], or one), pool.
    record: int64 [n], rows of its index.
  """

  pool: int
  counters: tuple
  record: np.ndarray


class Mixture:
  """Pools by weight.

  An epoch of the mixture is as many draws as the pools have clips together: of a single pool, each
  clip once. With several it is but a measure: each pool passes over its clips at its own pace.
  """

  def __init__(self, pools: Sequence[Pool], *, seed: int, stage: int = 0) -> None:
    self.pools, self.seed, self.stage = tuple(pools), seed, stage
    self._weights = [Fraction(pool.weight) for pool in pools]

  @property
  def clips(self) -> int:
    """Draws of an epoch."""
    return sum(map(len, self.pools))

  def counts(self, position: int) -> list[int]:
    """Draws of each pool among the first `position`; each grows with it, and they add up to it.

    A pool has its share of the draws up to one: of what the pools before it leave.
    """
    counts, left, weight = [], position, sum(self._weights)
    for own in self._weights:
      counts.append(int(left * own / weight) if own < weight else left)
      left, weight = left - counts[-1], weight - own
    return counts

  def blocks(self, start: int, stop: int) -> Iterator[Block]:
    """The draws start .. stop-1, by pool and pass."""
    edges = zip(self.counts(start), self.counts(stop), strict=True)
    for number, (pool, (first, last)) in enumerate(zip(self.pools, edges, strict=True)):
      size = len(pool)
      while first < last:
        (turn, place), turns = divmod(first, size), (last - first) // size
        if place == 0 and turns > 1:
          yield self._passes(number, turn, turns)
          first += turns * size
          continue
        end = min(size, place + last - first)
        counters = self.seed, self.stage, turn, number
        places = hashing.permuted(size, place, end, Purpose.PERMUTATION, *counters)
        yield Block(number, counters, pool.select(places))
        first += end - place

  def _passes(self, number: int, turn: int, turns: int) -> Block:
    """Whole passes of a pool that is small beside the window."""
    pool = self.pools[number]
    turn_of = np.arange(turn, turn + turns)
    if len(pool) > hashing.SORTED:  # few passes, each of many clips
      orders = [
        hashing.permuted(
          len(pool), 0, len(pool), Purpose.PERMUTATION, self.seed, self.stage, t, number
        )
        for t in turn_of.tolist()
      ]
      places = np.concatenate(orders)
    else:
      counters = Purpose.PERMUTATION, self.seed, self.stage, turn_of[:, None], number
      places = np.argsort(hashing.hash64(*counters, np.arange(len(pool))), axis=1, kind="stable")
    counters = self.seed, self.stage, np.repeat(turn_of, len(pool)), number
    return Block(number, counters, pool.select(places.ravel()))

  def windows(self, window_clips: int) -> int:
    """Windows that an epoch is cut into, of at most `window_clips` draws and equal to one."""
    return -(-self.clips // window_clips)

  def window_edges(self, epoch: int, window: int, window_clips: int) -> tuple[int, int]:
    """First draw of a window, and of the one after it."""
    windows = self.windows(window_clips)
    first, last = (self.clips * w // windows for w in (window, window + 1))
    return epoch * self.clips + first, epoch * self.clips + last

"""The pack plan: which clip, with which caption, goes into which bin, before anything is read.

A pure function of (mixture, settings, epoch, window): the same on every machine and in any order of
calls. A window is a slice of the stage's stream of draws (`data_pipeline.stream`), small enough to
be planned in seconds however large the data; every draw is in exactly one bin of its window.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping

import numpy as np

from data_pipeline import bins, hashing
from data_pipeline.errors import BadInput
from data_pipeline.stream import Block, Mixture, Pool, Purpose
from data_pipeline.tokens import Totals

VERSION = 2  # of the plan: raised whenever the same input gives another plan
WINDOW_CLIPS = 2**20  # planned in about 3 s, within 1 GB

_CHUNK = 2**20  # rows of the index looked at at once


def cost_of(width: int) -> tuple[float, float]:
  """Cost of a token and of a squared segment length, for a transformer of width d.

  A layer takes 12 d² multiply-adds a token (attention's and the MLP's products) and 2 d for each
  pair of tokens of a segment.
  """
  return 1.0, 1 / (6 * width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackSettings:
  """What shapes the plan besides the data and the seed.

  Attributes:
    slots: n, token slots of a bin. The longest segment with its longest caption has to fit: it is
      never cut, and never left out.
    caption_slots: m, caption tokens of a bin.
    segments: s, segments of a bin. Its noise levels are u = s + 1: one a segment, and t = 0.
    rows: b, bins of a step.
    patch: latents a patch covers, (pt, ph, pw).
    caption_dropout: probability that a caption is dropped, in [0, 1].
    cost: of a token and of a squared segment length (`cost_of`); steps are groups of bins of
      near-equal cost.
    window_clips: draws that are planned together, at most.
  """

  slots: int
  caption_slots: int
  segments: int
  rows: int
  patch: tuple[int, int, int]
  caption_dropout: float
  cost: tuple[float, float]
  window_clips: int = WINDOW_CLIPS

  def __post_init__(self) -> None:
    for name in ("slots", "caption_slots", "segments", "rows", "window_clips"):
      if getattr(self, name) < 1:
        raise BadInput(f"packing: {name}={getattr(self, name)} is below 1. Raise data.{name}.")
    if len(self.patch) != 3 or not all(isinstance(k, int) and k >= 1 for k in self.patch):
      raise BadInput(
        f"packing: patch={self.patch} is not three whole sides (frames, rows, columns) of at least "
        "1. Correct the patch."
      )
    if not 0 <= self.caption_dropout <= 1:
      raise BadInput(
        f"packing: caption_dropout={self.caption_dropout} is no probability. Set it in [0, 1]."
      )


@dataclasses.dataclass(frozen=True)
class Bin:
  """Segments of one row, in order. All arrays int64 [segments].

  Attributes:
    pool: number of the dataset in the mixture.
    record: rows of its index.
    caption: number of the caption among the clip's; -1 when dropped.
    draw: place of the segment in the stage's stream.
  """

  pool: np.ndarray
  record: np.ndarray
  caption: np.ndarray
  draw: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """Bins of one window, in the order of the stream.

  Attributes:
    settings: as given.
    identity: datasets, seed, stage, epoch, window: what the plan is a function of.
    offsets: int64 [steps * rows + 1], bin i holds the segments offsets[i] .. offsets[i+1].
    pool, record, caption, patches, caption_tokens: int64 [N], by segment in stream order; caption
      is -1 when dropped.
    first_draw: draw index of the first segment.
  """

  settings: PackSettings
  identity: dict
  offsets: np.ndarray
  pool: np.ndarray
  record: np.ndarray
  caption: np.ndarray
  patches: np.ndarray
  caption_tokens: np.ndarray
  first_draw: int

  @property
  def steps(self) -> int:
    return (len(self.offsets) - 1) // self.settings.rows

  @property
  def tokens(self) -> int:
    """Slots that hold something."""
    return int(self.patches.sum() + self.caption_tokens.sum())

  @property
  def fill(self) -> float:
    """Share of all slots that holds something, the empty rows of unfinished steps included."""
    return self.tokens / ((len(self.offsets) - 1) * self.settings.slots)

  @functools.cached_property
  def costs(self) -> np.ndarray:
    """float64 [steps, rows]: cost of every bin."""
    lengths = self.patches + self.caption_tokens
    bin_of = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
    weights = _segment_costs(lengths, self.settings.cost)
    costs = np.bincount(bin_of, weights, minlength=len(self.offsets) - 1)
    return costs.reshape(self.steps, self.settings.rows)

  def bin(self, i: int) -> Bin:
    """Bin i, counted over the rows of all steps: row i % rows of step i // rows."""
    start, stop = int(self.offsets[i]), int(self.offsets[i + 1])
    return Bin(
      self.pool[start:stop],
      self.record[start:stop],
      self.caption[start:stop],
      self.first_draw + np.arange(start, stop),
    )

  def totals(self, step: int) -> Totals:
    """What all rows of a step hold."""
    first, last = (int(self.offsets[i * self.settings.rows]) for i in (step, step + 1))
    patches, captions = self.patches[first:last], self.caption_tokens[first:last]
    return Totals(
      patches=int(patches.sum()),
      captions=int(captions.sum()),
      squares=float(np.sum((patches + captions).astype(np.float64) ** 2)),
      clips=last - first,
      slots=self.settings.rows * self.settings.slots,
    )

  def imbalance(self, ranks: int) -> float:
    """Cost of the slowest of `ranks` equal shares of a step over the mean share, minus 1, averaged.

    Raises:
      BadInput: when `ranks` does not divide the rows of a step.
    """
    rows = self.settings.rows
    if ranks < 1 or rows % ranks:
      raise BadInput(
        f"imbalance: ranks={ranks} does not divide rows={rows}. Choose a divisor, or set data.rows."
      )
    shares = self.costs.reshape(self.steps, ranks, rows // ranks).sum(axis=2)
    return float((shares.max(axis=1) / shares.mean(axis=1)).mean() - 1)

  def fingerprint(self) -> str:
    """sha256 of the plan's output and of what it is a function of."""
    digest = hashlib.sha256()
    facts = {"version": VERSION, **self.identity, **dataclasses.asdict(self.settings)}
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name in ("offsets", "pool", "record", "caption", "patches", "caption_tokens"):
      digest.update(getattr(self, name).astype("<i8").tobytes())
    return digest.hexdigest()


def plan_window(mixture: Mixture, settings: PackSettings, *, epoch: int, window: int) -> Plan:
  """Plans one window.

  Args:
    mixture: what is drawn, in which order.
    settings: capacities and the rest.
    epoch: of the mixture, counted from 0 within the stage.
    window: of the epoch, below `mixture.windows(settings.window_clips)`.
  Raises:
    BadInput: no such window; a side that the patch does not divide; a clip or caption longer than a
      bin.
  """
  windows = mixture.windows(settings.window_clips)
  if not 0 <= window < windows:
    raise BadInput(f"packing: window={window} is not below {windows}. Resume as the run was.")
  start, stop = mixture.window_edges(epoch, window, settings.window_clips)
  drawn = _draw(mixture, settings, start, stop)
  lengths = drawn["patches"] + drawn["caption_tokens"]
  bin_of = bins.pack(
    lengths,
    drawn["caption_tokens"],
    slots=settings.slots,
    caption_slots=settings.caption_slots,
    segments=settings.segments,
    rows=settings.rows,
  )
  costs = np.bincount(bin_of, _segment_costs(lengths, settings.cost))
  steps = -(-len(costs) // settings.rows)
  counters = mixture.seed, mixture.stage, epoch, window
  step_order = hashing.permutation(steps, Purpose.STEP_ORDER, *counters)
  place = bins.place_in_steps(costs, settings.rows, step_order)[bin_of]
  order = np.argsort(place, kind="stable")  # within a bin in the order of the draws: at random
  counts = np.bincount(place, minlength=steps * settings.rows)
  return Plan(
    settings=settings,
    identity=dict(
      datasets=[[p.fingerprint, p.weight, list(p.caption_weights)] for p in mixture.pools],
      **dict(zip(("seed", "stage", "epoch", "window"), counters, strict=True)),
    ),
    offsets=np.concatenate([[0], np.cumsum(counts)]),
    first_draw=start,
    **{name: column[order] for name, column in drawn.items()},
  )


def _draw(mixture: Mixture, settings: PackSettings, start: int, stop: int) -> dict:
  """int64 [N] by name: pool, record, caption, patches and caption tokens of every draw."""
  parts = []
  for block in mixture.blocks(start, stop):
    pool = mixture.pools[block.pool]
    patches = _count_patches(pool.columns, block.record, settings.patch)
    caption, caption_tokens = _choose_captions(pool, block, settings.caption_dropout)
    _check_fits(block.record, patches, caption_tokens, settings)
    number = np.full(len(patches), block.pool)
    parts.append((number, block.record, caption, patches, caption_tokens))
  columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
  if len(parts) > 1:  # pools and passes come one after the other
    mixed = hashing.permutation(
      stop - start, Purpose.MIX, mixture.seed, mixture.stage, start
    )
    columns = [column[mixed] for column in columns]
  names = ("pool", "record", "caption", "patches", "caption_tokens")
  return dict(zip(names, columns, strict=True))


def _count_patches(columns: Mapping, records: np.ndarray | range, patch) -> np.ndarray:
  """int64 [N]: patches of each clip."""
  count = np.ones(len(records), np.int64)
  for name, part in zip("fhw", patch, strict=True):
    sides = _at(columns[name], records)
    if part > 1 and np.any(sides % part):
      worst = min(int(records[i]) for i in np.flatnonzero(sides % part))
      raise BadInput(
        f"packing: {name}={int(columns[name][worst])} of clip row {worst} is not a multiple of its "
        f"patch side {part} (patch {tuple(patch)}). Crop the clip, or set patch=(1,1,1)."
      )
    count *= sides // part
  return count


def _at(column: np.ndarray, records: np.ndarray | range) -> np.ndarray:
  """Items of a column; a range is a slice, which costs a tenth."""
  return column[records.start : records.stop] if isinstance(records, range) else column[records]


def _choose_captions(pool: Pool, block: Block, dropout: float) -> tuple[np.ndarray, np.ndarray]:
  """int64 [N] twice: the caption chosen for each clip (-1: dropped), and the slots that it takes.

  A clip without captions, or whose caption has no tokens, is trained without: as if dropped.
  """
  offsets, records = pool.columns["caption_offsets"], block.record
  first = offsets[records].astype(np.int64)
  count = offsets[records + 1].astype(np.int64) - first
  draw = hashing.uniform(Purpose.CAPTION, *block.counters, records)
  choice = _pick(draw, count, pool.caption_weights)
  tokens = np.zeros(len(records), np.int64)
  some = count > 0
  tokens[some] = pool.columns["caption_tokens"][first[some] + choice[some]]
  dropped = hashing.uniform(Purpose.DROPOUT, *block.counters, records) < dropout
  dropped |= tokens == 0
  return np.where(dropped, -1, choice), np.where(dropped, 1, tokens)


def _pick(draw: np.ndarray, count: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
  """int64: a number below `count` for a draw in [0, 1), with the given relative probabilities."""
  most = int(count.max(initial=0))
  if not weights or most < 2:
    return (draw * count).astype(np.int64)
  table = np.cumsum([*weights[:most], *[weights[-1]] * (most - len(weights))])
  choice = np.searchsorted(table, draw * table[np.maximum(count, 1) - 1], side="right")
  return np.minimum(choice, np.maximum(count, 1) - 1)


def check_fit(pool: Pool, settings: PackSettings) -> None:
  """Refuses before training what would not fit in some epoch, whichever caption is chosen then.

  Raises:
    BadInput: a side that the patch does not divide; a clip or caption longer than a bin.
  """
  words = pool.columns["caption_tokens"]
  longest = max((int(words[i : i + _CHUNK].max()) for i in range(0, len(words), _CHUNK)), default=1)
  for start in range(0, len(pool), _CHUNK):
    records = pool.rows[start : start + _CHUNK]
    patches = _count_patches(pool.columns, records, settings.patch)
    if longest > settings.caption_slots or patches.max() + max(longest, 1) > settings.slots:
      _check_fits(records, patches, _longest_captions(pool.columns, records), settings)


def _longest_captions(columns: Mapping, records: np.ndarray | range) -> np.ndarray:
  """int64 [N]: slots that the longest caption of each clip takes. `records` ascend."""
  low, high = int(records[0]), int(records[-1]) + 1
  offsets = np.asarray(columns["caption_offsets"][low : high + 1], np.int64)
  tokens = np.asarray(columns["caption_tokens"][offsets[0] : offsets[-1]], np.int64)
  longest = np.zeros(high - low, np.int64)
  some = offsets[1:] > offsets[:-1]
  if some.any():
    longest[some] = np.maximum.reduceat(tokens, (offsets[:-1] - offsets[0])[some])
  chosen = longest if isinstance(records, range) else longest[records - low]
  return np.maximum(chosen, 1)


def _check_fits(records, patches, captions, settings: PackSettings) -> None:
  i = int(np.argmax(patches + captions))
  if patches[i] + captions[i] > settings.slots:
    raise BadInput(
      f"packing: clip row {records[i]} has {patches[i] + captions[i]} tokens "
      f"({patches[i]} patches, {captions[i]} caption tokens), more than slots={settings.slots}. "
      "Raise data.slots, or encode shorter renditions."
    )
  i = int(np.argmax(captions))
  if captions[i] > settings.caption_slots:
    raise BadInput(
      f"packing: clip row {records[i]} has a caption of {captions[i]} tokens, more than "
      f"caption_slots={settings.caption_slots}. Raise data.caption_slots, or shorten the caption."
    )


def _segment_costs(lengths: np.ndarray, cost: tuple[float, float]) -> np.ndarray:
  linear, square = cost
  return linear * lengths + square * lengths.astype(np.float64) ** 2

"""The pack plan: which clip, with which caption, goes into which bin, before anything is read.

A pure function of (index columns, seed, stage, epoch, window, settings): the same on every machine
and in any order of calls. A clip occurs exactly once an epoch. Randomness is the counter-based hash
of `data_pipeline.hashing`, a stream a purpose.
"""

import dataclasses
import enum
import functools
import hashlib
import json
from collections.abc import Mapping

import numpy as np

from data_pipeline import bins, hashing
from data_pipeline.errors import BadInput

VERSION = 1  # of the plan: raised whenever the same input gives another plan

# Of a token and of a squared segment: 12 d^2 against 2 d multiply-adds a layer, at width d = 768.
COST = (1.0, 1 / 4608)


class Purpose(enum.IntEnum):
  """Names the streams of the hash; a number never changes its meaning."""

  PERMUTATION = 1
  CAPTION = 2
  DROPOUT = 3
  STEP_ORDER = 4
  SEGMENT_ORDER = 5
  GIVEN = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackSettings:
  """What shapes the plan besides the data and the seed.

  Attributes:
    slots: n, token slots of a bin.
    caption_slots: m, caption tokens of a bin.
    segments: s, segments of a bin. Its noise levels are u = s + 1: one a segment, and t = 0.
    rows: b, bins of a step.
    patch: latents a patch covers, (pt, ph, pw).
    caption_dropout: probability that a caption is dropped, in [0, 1].
    cost: of a token and of a squared segment length; steps are groups of bins of near-equal cost.
  """

  slots: int
  caption_slots: int
  segments: int
  rows: int
  patch: tuple[int, int, int]
  caption_dropout: float
  cost: tuple[float, float] = COST

  def __post_init__(self) -> None:
    for name in ("slots", "caption_slots", "segments", "rows"):
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
    record: rows of the index.
    caption: number of the caption among the clip's; -1 when dropped.
    draw: place of the segment in the stage's stream.
  """

  record: np.ndarray
  caption: np.ndarray
  draw: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """Bins of one window of one epoch, in the order of the stream.

  Attributes:
    settings: as given.
    identity: dataset fingerprint, seed, stage, epoch, window: what the plan is a function of.
    offsets: int64 [steps * rows + 1], bin i holds the segments offsets[i] .. offsets[i+1].
    record, caption, patches, caption_tokens: int64 [N], by segment in stream order; caption is -1
      when dropped.
    first_draw: draw index of the first segment.
  """

  settings: PackSettings
  identity: dict
  offsets: np.ndarray
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
      self.record[start:stop],
      self.caption[start:stop],
      self.first_draw + np.arange(start, stop),
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
    for array in (self.offsets, self.record, self.caption, self.patches, self.caption_tokens):
      digest.update(array.astype("<i8").tobytes())
    return digest.hexdigest()


def plan_epoch(
  columns: Mapping[str, np.ndarray],
  records: np.ndarray,
  settings: PackSettings,
  *,
  seed: int,
  epoch: int,
  stage: int = 0,
  window: int = 0,
  dataset: str = "",
) -> Plan:
  """Plans one epoch of data that fits one window.

  Args:
    columns: index columns `f`, `h`, `w`, `caption_offsets`, `caption_tokens` of a latent dataset.
    records: int64 [N], rows of the index to use: a split.
    settings: capacities and the rest.
    seed: of the run.
    epoch: counted from 0 within the stage.
    stage: number of the stage; another stage has another order and other captions.
    window: slice of the epoch's permutation; 0, as the data fits one.
    dataset: the dataset's fingerprint, for the plan's own.
  Raises:
    BadInput: no clip; a side that the patch does not divide; a clip or caption longer than a bin.
  """
  if window != 0:
    raise BadInput(f"packing: window={window}, but the data fits one. Resume at window 0.")
  if len(records) == 0:
    raise BadInput("packing: clips=0, so there is nothing to pack. Choose a split with clips.")
  counters = seed, stage, epoch, window
  records = records[hashing.permutation(len(records), Purpose.PERMUTATION, *counters)]
  patches = _count_patches(columns, records, settings)
  _check_longest(columns, records, patches, settings)
  caption, caption_tokens = _choose_captions(columns, records, settings, counters)
  lengths = patches + caption_tokens
  bin_of = bins.pack(
    lengths,
    caption_tokens,
    slots=settings.slots,
    caption_slots=settings.caption_slots,
    segments=settings.segments,
    rows=settings.rows,
  )
  costs = np.bincount(bin_of, _segment_costs(lengths, settings.cost))
  steps = -(-len(costs) // settings.rows)
  step_order = hashing.permutation(steps, Purpose.STEP_ORDER, *counters)
  place = bins.place_in_steps(costs, settings.rows, step_order)[bin_of]
  order = np.lexsort((hashing.hash64(Purpose.SEGMENT_ORDER, *counters, records), place))
  counts = np.bincount(place, minlength=steps * settings.rows)
  return Plan(
    settings=settings,
    identity=dict(dataset=dataset, seed=seed, stage=stage, epoch=epoch, window=window),
    offsets=np.concatenate([[0], np.cumsum(counts)]),
    record=records[order],
    caption=caption[order],
    patches=patches[order],
    caption_tokens=caption_tokens[order],
    first_draw=epoch * len(records),
  )


def _count_patches(columns, records: np.ndarray, settings: PackSettings) -> np.ndarray:
  """int64 [N]: patches of each clip."""
  count = np.ones(len(records), np.int64)
  for name, part in zip("fhw", settings.patch, strict=True):
    sides = columns[name][records].astype(np.int64)
    if np.any(sides % part):
      worst = int(records[sides % part != 0].min())
      raise BadInput(
        f"packing: {name}={int(columns[name][worst])} of clip row {worst} is not a multiple of its "
        f"patch side {part} (patch {settings.patch}). Crop the clip, or set patch=(1,1,1)."
      )
    count *= sides // part
  return count


def _check_longest(columns, records, patches, settings: PackSettings) -> None:
  """Refuses at once what would not fit in some epoch, whichever caption is chosen then."""
  offsets = np.asarray(columns["caption_offsets"], np.int64)
  longest = np.zeros(len(offsets) - 1, np.int64)
  some = offsets[1:] > offsets[:-1]
  longest[some] = np.maximum.reduceat(columns["caption_tokens"], offsets[:-1][some])
  captions = np.maximum(longest[records], 1)
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


def _choose_captions(columns, records, settings, counters) -> tuple[np.ndarray, np.ndarray]:
  """int64 [N] twice: the caption chosen for each clip (-1: dropped), and the slots that it takes.

  A clip without captions, or whose caption has no tokens, is trained without: as if dropped.
  """
  offsets = np.asarray(columns["caption_offsets"], np.int64)
  first, count = offsets[records], offsets[records + 1] - offsets[records]
  choice = (hashing.uniform(Purpose.CAPTION, *counters, records) * count).astype(np.int64)
  flat = np.concatenate([columns["caption_tokens"], [0]]).astype(np.int64)
  tokens = np.where(count > 0, flat[first + choice], 0)
  dropped = hashing.uniform(Purpose.DROPOUT, *counters, records) < settings.caption_dropout
  dropped |= tokens == 0
  return np.where(dropped, -1, choice), np.where(dropped, 1, tokens)


def _segment_costs(lengths: np.ndarray, cost: tuple[float, float]) -> np.ndarray:
  linear, square = cost
  return linear * lengths + square * lengths.astype(np.float64) ** 2

"""Packed host batches: a Grain MapDataset over the steps of an endless row of windows.

The only state is the cursor, a few numbers that are the same on every host; the content of a batch
is a pure function of (datasets, seed, settings, cursor).
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import grain
import numpy as np

from data_pipeline import packing
from data_pipeline.cursor import Cursor, Ranges, check_skips, jump, move
from data_pipeline.dataset import Dataset, choose_tokenizer
from data_pipeline.errors import BadInput
from data_pipeline.index import CAPTION_TOKENS
from data_pipeline.packing import PackSettings, Plan
from data_pipeline.plans import Plans, StepBins
from data_pipeline.row import RowReader
from data_pipeline.stream import Mixture, Pool
from data_pipeline.tokens import Totals

_PLANS_KEPT = 3  # of two windows between which the readers stand, and of the next
_FEW = 2**15  # clips: so few have short windows, of which every reading thread may be in another


def latent_batches(
  datasets: Sequence[Dataset],
  *,
  split: str,
  seed: int,
  slots: int,
  caption_slots: int,
  segments: int,
  rows: int,
  patch: tuple[int, int, int],
  caption_dropout: float,
  given_first_frame: float,
  text: str = "",
  weights: Sequence[float] = (),
  caption_weights: Sequence[Sequence[float]] = (),
  cost: tuple[float, float],
  window_clips: int = packing.WINDOW_CLIPS,
  skip_steps: Sequence[Sequence[int]] = (),
  cursor: Mapping | None = None,
  stage: int = 0,
  rank: int = 0,
  ranks: int = 1,
  threads: int = 2,
  prefetch: int = 4,
) -> "LatentBatches":
  """Endless packed batches of a split of one latent dataset, or of several mixed by weight.

  Args:
    datasets: open latent datasets, of one VAE and one text encoder.
    split: name of the split.
    seed: of the run.
    slots, caption_slots, segments, rows: n, m, s and b of a batch.
    patch: latents a patch covers, (pt, ph, pw).
    caption_dropout: probability that a segment is trained without its caption.
    given_first_frame: probability that the first frame of a video is given clean (level 0), as in
      image-to-video; a segment of a single frame never has it given.
    text: the text encoder whose caption ids and states are read; "" for the first of the first
      dataset.
    weights: relative share of the clips drawn that each dataset has; empty for shares in proportion
      to their clips. Whatever it is, a dataset shows each clip once before any a second time.
    caption_weights: of each dataset, the relative probability of a clip's first, second ...
      caption; empty for all alike.
    cost: of a token and of a squared segment length, for steps of near-equal cost.
    window_clips: clips that are planned together, at most.
    skip_steps: ranges [start, stop) of the stage's steps that are jumped over.
    cursor: where to go on, as `LatentBatches.cursor` said; None for the beginning of the stage.
    stage: number of the stage.
    rank, ranks: this host reads the rank-th of `ranks` equal shares of each step's rows.
    threads: that read and lay out batches.
    prefetch: batches kept ready.
  Raises:
    BadInput: a setting, the cursor or a clip that does not fit; datasets that do not go together.
  """
  (pt, ph, pw), (linear, square) = patch, cost
  settings = PackSettings(
    slots=slots,
    caption_slots=caption_slots,
    segments=segments,
    rows=rows,
    patch=(pt, ph, pw),
    caption_dropout=caption_dropout,
    cost=(linear, square),
    window_clips=window_clips,
  )
  text = choose_tokenizer(datasets, text)
  pools = make_pools(datasets, split, text, weights, caption_weights)
  for pool in pools:
    packing.check_fit(pool, settings)
  return LatentBatches(
    datasets,
    Mixture(pools, seed=seed, stage=stage),
    settings,
    text=text,
    split=split,
    given_first_frame=given_first_frame,
    skip_steps=skip_steps,
    cursor=cursor,
    share=(rank, ranks),
    threads=threads,
    prefetch=prefetch,
  )


def make_pools(
  datasets: Sequence[Dataset], split: str, text: str, weights=(), caption_weights=()
) -> list[Pool]:
  """The split of each dataset, with its weights; see `latent_batches`.

  Raises:
    BadInput: as many weights as datasets are wanted, or none; a dataset has no clip of the split.
  """
  for name, values in (("weights", weights), ("caption_weights", caption_weights)):
    if len(values) not in (0, len(datasets)):
      raise BadInput(
        f"loader: {name}={tuple(values)} are {len(values)} for {len(datasets)} datasets. "
        f"Give one for each in data.{name}, or none."
      )
  pools = []
  for i, dataset in enumerate(datasets):
    rows = _rows_of(dataset, split)
    pools.append(
      Pool(
        columns={**dataset.index, CAPTION_TOKENS: dataset.caption_tokens(text)},
        rows=rows,
        weight=float(weights[i]) if weights else float(len(rows)) or 1.0,
        caption_weights=tuple(map(float, caption_weights[i])) if caption_weights else (),
        fingerprint=dataset.fingerprint,
      )
    )
  return pools


def _rows_of(dataset: Dataset, split: str) -> np.ndarray | range:
  """Rows of a split, in as little memory as they take."""
  if set(dataset.splits) == {split}:
    return range(len(dataset))
  rows = dataset.indices(split)
  return rows.astype(np.min_scalar_type(len(dataset)))


class LatentBatches:
  """Iterator of packed batches (docs/architecture.md, "The packed batch") that knows its place."""

  def __init__(
    self,
    datasets: Sequence[Dataset],
    mixture: Mixture,
    settings: PackSettings,
    *,
    text: str,
    split: str,
    given_first_frame: float,
    skip_steps: Sequence[Sequence[int]],
    cursor: Mapping | None,
    share: tuple[int, int],
    threads: int,
    prefetch: int,
  ) -> None:
    self._settings, self._mixture = settings, mixture
    self._facts = dict(split=split, given_first_frame=given_first_frame, text=text)
    self._windows = mixture.windows(settings.window_clips)
    many = mixture.clips > _FEW
    kept = _PLANS_KEPT if many else threads + _PLANS_KEPT
    self._plans = Plans(self._make_plan, kept)
    self._cursor, self._ahead = self._start(cursor, skip_steps)
    here = self._cursor.bin // settings.rows
    origin = self._cursor.position - here  # step of the stream that begins the window
    bins = StepBins(
      self._plans,
      self._cursor.epoch * self._windows + self._cursor.window,
      settings.rows,
      share,
      [(start - origin, stop - origin) for start, stop in self._ahead],
    )
    reader = RowReader(datasets, text, settings, given_first_frame, (mixture.seed, mixture.stage))
    read = lambda step: (reader.read_step(step[0]), step[1])  # noqa: E731
    steps = grain.MapDataset.source(bins).map(read)[here:]
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    self._steps = iter(steps.to_iter_dataset(reading))

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    batch, self._totals = next(self._steps)
    next_one = self._move(self._cursor, 1)
    self._cursor = self._jump(dataclasses.replace(next_one, step=self._cursor.step + 1))
    return batch

  @property
  def cursor(self) -> dict:
    """JSON-able position after the last batch returned, see `data_pipeline.cursor.Cursor`."""
    return self._cursor.to_json()

  @property
  def totals(self) -> Totals:
    """What the step of the last batch returned holds, other hosts' rows included."""
    return self._totals

  @property
  def facts(self) -> dict:
    """JSON-able: what decides the stream, by name, with the hash of the plan of its beginning."""
    plan = self._plans(0)
    settings = {**dataclasses.asdict(self._settings), **self._facts, **plan.identity}
    facts = settings | {"version": packing.VERSION, "plan": plan.fingerprint()}
    return json.loads(json.dumps(facts))

  @property
  def fingerprint(self) -> str:
    """sha256 of `facts`: two loaders with the same one make the same stream."""
    return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()

  def plan(self, epoch: int, window: int = 0) -> Plan:
    return self._plans(epoch * self._windows + window)

  def close(self) -> None:
    """Ends the reading threads, and begins no more plans."""
    self._plans.is_closed = True
    self._steps.close()

  def _make_plan(self, number: int) -> Plan:
    epoch, window = divmod(number, self._windows)
    return packing.plan_window(self._mixture, self._settings, epoch=epoch, window=window)

  def _start(self, values: Mapping | None, skip_steps) -> tuple[Cursor, Ranges]:
    """Where to begin, and the ranges to jump over from there on."""
    stage = self._mixture.stage
    cursor = Cursor(stage=stage) if values is None else Cursor.from_json(values, stage)
    rows = self._settings.rows
    if cursor.window >= self._windows:
      raise BadInput(
        f"loader: window={cursor.window} of the cursor is not below {self._windows}. "
        "Set data.window_clips and the datasets as the run had."
      )
    steps = self._plans.steps(cursor.epoch * self._windows + cursor.window)
    if cursor.bin % rows or cursor.bin >= steps * rows:
      raise BadInput(
        f"loader: bin={cursor.bin} of the cursor begins no step of rows={rows} in a window of "
        f"{steps} steps. Set data.rows and the datasets as the run had."
      )
    self._ahead = check_skips(skip_steps, cursor)
    cursor = self._jump(cursor)
    return cursor, tuple(part for part in self._ahead if part not in cursor.skipped)

  def _move(self, cursor: Cursor, steps: int) -> Cursor:
    rows, windows = self._settings.rows, self._windows
    return move(cursor, steps, self._plans, rows=rows, windows=windows)

  def _jump(self, cursor: Cursor) -> Cursor:
    rows, windows = self._settings.rows, self._windows
    return jump(cursor, self._ahead, self._plans, rows=rows, windows=windows)

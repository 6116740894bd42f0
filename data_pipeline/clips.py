"""Input of the VAE: windows of one shape, cut at random from clips of any shape.

Element i of the stream is a pure function of (dataset, settings, seed, stage, i): epoch i // n
shows each of the n clips that are large enough once, in an order of its own, and the last batch of
an epoch runs on into the next. So a place in the stream is a number, and resuming is slicing.
"""

import enum
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping

import grain
import numpy as np

from data_pipeline import hashing
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.rgb import Area
from data_pipeline.tokens import Totals
from data_pipeline.video import window_of

VERSION = 1  # of the stream: raised whenever the same settings give other windows
_ENDLESS = 2**60  # elements: more than any run reads, and a length that Python takes
_KEPT = 2  # epochs whose order is remembered: prefetching looks at two at once
_log = logging.getLogger(__name__)


class _Draw(enum.IntEnum):
  """Names the streams of the hash; apart from those of `packing.Purpose`."""

  ORDER = 101
  FRAME = 102
  TOP = 103
  LEFT = 104


def clip_batches(
  dataset: Dataset,
  *,
  split: str,
  rows: int,
  frames: int,
  height: int,
  width: int,
  seed: int,
  cursor: Mapping | None = None,
  stage: int = 0,
  rank: int = 0,
  ranks: int = 1,
  threads: int = 2,
  prefetch: int = 4,
) -> "ClipBatches":
  """Endless batches of windows of a split of a clip dataset.

  Clips shorter or smaller than the window are left out, with a warning.

  Args:
    dataset: of clips, open.
    split: name of the split.
    rows: windows of a batch, over all ranks.
    frames, height, width: of a window.
    seed: of the run.
    cursor: where to go on, as `ClipBatches.cursor` said; None for the beginning of the stage.
    stage: number of the stage.
    rank, ranks: this host reads the rank-th of `ranks` equal shares of every batch.
    threads: that read and cut.
    prefetch: batches kept ready.
  Raises:
    BadInput: no clip fits the window, or a setting or the cursor does not fit.
  """
  sizes = dict(rows=rows, frames=frames, height=height, width=width, threads=threads)
  for name, value in sizes.items():
    if value < 1:
      raise BadInput(f"clips: {name}={value} is below 1. Raise it.")
  if not 0 <= rank < ranks or rows % ranks:
    raise BadInput(
      f"clips: ranks={ranks} does not divide rows={rows}, or holds no rank={rank}. Set data.rows."
    )
  facts = {
    "version": VERSION,
    "dataset": dataset.fingerprint,
    "split": split,
    "rows": rows,
    "window": [frames, height, width],
    "seed": seed,
    "stage": stage,
  }
  windows = _Windows(dataset, split, (frames, height, width), (seed, stage))
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
  return ClipBatches(windows, facts, cursor=cursor, share=(rank, ranks), read_options=options)


class ClipBatches:
  """Iterator of `video` uint8 [b,F,H,W,3], `draw` uint32 [b,2], `record` int64 [b].

  `draw` is the place of the window in the stage's stream, (high, low) words; `record` the row of
  the index.

  Attributes:
    facts: JSON-able: what decides the stream, by name.
    clips: in an epoch.
  """

  def __init__(
    self,
    windows: "_Windows",
    facts: dict,
    *,
    cursor: Mapping | None,
    share: tuple[int, int],
    read_options: grain.ReadOptions,
  ):
    self.choose = windows.choose  # of the window at a place in the stream
    self.facts, self.clips = facts, windows.clips
    self._rows, self._stage = facts["rows"], facts["stage"]
    self._step = 0 if cursor is None else self._check_cursor(cursor)
    places = _Places(self._rows, *share)
    elements = grain.MapDataset.source(places).map(windows.read)
    batches = elements.batch(places.rows, drop_remainder=True)[self._step :]
    self._batches = iter(batches.to_iter_dataset(read_options))

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._batches)
    self._step += 1
    return batch

  @property
  def cursor(self) -> dict:
    """JSON-able position after the last batch returned.

    `step`: batches since the stage began; `epoch`, `bin`: the next window is the bin-th of that
    epoch; `window`: 0, the data is one window of the index.
    """
    epoch, place = divmod(self._step * self._rows, self.clips)
    return {"stage": self._stage, "epoch": epoch, "window": 0, "bin": place, "step": self._step}

  @property
  def totals(self) -> Totals:
    """What a step holds, other hosts' rows included: windows, which are no tokens yet."""
    return Totals(0, 0, 0.0, clips=self._rows, slots=0)

  @property
  def fingerprint(self) -> str:
    """sha256 of `facts`: two streams with the same one are the same."""
    return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()

  def close(self) -> None:
    """Ends the reading threads."""
    self._batches.close()

  def _check_cursor(self, cursor: Mapping) -> int:
    """The step of a cursor, if it is one of this stream."""
    self._step = int(cursor.get("step", -1))
    if self._step < 0 or self.cursor != dict(cursor):
      raise BadInput(
        f"clips: cursor={dict(cursor)} is not a place in a stream of {self.clips} clips at "
        f"rows={self._rows} in stage {self._stage}. Set data and rows as the run had them."
      )
    return self._step


class _Places:
  """Places in the stream of this rank's share of every batch, end to end."""

  def __init__(self, step_rows: int, rank: int, ranks: int):
    self._step_rows = step_rows
    self.rows = step_rows // ranks
    self._first = rank * self.rows

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> int:
    step, row = divmod(index, self.rows)
    return step * self._step_rows + self._first + row


class _Windows:
  """Cuts the window of a place in the stream. Safe to call from any thread."""

  def __init__(
    self, dataset: Dataset, split: str, shape: tuple[int, int, int], counters: tuple[int, int]
  ):
    self._dataset, self._shape, self._counters = dataset, shape, counters
    self._records = _find_fitting(dataset, split, shape)
    self._orders: dict[int, np.ndarray] = {}

  @property
  def clips(self) -> int:
    return len(self._records)

  def choose(self, place: int) -> tuple[int, tuple[int, ...]]:
    """Row of the index of a place, and first frame, top and left of its window."""
    epoch, i = divmod(place, self.clips)
    row = int(self._records[self._order(epoch)[i]])
    draws = (_Draw.FRAME, _Draw.TOP, _Draw.LEFT)
    wholes = (int(self._dataset.index[side][row]) for side in ("frames", "height", "width"))
    return row, tuple(
      self._start(draw, place, whole - side + 1)
      for side, whole, draw in zip(self._shape, wholes, draws, strict=True)
    )

  def read(self, place: int) -> dict[str, np.ndarray]:
    """One element: `video` [F,H,W,3], `draw` [2], `record` []."""
    row, (first, top, left) = self.choose(place)
    video = self._dataset.read(row).video
    frames, height, width = self._shape
    area = Area(top, left, height, width)
    return {
      "video": np.ascontiguousarray(window_of(video, first, first + frames, area)),
      "draw": np.array(divmod(place, 2**32), np.uint32),
      "record": np.array(row, np.int64),
    }

  def _start(self, draw: _Draw, place: int, choices: int) -> int:
    """Uniform over `choices` places for the window along one axis."""
    return int(hashing.uniform(draw, *self._counters, place) * choices)

  def _order(self, epoch: int) -> np.ndarray:
    """Order of an epoch's clips. Two threads may both make it: it is the same one."""
    order = self._orders.get(epoch)
    if order is None:
      order = hashing.permutation(self.clips, _Draw.ORDER, *self._counters, epoch)
      kept = {e: o for e, o in list(self._orders.items()) if e > epoch - _KEPT}
      self._orders = kept | {epoch: order}
    return order


def _find_fitting(dataset: Dataset, split: str, shape: tuple[int, int, int]) -> np.ndarray:
  """int64: rows of the split's clips that the window fits into."""
  if dataset.kind != "clip":
    raise BadInput(
      f"clips: {dataset.path} holds {dataset.kind} records. Give a dataset of clips (sora data)."
    )
  rows = dataset.indices(split)
  sides = np.stack([dataset.index[side][rows] for side in ("frames", "height", "width")], axis=1)
  fits = (sides >= shape).all(axis=1)
  window = f"{shape[0]} frames of {shape[2]}x{shape[1]}"
  if not fits.any():
    most = "x".join(map(str, sides.max(axis=0))) if len(rows) else "none"
    raise BadInput(
      f"clips: none of the {len(rows)} clips of split={split!r} in {dataset.path} holds a window "
      f"of {window} (largest frames x height x width: {most}). Make the window smaller."
    )
  if not fits.all():
    _log.warning(
      "clips: %d of %d clips of split %s are shorter or smaller than %s and are left out",
      *(len(rows) - fits.sum(), len(rows), split, window),
    )
  return rows[fits]

"""Packed host batches: a Grain MapDataset over the bins of an endless row of epochs.

The only state is the cursor, a few numbers that are the same on every host; the content of a batch
is a pure function of (dataset, seed, settings, cursor).
"""

import bisect
import dataclasses
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future

import grain
import numpy as np

from data_pipeline import packing, tokens
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.packing import PackSettings, Plan
from data_pipeline.row import RowReader

_PLANS_KEPT = 3  # of two epochs between which the readers stand, and of the next
_FEW = 2**15  # records: so few have short epochs, of which every reading thread may be in another
_ENDLESS = 2**60  # bins: more than any run reads, and a length that Python takes


def latent_batches(
  dataset: Dataset,
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
  cost: tuple[float, float] = packing.COST,
  cursor: Mapping | None = None,
  stage: int = 0,
  rank: int = 0,
  ranks: int = 1,
  threads: int = 2,
  prefetch: int = 4,
) -> "LatentBatches":
  """Endless packed batches of a split of a latent dataset.

  Args:
    dataset: an open latent dataset.
    split: name of the split.
    seed: of the run.
    slots, caption_slots, segments, rows: n, m, s and b of a batch.
    patch: latents a patch covers, (pt, ph, pw).
    caption_dropout: probability that a segment is trained without its caption.
    given_first_frame: probability that the first frame of a video is given clean (level 0), as in
      image-to-video; a segment of a single frame never has it given.
    cost: of a token and of a squared segment length, for steps of near-equal cost.
    cursor: where to go on, as `LatentBatches.cursor` said; None for the beginning of the stage.
    stage: number of the stage.
    rank, ranks: this host reads the rank-th of `ranks` equal shares of each step's rows.
    threads: that read and lay out batches.
    prefetch: batches kept ready.
  Raises:
    BadInput: a setting, the cursor or a clip that does not fit.
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
  )
  return LatentBatches(
    dataset,
    settings,
    split=split,
    seed=seed,
    stage=stage,
    given_first_frame=given_first_frame,
    cursor=cursor,
    share=(rank, ranks),
    threads=threads,
    prefetch=prefetch,
  )


class LatentBatches:
  """Iterator of packed batches (docs/architecture.md, "The packed batch") that knows its place."""

  def __init__(
    self,
    dataset: Dataset,
    settings: PackSettings,
    *,
    split: str,
    seed: int,
    stage: int,
    given_first_frame: float,
    cursor: Mapping | None,
    share: tuple[int, int],
    threads: int,
    prefetch: int,
  ) -> None:
    records = np.asarray(dataset.indices(split), np.int64)
    self._settings = settings
    self._facts = dict(
      dataset=dataset.fingerprint,
      split=split,
      seed=seed,
      stage=stage,
      given_first_frame=given_first_frame,
    )

    def make_plan(epoch: int) -> Plan:
      return packing.plan_epoch(
        dataset.index,
        records,
        settings,
        seed=seed,
        epoch=epoch,
        stage=stage,
        dataset=dataset.fingerprint,
      )

    kept = _PLANS_KEPT if len(records) > _FEW else threads + _PLANS_KEPT
    self._plans = _Plans(make_plan, kept)
    self._cursor = self._check_cursor(cursor or first_cursor(stage), stage)
    bins = _Bins(self._plans, self._cursor["epoch"], settings.rows, share)
    reader = RowReader(dataset, settings, given_first_frame, counters=(seed, stage))
    steps = grain.MapDataset.source(bins).map(reader.read)
    steps = steps.batch(bins.rows, drop_remainder=True, batch_fn=tokens.stack_rows)
    steps = steps[self._cursor["bin"] // settings.rows :]
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    self._steps = iter(steps.to_iter_dataset(reading))

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._steps)
    now = self._cursor
    end = now["bin"] + self._settings.rows
    if end == self._plans.steps(now["epoch"]) * self._settings.rows:
      now, end = now | {"epoch": now["epoch"] + 1}, 0
    self._cursor = now | {"bin": end, "step": now["step"] + 1}
    return batch

  @property
  def cursor(self) -> dict:
    """JSON-able position after the last batch returned.

    `epoch`, `window`, `bin`: the next bin to read; `step`: batches returned since the stage began;
    `skipped`: ranges that were jumped over, kept for the record.
    """
    return self._cursor | {"skipped": list(self._cursor["skipped"])}

  @property
  def facts(self) -> dict:
    """JSON-able: what decides the stream, by name, with the hash of the plan of epoch 0."""
    settings = dataclasses.asdict(self._settings)
    plan = {"version": packing.VERSION, "plan": self._plans(0).fingerprint()}
    return json.loads(json.dumps(self._facts | settings | plan))

  @property
  def fingerprint(self) -> str:
    """sha256 of `facts`: two loaders with the same one make the same stream."""
    return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()

  def plan(self, epoch: int) -> Plan:
    return self._plans(epoch)

  def close(self) -> None:
    """Ends the reading threads, and begins no more plans."""
    self._plans.is_closed = True
    self._steps.close()

  def _check_cursor(self, cursor: Mapping, stage: int) -> dict:
    wanted = first_cursor(stage)
    if set(cursor) != set(wanted) or cursor["stage"] != stage or cursor["window"] != 0:
      raise BadInput(
        f"loader: cursor={dict(cursor)} is not one of stage {stage} (such as {wanted}). "
        "Resume from the run's own checkpoint."
      )
    rows = self._settings.rows
    if cursor["bin"] % rows or cursor["bin"] >= self._plans.steps(cursor["epoch"]) * rows:
      raise BadInput(
        f"loader: bin={cursor['bin']} of the cursor begins no step of rows={rows} in an epoch of "
        f"{self._plans.steps(cursor['epoch'])} steps. Set data.rows and the dataset as the run had."
      )
    return dict(cursor)


def first_cursor(stage: int) -> dict:
  """The cursor at the beginning of a stage."""
  return {"stage": stage, "epoch": 0, "window": 0, "bin": 0, "step": 0, "skipped": []}


class _Plans:
  """Plans by epoch, each made once, when first asked for or ahead. Safe to call from any thread.

  Nobody waits but for the plan that is asked for. `kept` are kept: the most recently used.
  """

  def __init__(self, make_plan: Callable[[int], Plan], kept: int) -> None:
    self._make_plan, self._kept = make_plan, kept
    self._plans: OrderedDict[int, Future[Plan]] = OrderedDict()
    self._steps: dict[int, int] = {}
    self._tried: set[int] = set()  # planned ahead once: what failed is not tried at every bin
    self._lock = threading.Lock()
    self.is_closed = False

  def __call__(self, epoch: int) -> Plan:
    plan, is_new = self._claim(epoch)
    if is_new:
      self._make(epoch, plan)
    elif plan.exception() is not None:  # waits; whoever was to make it failed, and took it back
      return self(epoch)
    return plan.result()

  def prepare(self, epoch: int) -> None:
    """Begins to make a plan in a thread, once; whoever asks for it later need not wait as long.

    Nothing depends on it: where it fails, the plan is made when it is asked for. The thread does
    not keep the process from ending.
    """
    if self.is_closed or epoch in self._tried:
      return
    self._tried.add(epoch)
    plan, is_new = self._claim(epoch)
    if not is_new:
      return
    ahead = threading.Thread(
      target=self._make, args=(epoch, plan), name=f"plan {epoch}", daemon=True
    )
    try:
      ahead.start()
    except RuntimeError as error:  # no more threads, or the interpreter is ending
      self._forget(epoch, plan, error)

  def steps(self, epoch: int) -> int:
    """Steps of an epoch; remembered when its plan is not."""
    return self._steps[epoch] if epoch in self._steps else self(epoch).steps

  def _claim(self, epoch: int) -> tuple[Future[Plan], bool]:
    """The plan, or the promise of it, and whether it is the caller who has to keep it."""
    with self._lock:
      is_new = epoch not in self._plans
      if is_new:
        self._plans[epoch] = Future()
        if len(self._plans) > self._kept:
          self._plans.popitem(last=False)
      self._plans.move_to_end(epoch)
      return self._plans[epoch], is_new

  def _make(self, epoch: int, plan: Future[Plan]) -> None:
    try:
      made = self._make_plan(epoch)
    except BaseException as error:  # raised where the plan is asked for; the next one tries again
      self._forget(epoch, plan, error)
    else:
      self._steps[epoch] = made.steps
      plan.set_result(made)

  def _forget(self, epoch: int, plan: Future[Plan], error: BaseException) -> None:
    """Takes back a promise that will not be kept; tells those who wait for it why."""
    with self._lock:
      if self._plans.get(epoch) is plan:
        del self._plans[epoch]
    plan.set_exception(error)


class _Bins:
  """Random access to this host's bins of all epochs from one on, end to end."""

  def __init__(self, plans: _Plans, first_epoch: int, rows: int, share: tuple[int, int]) -> None:
    rank, ranks = share
    if not 0 <= rank < ranks or rows % ranks:
      raise BadInput(
        f"loader: ranks={ranks} does not divide rows={rows}, or has no rank={rank}. Set data.rows."
      )
    self._plans, self._step_rows = plans, rows
    self.rows = rows // ranks
    self._first_row = rank * self.rows
    self._first_epoch = first_epoch
    self._starts = [0]  # first step of each epoch, counted from that of `first_epoch`
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> packing.Bin:
    step, row = divmod(index, self.rows)
    nth = self._find_epoch(step)
    place = (step - self._starts[nth]) * self._step_rows + self._first_row + row
    epoch = self._first_epoch + nth
    plan = self._plans(epoch)
    if 2 * place >= plan.steps * self._step_rows:  # half way: nobody is to wait at the boundary
      self._plans.prepare(epoch + 1)
    return plan.bin(place)

  def _find_epoch(self, step: int) -> int:
    """Number of the epoch of a step, counted from the first; plans those up to it."""
    while self._starts[(known := len(self._starts)) - 1] <= step:
      steps = self._plans.steps(self._first_epoch + known - 1)  # takes long: not under the lock
      with self._lock:
        if len(self._starts) == known:
          self._starts.append(self._starts[-1] + steps)
    return bisect.bisect_right(self._starts, step) - 1

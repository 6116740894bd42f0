"""Plans of windows, each made once, ahead of the reading; and the endless row of bins they make."""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from data_pipeline.errors import BadInput
from data_pipeline.packing import Bin, Plan
from data_pipeline.tokens import Totals

_ENDLESS = 2**60  # bins: more than any run reads, and a length that Python takes


class Plans:
  """Plans by number, each made once, when first asked for or ahead. Safe to call from any thread.

  Nobody waits but for the plan that is asked for. `kept` are kept: the most recently used.
  """

  def __init__(self, make_plan: Callable[[int], Plan], kept: int) -> None:
    self._make_plan, self._kept = make_plan, kept
    self._plans: OrderedDict[int, Future[Plan]] = OrderedDict()
    self._steps: dict[int, int] = {}
    self._tried: set[int] = set()  # planned ahead once: what failed is not tried at every bin
    self._lock = threading.Lock()
    self.is_closed = False

  def __call__(self, number: int) -> Plan:
    plan, is_new = self._claim(number)
    if is_new:
      self._make(number, plan)
    elif plan.exception() is not None:  # waits; whoever was to make it failed, and took it back
      return self(number)
    return plan.result()

  def prepare(self, number: int) -> None:
    """Begins to make a plan in a thread, once; whoever asks for it later need not wait as long.

    Nothing depends on it: where it fails, the plan is made when it is asked for. The thread does
    not keep the process from ending.
    """
    if self.is_closed or number in self._tried:
      return
    self._tried.add(number)
    plan, is_new = self._claim(number)
    if not is_new:
      return
    ahead = threading.Thread(
      target=self._make, args=(number, plan), name=f"plan {number}", daemon=True
    )
    try:
      ahead.start()
    except RuntimeError as error:  # no more threads, or the interpreter is ending
      self._forget(number, plan, error)

  def steps(self, number: int) -> int:
    """Steps of a window; remembered when its plan is not."""
    return self._steps[number] if number in self._steps else self(number).steps

  def _claim(self, number: int) -> tuple[Future[Plan], bool]:
    """The plan, or the promise of it, and whether it is the caller who has to keep it."""
    with self._lock:
      is_new = number not in self._plans
      if is_new:
        self._plans[number] = Future()
        if len(self._plans) > self._kept:
          self._plans.popitem(last=False)
      self._plans.move_to_end(number)
      return self._plans[number], is_new

  def _make(self, number: int, plan: Future[Plan]) -> None:
    try:
      made = self._make_plan(number)
    except BaseException as error:  # raised where the plan is asked for; the next one tries again
      self._forget(number, plan, error)
    else:
      self._steps[number] = made.steps
      plan.set_result(made)

  def _forget(self, number: int, plan: Future[Plan], error: BaseException) -> None:
    """Takes back a promise that will not be kept; tells those who wait for it why."""
    with self._lock:
      if self._plans.get(number) is plan:
        del self._plans[number]
    plan.set_exception(error)


class StepBins:
  """This host's bins of every step from the beginning of a window on, windows end to end.

  Element i is a list of this rank's bins of the i-th step, and what all rows of it hold. Ranges of
  steps that are to be jumped over are not counted.

  Args:
    plans: by number of the window.
    first: number of the window that step 0 is in.
    rows: bins of a step.
    share: (rank, ranks): the rank-th of so many equal shares of the rows.
    jumps: ranges [start, stop) of steps to jump over, counted from the window's beginning;
      ascending, apart from each other.
  Raises:
    BadInput: no such share.
  """

  def __init__(
    self,
    plans: Plans,
    first: int,
    rows: int,
    share: tuple[int, int],
    jumps: Sequence[tuple[int, int]] = (),
  ) -> None:
    rank, ranks = share
    if not 0 <= rank < ranks or rows % ranks:
      raise BadInput(
        f"loader: ranks={ranks} does not divide rows={rows}, or has no rank={rank}. Set data.rows."
      )
    self._plans, self._first, self._step_rows = plans, first, rows
    self._rows = range(rank * (rows // ranks), (rank + 1) * (rows // ranks))
    self._jumps = tuple(jumps)
    self._starts = [0]  # first step of each window, counted from that of the first
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> tuple[list[Bin], Totals]:
    for start, stop in self._jumps:
      index += stop - start if index >= start else 0
    nth = self._find_window(index)
    number, step = self._first + nth, index - self._starts[nth]
    plan = self._plans(number)
    if 2 * (step + 1) >= plan.steps:  # half way: nobody is to wait at the boundary
      self._plans.prepare(number + 1)
    bins = [plan.bin(step * self._step_rows + row) for row in self._rows]
    return bins, plan.totals(step)

  def _find_window(self, step: int) -> int:
    """Number of the window of a step, counted from the first; plans those up to it."""
    while self._starts[(known := len(self._starts)) - 1] <= step:
      steps = self._plans.steps(self._first + known - 1)  # takes long: not under the lock
      with self._lock:
        if len(self._starts) == known:
          self._starts.append(self._starts[-1] + steps)
    return bisect.bisect_right(self._starts, step) - 1

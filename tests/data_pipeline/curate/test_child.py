"""Functions in processes of their own: crashes, memory, time, and that nothing is left behind."""

import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from data_pipeline.curate import keeper
from data_pipeline.curate.child import ANSWER_BYTES, ChildFailed, run_in_child
from data_pipeline.curate.types import Refused
from data_pipeline.errors import BadInput

LIMITS = {"seconds": 20, "memory_bytes": 200 << 20}


def failure(function, argument=None, **limits) -> ChildFailed:
  with pytest.raises(ChildFailed) as caught:
    run_in_child(function, argument, **(LIMITS | limits))
  return caught.value


def test_gives_the_result(functions, marked):
  assert run_in_child(functions.double, 21, **LIMITS) == 42
  assert marked() == []


def test_raises_what_curation_raises(functions):
  with pytest.raises(Refused, match="not_video: why"):
    run_in_child(functions.refuse, "not_video", **LIMITS)
  with pytest.raises(BadInput, match="mend it"):
    run_in_child(functions.forbid, "mend it", **LIMITS)


@pytest.mark.parametrize(
  "name, argument, detail",
  [("crash", None, "signal 11.*string_at"), ("leave", 3, "code 3"), ("fail", "k", "KeyError: 'k'")],
)
def test_a_crash_is_an_exception(functions, marked, name, argument, detail):
  failed = failure(getattr(functions, name), argument)
  assert failed.reason == "crashed"
  assert re.search(detail, failed.detail)
  assert marked() == []


def test_endless_allocation_is_stopped(functions, marked):
  failed = failure(functions.hoard)
  assert failed.reason == "memory"
  assert marked() == []


def test_memory_of_grandchildren_counts(functions, marked):
  assert failure(functions.hoard_in_grandchild).reason == "memory"
  assert marked() == []


def test_no_process_can_own_more_than_the_hard_bound(functions):
  assert run_in_child(functions.claim, 400 << 20, **LIMITS) == 400 << 20  # not filled: no RSS
  assert failure(functions.claim, 800 << 20).reason == "memory"


def test_time_is_bounded(functions, marked):
  assert failure(functions.spin, seconds=0.5).reason == "timeout"
  assert marked() == []


def test_answers_are_bounded(functions):
  assert len(run_in_child(functions.answer_bytes, 1 << 20, **LIMITS)) == 1 << 20
  assert "longer than" in failure(functions.answer_bytes, ANSWER_BYTES + 1).detail


@pytest.mark.parametrize("seconds, limit", [(0, 20), (60, 0.5)])
def test_orphans_are_killed(functions, marked, seconds, limit):
  if seconds < limit:
    run_in_child(functions.orphan, seconds, seconds=limit, memory_bytes=200 << 20)
  else:
    assert failure(functions.orphan, seconds, seconds=limit).reason == "timeout"
  assert marked() == []


def test_what_it_prints_is_not_its_answer(functions):
  assert run_in_child(functions.say, "words", **LIMITS) == "words"


def test_runs_with_one_thread_for_blas(functions):
  assert run_in_child(functions.environment, ["OMP_NUM_THREADS"], **LIMITS) == ["1"]


def test_threads_may_call_at_once(functions, marked):
  found = []
  calls = [
    threading.Thread(target=lambda i=i: found.append(run_in_child(functions.double, i, **LIMITS)))
    for i in range(4)
  ]
  for call in calls:
    call.start()
  for call in calls:
    call.join()
  assert sorted(found) == [0, 2, 4, 6] and marked() == []


CALLER = """
import sys; sys.path.insert(0, {folder!r})
import child_functions
from data_pipeline.curate.child import run_in_child
run_in_child(child_functions.orphan, 300, seconds=300, memory_bytes=1 << 30)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_survives_the_caller(functions, marked, wait_until, tmp_path, number):
  folder = os.path.dirname(functions.__file__)
  command = [sys.executable, "-c", CALLER.format(folder=folder)]
  with open(tmp_path / "stderr", "w") as stderr:
    caller = subprocess.Popen(command, stderr=stderr)
  wait_until(lambda: len(marked()) == 4)  # caller, keeper, worker, its orphan
  caller.send_signal(number)
  caller.wait()
  wait_until(lambda: not marked())
  assert "BrokenPipe" not in (tmp_path / "stderr").read_text()  # the keeper's, who has no one left


def test_nothing_survives_the_keeper(functions, marked, wait_until):
  failed = failure(functions.kill_keeper)
  assert (failed.reason, failed.detail) == ("crashed", "the keeper was killed")
  wait_until(lambda: not marked())


def test_both_ways_to_list_a_family_agree():
  with subprocess.Popen(["sh", "-c", "sleep 60 & wait"]) as shell:
    try:
      while len(mine := keeper.family(shell.pid)) < 1:
        pass
      assert keeper._family_by_ps(shell.pid).keys() == mine.keys()
      assert all(value > 0 for value in mine.values())
    finally:
      for pid in keeper.family(shell.pid):
        os.kill(pid, signal.SIGKILL)
      shell.kill()

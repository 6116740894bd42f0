"""Long calls into C++: they run in a thread, while this one says how long, and heeds signals."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from sora_jax.commands.progress import say
from sora_jax.train.console import Clock, Pace, format_seconds

POLL = 0.2  # seconds between two looks at the clock; a signal is heeded at once


class Ended(RuntimeError):
  """Ended by SIGTERM: nothing is kept of what was under way."""

  exit_code = 1


def attend(work: Callable[[], Any], what: str, clock: Clock = time.monotonic) -> Any:
  """Returns what `work` returns, or raises what it raises.

  Lines on stderr say how long it takes, none in its first seconds. Must be called in the main
  thread. A thread in C++ cannot be ended: after an interruption it runs on until the process is.

  Args:
    work: without arguments; its thread has none of this one's contexts.
    what: is going on, "plan: compiles".
    clock: seconds.
  Raises:
    KeyboardInterrupt: Ctrl-C. Ended: SIGTERM.
  """
  found: dict[str, Any] = {}
  done = threading.Event()

  def call() -> None:
    try:
      found["value"] = work()
    except BaseException as error:
      found["error"] = error
    finally:
      done.set()

  pace = Pace(clock)
  pace.due()  # the caller has said what begins
  with _ending_at_sigterm(what):
    threading.Thread(target=call, daemon=True).start()
    while not done.wait(POLL):
      if pace.due():
        say(f"{what}, {format_seconds(pace.seconds)} so far (Ctrl-C ends it)")
  if "error" in found:
    raise found["error"]
  return found["value"]


@contextlib.contextmanager
def _ending_at_sigterm(what: str) -> Iterator[None]:
  """Libraries of C++ have handlers of their own, which print a stack: for a while ours counts."""

  def end(*_):
    raise Ended(f"{what}: ended by SIGTERM.")

  before = signal.signal(signal.SIGTERM, end)
  try:
    yield
  finally:
    # None: of C++ that had it before us, and could not be put back.
    signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)

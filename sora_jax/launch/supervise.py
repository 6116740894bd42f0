"""Keeps a gang running: kills it whole when one process is lost, starts it again, with patience."""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sora_jax.launch.gang import Devices, Gang
from sora_jax.parallel import heartbeat

BAD_INPUT, PREEMPTED = 2, 42
SETTLE = 5.0  # seconds in which the others end by themselves after one did
POLL = 0.1
_KILLS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL)
LONG = 300.0  # a gang that ran so long was no failed start: patience begins anew


class Supervision(NamedTuple):
  """Attributes:
  processes: of the first gang.
  max_restarts: after failures in a row; exit 42 is none, and a gang that ran long begins anew.
  silence: seconds without a sign of life after which a process is lost.
  grace: seconds that processes have to save after SIGTERM.
  back_off: seconds before the first restart, doubled by each failure up to `most_back_off`.
  sizes: smaller gangs that the run may go on with, when processes are lost; () for none.
  devices: of a process.
  """

  processes: int
  max_restarts: int = 10
  silence: float = 60.0
  grace: float = 600.0
  back_off: float = 1.0
  most_back_off: float = 60.0
  sizes: Sequence[int] = ()
  devices: Devices = Devices()


class Ended(NamedTuple):
  """How a gang ended: exit codes by number, which were lost, and why, for people."""

  codes: list[int]
  lost: list[int]
  why: str


class Outcome(NamedTuple):
  """How a supervision ended."""

  code: int
  restarts: int
  processes: int
  why: str


def supervise(words: Sequence[str], settings: Supervision) -> Outcome:
  """Runs a command on many processes until it is done, or cannot be kept running."""
  asked = _Asked()
  size, failures, restarts = settings.processes, 0, 0
  try:
    while True:
      with Gang(words, size, settings.devices) as gang:
        ended = _watch(gang, settings, asked)
        lived = gang.seconds
      code = judge(ended.codes, asked=bool(asked.signal))
      if code in (0, BAD_INPUT) or asked.signal:
        return Outcome(code, restarts, size, ended.why)
      restarts += 1
      if code == PREEMPTED:
        _say(f"{ended.why}; starts again")
        continue
      failures = 1 if lived > LONG else failures + 1
      if failures > settings.max_restarts:
        return Outcome(code, restarts - 1, size, f"{ended.why}, {failures} times in a row")
      size = shrink(size, len(ended.lost), settings.sizes)
      wait = min(settings.most_back_off, settings.back_off * 2 ** (failures - 1))
      _say(
        f"{ended.why}; starts {size} again in {wait:g} s"
        f" (failure {failures} of {settings.max_restarts})"
      )
      asked.sleep(wait)
      if asked.signal:
        why = f"asked to leave by {asked.signal} between two starts"
        return Outcome(PREEMPTED, restarts - 1, size, why)
  finally:
    asked.restore()


def judge(codes: Sequence[int], *, asked: bool) -> int:
  """One exit code for all: bad input before all else, then failures, then 42.

  Args:
    asked: SIGTERM was sent to all: who had not begun to note it has nothing to save.
  """
  if asked:
    codes = [PREEMPTED if code == -signal.SIGTERM else code for code in codes]
  if BAD_INPUT in codes:
    return BAD_INPUT
  others = [code for code in codes if code not in (0, PREEMPTED)]
  if others:
    return others[0] if others[0] > 0 else 128 - others[0]
  return max(codes)


def shrink(size: int, lost: int, sizes: Sequence[int]) -> int:
  """The size to go on with: what is allowed and remains, else the same."""
  fits = [allowed for allowed in sizes if allowed <= size - lost]
  return max(fits) if lost and fits else size


def _watch(gang: Gang, settings: Supervision, asked: "_Asked") -> Ended:
  """Until all processes have ended, by themselves or not."""
  told, first_bad = 0.0, 0.0
  lost: list[int] = []
  why = ""
  while True:
    codes, now = gang.codes(), time.monotonic()
    if asked.signal and not told:
      told, why = now, f"asked to leave by {asked.signal}"
      _say(f"{why}: SIGTERM to all, which have {settings.grace:g} s to save")
      gang.send(signal.SIGTERM)
    ends = {i: code for i, code in enumerate(codes) if code is not None}
    bad = {i: code for i, code in ends.items() if code}
    if bad and not first_bad:
      first_bad, lost = now, find_lost(bad)
      why = why or "; ".join(describe_end(i, code) for i, code in bad.items())
    if len(ends) == len(codes):
      return Ended([code or 0 for code in codes], lost, why or "done")
    silent = gang.silent(settings.silence)
    overdue = told and now - told > settings.grace or asked.twice
    # Who is done waits for the others at the end of a run, which may be long (exports).
    failed = any(code != PREEMPTED for code in bad.values())
    settled = bad and now - first_bad > (SETTLE if failed else settings.grace)
    if silent or overdue or settled:
      if silent:
        lost = lost or list(silent)
        places = ", ".join(f"process {i} ({place})" for i, place in silent.items())
        why = why or f"no sign of life of {places} for {settings.silence:g} s"
        gang.send(heartbeat.DUMP)
        time.sleep(1.0)  # for the stacks to be written
      gang.kill()
      return Ended([code or 0 for code in gang.codes()], lost, why)
    time.sleep(POLL)


def find_lost(bad: dict[int, int]) -> list[int]:
  """Who was lost of those that ended badly: not who ended because another one was gone.

  Args:
    bad: exit codes by number, those seen first.
  """
  killed = [i for i, code in bad.items() if -code in _KILLS]
  return killed or list(bad)[:1]


def describe_end(number: int, code: int) -> str:
  """"process 2 ended with code 1", or by which signal."""
  if code < 0:
    return f"process {number} was ended by {signal.Signals(-code).name}"
  saved = " (saved, asked to leave)" if code == PREEMPTED else ""
  return f"process {number} ended with code {code}{saved}"


def _say(text: str) -> None:
  print(f"launch: {text}", file=sys.stderr, flush=True)


class _Asked:
  """Notes SIGTERM, Ctrl-C, and SIGHUP unless it is ignored; a second one is not waited for.

  Of SIGHUP several come at once when a terminal goes.
  """

  def __init__(self):
    self.signal, self.twice = "", False
    self._found: dict[int, Callable | int | None] = {}
    is_heard = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    for number in (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if is_heard else [])):
      self._found[number] = signal.signal(number, self._note)

  def _note(self, number, _):
    self.twice |= bool(self.signal) and number != signal.SIGHUP
    self.signal = self.signal or signal.Signals(number).name

  def sleep(self, seconds: float) -> None:
    """Less, when asked to leave meanwhile."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not self.signal:
      time.sleep(min(POLL, seconds))

  def restore(self) -> None:
    for number, handler in self._found.items():
      signal.signal(number, handler)

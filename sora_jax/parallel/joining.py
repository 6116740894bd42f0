"""Processes of a run find each other here, before JAX joins them: it would wait without a word.

Process 0 listens at the coordinator's address until all have called, says who is absent, and gives
the port to JAX. All of it goes on in a thread: JAX, and a look-up of a name, hear no signal.
"""

import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from data_pipeline.errors import BadInput

FIRST_SECONDS, LATER_SECONDS = 3.0, 60.0  # until the first line, and between two later ones
_TICK = 0.2  # seconds between two looks
_SURE = 0.05  # seconds of a look at whether all that came are still there
_TELL = 1.0  # seconds between two words of process 0 to those who wait with it
_MOST_BYTES = 4096  # of a word: who sends more is none of ours
_SHOWN = 8  # processes that a line names


class LostPeer(Exception):
  """Another process is gone, or does not come."""

  exit_code = 1


class Joining:
  """What a process waits for, as its thread finds it and its main thread says it.

  Attributes:
    waits: for whom, for people; "" where nobody is known to be absent.
    is_told: whether process 0 says so too.
    is_over: the thread has to give up.
  """

  def __init__(self, number: int, processes: int, address: str):
    self.number, self.processes, self.address = number, processes, address
    self.waits, self.is_told = "", False
    self.is_over = threading.Event()

  def __str__(self) -> str:
    own = f"process {self.number} of {self.processes}" if self.processes else "this process"
    return f"{own} waits for {self.waits} (coordinator {self.address}"


def wait_for(work: Callable[[], Any], status: Joining, seconds: float, hint: str = "") -> Any:
  """What `work` returns, done in a thread: this one hears signals, and says who is waited for.

  Args:
    status: kept by `work`.
    seconds: that it may take.
    hint: said with the first line.
  Raises:
    LostPeer: it took longer. Else what `work` raised.
  """
  result: list = []
  failed: list[BaseException] = []

  def run() -> None:
    try:
      result.append(work())
    except BaseException as error:
      failed.append(error)

  thread = threading.Thread(target=run, name="joining", daemon=True)
  thread.start()
  begin, due, said = time.monotonic(), FIRST_SECONDS, False
  try:
    while thread.is_alive():
      thread.join(_TICK)
      waited = time.monotonic() - begin
      if waited > seconds:
        raise LostPeer(_describe_end(status, seconds))
      if waited > due and status.waits:
        due += LATER_SECONDS
        if not (said and status.is_told):  # process 0 goes on saying it
          left = f"for {seconds - waited:.0f} s more at most"
          _say(f"hosts: {status}, {left}){'' if said else hint}")
        said = True
  finally:
    status.is_over.set()
  if failed:
    raise failed[0]
  if said and status.number == 0:
    _say(f"hosts: all {status.processes} processes are there")
  return result[0]


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _describe_end(status: Joining, seconds: float) -> str:
  who = f"hosts: process {status.number} of {status.processes}"
  if status.number > 0 and not status.is_told:
    return (
      f"{who} found no coordinator at {status.address} within {seconds:.0f} s"
      f" ({status.waits or 'it did not answer'}). Look at the log of process 0."
    )
  absent = status.waits or "JAX to join all of them"
  return (
    f"{who} waited {seconds:.0f} s at {status.address} for {absent}. Start what is absent, or look"
    " at its log."
  )


def name_numbers(numbers: Iterable[int]) -> str:
  """"process 1, process 4 and 12 more"."""
  found = sorted(numbers)
  shown = ", ".join(f"process {number}" for number in found[:_SHOWN])
  return shown + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


# ---- process 0


class _Caller:
  """Somebody who called process 0: what came of the first word, and then the number."""

  def __init__(self) -> None:
    self.data, self.number, self.host = b"", -1, ""


def gather(status: Joining, bind: str) -> None:
  """Waits in process 0 until all others have called, then lets them go on.

  Args:
    bind: ADDRESS:PORT to listen at.
  Raises:
    LostPeer: nobody can listen there.
  """
  callers: dict[socket.socket, _Caller] = {}
  with _listen(bind, status) as door, selectors.DefaultSelector() as ready:
    door.setblocking(False)
    ready.register(door, selectors.EVENT_READ)
    told, absent, is_sure = 0.0, set(range(1, status.processes)), False
    while not is_sure and not status.is_over.is_set():
      is_sure = not absent  # once more: the last one to come may be gone again
      status.waits = name_numbers(absent)
      for key, _ in ready.select(_TICK if absent else _SURE):
        caller: Any = key.fileobj
        if caller is door:
          _accept(door, ready, callers)
        elif not _hear(caller, callers, status):
          ready.unregister(caller)
          callers.pop(caller).number = -1
          caller.close()
      absent = set(range(1, status.processes)) - {one.number for one in callers.values()}
      is_sure &= not absent
      if absent and time.monotonic() - told > _TELL:
        told = time.monotonic()
        _tell(callers, {"absent": sorted(absent)[: 2 * _SHOWN], "count": len(absent)})
  status.waits = ""
  _tell(callers, {"go": not absent})
  for caller in callers:
    caller.close()


def _listen(bind: str, status: Joining) -> socket.socket:
  """A listening socket. One that is in use may be of a run that is about to end."""
  host, _, port = bind.rpartition(":")
  host = host.strip("[]")
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  end = time.monotonic() + 20
  while True:
    try:
      dual = host == "::" and socket.has_dualstack_ipv6()
      return socket.create_server((host, int(port)), family=family, dualstack_ipv6=dual)
    except (OSError, OverflowError) as error:
      if time.monotonic() > end or status.is_over.is_set() or not isinstance(error, OSError):
        raise LostPeer(
          f"hosts: process 0 cannot listen at {bind} ({error}). Give another --coordinator."
        ) from error
      status.waits = f"the port of {bind} ({error.strerror})"
      time.sleep(_TICK)


def _accept(door: socket.socket, ready: selectors.BaseSelector, callers: dict) -> None:
  try:
    caller, _ = door.accept()
  except OSError:  # gone again
    return
  caller.setblocking(False)
  ready.register(caller, selectors.EVENT_READ)
  callers[caller] = _Caller()


def _hear(caller: socket.socket, callers: dict, status: Joining) -> bool:
  """Takes what somebody sends. False: gone, or none of ours."""
  known = callers[caller]
  try:
    data = caller.recv(_MOST_BYTES)
  except BlockingIOError:
    return True
  except OSError:
    return False
  known.data += data
  if not data or len(known.data) > _MOST_BYTES:
    return False
  if known.number >= 0 or b"\n" not in known.data:
    return True
  try:
    word = json.loads(known.data)
    number, processes, host = int(word["process"]), int(word["processes"]), str(word["host"])
  except (ValueError, KeyError, TypeError):
    return False
  if processes != status.processes or not 0 < number < processes:
    text = f"process {number} was told of {processes} processes, process 0 of {status.processes}"
    _tell({caller: known}, {"refused": f"hosts: {text}. Give all the same number."})
    return False
  for other, one in callers.items():
    if one.number == number:  # it may be gone without a word; else one of both is too many
      text = f"another process {number} came, on {host} (this one is on {one.host})"
      _tell({other: one}, {"refused": f"hosts: {text}. Give each a number of its own."})
      one.number = -1
  known.number, known.host = number, host
  return True


def _tell(callers: Iterable[socket.socket], word: dict) -> None:
  for caller in callers:
    try:
      caller.sendall(json.dumps(word).encode() + b"\n")
    except OSError:  # it is gone, which `_hear` sees
      continue


# ---- the others


def call(status: Joining) -> None:
  """Calls process 0 until it answers that all have called, and JAX listens there.

  Raises:
    BadInput: it does not take this process.
    LostPeer: something else answers.
  """
  while not status.is_over.is_set():
    status.is_told = False
    try:
      with _connect(status) as line:
        line.sendall(json.dumps(_introduce(status)).encode() + b"\n")
        if _listen_to(line, status):
          break
    except OSError as error:
      status.waits = f"process 0: {error.strerror or error}"
      time.sleep(_TICK)
  status.waits = ""
  while not status.is_over.is_set():
    try:
      return _connect(status).close()
    except OSError:
      time.sleep(_TICK / 10)


def _introduce(status: Joining) -> dict:
  return {
    "process": status.number, "processes": status.processes, "host": socket.gethostname(),
    "pid": os.getpid(),
  }  # fmt: skip


def _connect(status: Joining) -> socket.socket:
  host, _, port = status.address.rpartition(":")
  return socket.create_connection((host.strip("[]"), int(port)), timeout=5)


def _listen_to(line: socket.socket, status: Joining) -> bool:
  """Hears what process 0 says. True: go on. False: it went away, or gave up."""
  data = b""
  line.settimeout(_TICK)
  while not status.is_over.is_set():
    try:
      got = line.recv(_MOST_BYTES)
    except TimeoutError:
      continue
    if not got:
      status.waits = "process 0: it went away"
      return False
    *words, data = (data + got).split(b"\n")
    try:
      for word in map(json.loads, words):
        if "go" in word:
          return bool(word["go"])
        _heed(word, status)
    except (ValueError, KeyError, TypeError):
      data = b"?" * (_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
      raise LostPeer(
        f"hosts: what answers at {status.address} is not process 0 of a run. Give another"
        " --coordinator."
      )
  return False


def _heed(word: dict, status: Joining) -> None:
  """Takes in who is absent. Raises BadInput: process 0 does not take this process."""
  if "refused" in word:
    raise BadInput(str(word["refused"]))
  absent = [number for number in word["absent"] if number != status.number]
  status.waits, status.is_told = _name_absent(absent, word["count"]), True


def _name_absent(numbers: list[int], count: int) -> str:
  shown = name_numbers(numbers[:_SHOWN])
  return shown + (f" and {count - _SHOWN} more" if count > _SHOWN else "")

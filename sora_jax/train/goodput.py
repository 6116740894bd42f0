"""Where the wall time of a run went, over all its sessions: read from `events.jsonl`.

As in "ML Productivity Goodput" (Google Cloud, 2024): only steps that the run stands on count as
such; those that a restart did again, and all that a restart took, are its cost.
"""

import json
from pathlib import Path

SHARES = ("steps", "input", "evaluate", "checkpoint", "compile", "restart", "idle")
# Events with `seconds` in which the loop did nothing else -> the share that they belong to.
_SPENT = {
  "compile": "compile",
  "evaluate": "evaluate",
  "save": "checkpoint",
  "save_checks": "checkpoint",
  "save_wait": "checkpoint",
}
_CLEAN = ("done", "Preempted")  # reasons of a stop that nothing had gone wrong before


def read_events(workdir) -> list[dict]:
  """The events of a workdir, without lines that a kill cut off."""
  path, found = Path(workdir) / "events.jsonl", []
  for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
    try:
      found.append(json.loads(line))
    except json.JSONDecodeError:
      continue
  return found


def goodput(workdir) -> dict:
  """Accounts for the time of a run, from its first start to its last event.

  Returns:
    `starts`; `stops` by reason, `killed` where a session wrote none (or still runs);
    `wall_seconds`; `NAME_seconds` for each event that carries `seconds`, summed; `redone_steps` and
    `redone_seconds`, of steps after the checkpoint that a later session began with; and `shares` of
    the wall time:

    - `steps` that the run stands on; `input`, in which devices waited for data;
    - `evaluate`; `checkpoint`, in which the loop stood still for a save; `compile`;
    - `restart`: from the start of a command to its first step (but for compiling), from the last
      sign of a session that failed to the start of the next, and steps done again;
    - `idle`: all else, such as the time between a session that was asked to leave and the next.
  """
  account = _Account()
  for event in read_events(workdir):
    account.add(event)
  return account.sum()


class _Account:
  """Takes events one by one, in the order of the file."""

  def __init__(self):
    self._first: float | None = None  # moment that the run began
    self._last = 0.0  # moment of the last event
    self._starting: float | None = None  # moment that the session, or a rollback, began to start
    self._stopped: str | None = "done"  # why the last session ended; None: it wrote no stop
    self._starts, self._stops, self._spent = 0, {}, {}
    self._parts: dict[str, float] = dict.fromkeys(SHARES, 0.0)
    self._steps: list[tuple[int, int, float, float]] = []  # after, last, seconds, waited
    self._at = 0  # last step on the books
    self._redone_steps, self._redone_seconds = 0, 0.0

  def add(self, event: dict) -> None:
    name, moment = event["event"], event["time"]
    if name == "start":
      self._start(moment, moment - event.get("age", 0.0))
    elif name == "rollback":
      self._starting = moment
    elif name == "begin":
      self._go_on(moment, event["step"] - 1)
    elif name == "steps":
      self._steps.append((self._at, event["step"], event["seconds"], event["waited"]))
      self._at = event["step"]
    elif name == "stop":
      self._stops[event["reason"]] = self._stops.get(event["reason"], 0) + 1
      self._stopped = event["reason"]
      self._end_start(moment)  # of a session that had no step to do
    if name in _SPENT:
      self._parts[_SPENT[name]] += event["seconds"]
    if "seconds" in event:
      key = f"{name}_seconds"
      self._spent[key] = self._spent.get(key, 0.0) + event["seconds"]
    self._last = max(self._last, moment)

  def _start(self, moment: float, began: float) -> None:
    if self._first is None:
      self._first = self._last = began
    elif self._stopped not in _CLEAN:
      since = self._last if self._starting is None else self._starting
      self._parts["restart"] += max(0.0, began - since)
    self._starts, self._stopped = self._starts + 1, None
    self._starting = min(began, moment)

  def _go_on(self, moment: float, done: int) -> None:
    """An attempt begins to train after step `done`: what had been done after it was lost."""
    self._end_start(moment)
    kept = []
    for after, last, seconds, waited in self._steps:
      lost = min(last - after, max(0, last - done))
      part = lost / (last - after) if last > after else 0.0
      self._redone_steps += lost
      self._redone_seconds += part * seconds
      if last > after and lost < last - after:
        kept.append((after, last - lost, (1 - part) * seconds, (1 - part) * waited))
    self._steps, self._at = kept, done

  def _end_start(self, moment: float) -> None:
    if self._starting is not None:
      self._parts["restart"] += max(0.0, moment - self._starting)
    self._starting = None

  def sum(self) -> dict:
    wall = self._last - self._first if self._first is not None else 0.0
    parts = dict(self._parts)
    parts["steps"] = sum(seconds - waited for *_, seconds, waited in self._steps)
    parts["input"] = sum(waited for *_, waited in self._steps)
    parts["restart"] += self._redone_seconds
    if self._starting is not None:  # it is still starting
      parts["restart"] += max(0.0, self._last - self._starting)
    known = sum(parts.values())
    parts["idle"] = max(0.0, wall - known)
    whole = max(wall, known) or 1.0  # clocks that were set back must not make more than all of it
    killed = self._starts - sum(self._stops.values())
    return {
      "starts": self._starts,
      "stops": self._stops | ({"killed": killed} if killed else {}),
      "wall_seconds": round(wall, 3),
      **{name: round(seconds, 3) for name, seconds in self._spent.items()},
      "redone_steps": self._redone_steps,
      "redone_seconds": round(self._redone_seconds, 3),
      "shares": {name: round(parts[name] / whole, 4) for name in SHARES},
    }

"""`events.jsonl`: where the wall time of a run went (goodput), over all its restarts."""

import json
import os
import time
from pathlib import Path

from sora_jax.parallel import hosts
from sora_jax.train.lines import Lines
from sora_jax.train.stop import DiskFull


class Events:
  """Appends one JSON object per event: `event`, `time` (Unix seconds) and what the caller adds.

  As a context it writes `start` and `stop` (with the reason) around a session. Of several processes
  the first one writes.
  """

  def __init__(self, workdir):
    self._lines = Lines(Path(workdir) / "events.jsonl") if hosts.is_first() else None

  def __call__(self, event: str, **facts) -> None:
    if self._lines:
      self._lines.write({"event": event, "time": round(time.time(), 3), **facts})

  def __enter__(self):
    self("start", pid=os.getpid(), processes=hosts.count())
    return self

  def __exit__(self, kind, error, _):
    try:
      self("stop", reason="done" if kind is None else kind.__name__)
    except DiskFull:
      if kind is None:  # else what ends the session says more
        raise
    finally:
      if self._lines:
        self._lines.close()


def goodput(workdir) -> dict:
  """Sums the events of a workdir.

  Returns:
    `starts`; `wall_seconds` from the first to the last event of each session (of a killed one,
    too); `stops` by reason, `killed` where a session wrote none (or still runs); and
    `NAME_seconds` for each event that carries `seconds` (compile, evaluate, save).
  """
  path = Path(workdir) / "events.jsonl"
  lines = path.read_text(errors="replace").splitlines() if path.exists() else []
  sessions, spent, stops = [], {}, {}
  for line in lines:
    try:
      event = json.loads(line)
    except json.JSONDecodeError:
      continue  # cut off by a kill
    if event["event"] == "start":
      sessions.append([event["time"], event["time"]])
    if sessions:
      sessions[-1][1] = event["time"]
    if event["event"] == "stop":
      stops[event["reason"]] = stops.get(event["reason"], 0) + 1
    if "seconds" in event:
      key = f"{event['event']}_seconds"
      spent[key] = round(spent.get(key, 0.0) + event["seconds"], 3)
  killed = len(sessions) - sum(stops.values())
  wall = sum(end - begin for begin, end in sessions)
  stops = stops | ({"killed": killed} if killed else {})
  return {"starts": len(sessions), "wall_seconds": round(wall, 3), "stops": stops, **spent}

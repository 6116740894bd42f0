"""Trains under faults, and compares the end with a run that nobody disturbed.

  python -m experiments.benchmarks.chaos --faults=20 --out=runs/chaos.md

Four processes under `sora launch local`, on CPU devices of this machine. Faults are drawn by seed:
kill -9 of a process or of the coordinator, SIGSTOP, SIGTERM of one process or of the supervisor, a
full disk during a save, a truncated newest checkpoint, a restart on two processes with two devices
each. The losses of all steps, the data's cursor and the hashes of the state have to be equal, bit
for bit; no fault may cost more than the steps since the last checkpoint, or 60 seconds in which
nothing moves. Exit 1 when one does. The full disk wants a mount of a small tmpfs (root on Linux);
where there is none, it says so and draws no such fault.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sora_jax.train.metrics import read_metrics

PROCESSES, EVERY, SILENCE = 4, 5, 8.0
MOST_SECONDS = 60.0  # in which nothing may move
DISK = 96 * 2**20  # bytes of the small file system
SAME = ("step", "tokens_seen", "clips_seen", "cursor", "params_sha256", "ema_sha256", "opt_sha256")


class Row(NamedTuple):
  """A fault, at which step, what it cost."""

  fault: str
  step: int
  lost: int
  seconds: float


def command(workdir: Path, steps: int, data: str, most: float) -> list[str]:
  """A run's command line: saves every EVERY steps, tells of every one, waits for nobody long."""
  settings = {
    "total_steps": steps,
    "data.path": data,
    "every.log_steps": 1,
    "every.checkpoint_steps": EVERY,
    "every.evaluate_steps": 0,
    "optim.warmup_steps": 2,
    "wait.start_seconds": round(0.8 * most),
    "wait.step_seconds": round(0.6 * most),
    "wait.save_seconds": round(0.6 * most),
    "wait.silence_seconds": round(0.3 * most),
  }
  overrides = [f"--config.{name}={value}" for name, value in settings.items()]
  return ["train", "--config=experiments/demo.py:debug", f"--workdir={workdir}", *overrides]


class Supervisor:
  """`sora launch local`, in a process of its own."""

  def __init__(self, words: list[str], processes: int, log: Path):
    options = [f"--processes={processes}", f"--cpus={PROCESSES // processes}"]
    options += [f"--silence={SILENCE:g}", "--back-off=0.2", "--max-restarts=20", "--grace=40"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)  # its devices are those of --cpus
    with log.open("a") as file:
      self._process = subprocess.Popen(
        [sys.executable, "-m", "sora_jax", "launch", "local", *options, "--", *words],
        stdout=file, stderr=file, env=environment,
      )  # fmt: skip

  def code(self) -> int | None:
    return self._process.poll()

  def ask_to_leave(self, most: float) -> int:
    self._process.send_signal(signal.SIGTERM)
    return self._process.wait(most)

  def kill(self) -> None:
    self._process.kill()
    self._process.wait()

  def pids(self) -> list[int]:
    """Of the run's processes, by their number."""
    found = {}
    parent = self._process.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for pid in children:
      with contextlib.suppress(OSError):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        number = next((v for v in variables if v.startswith(b"JAX_PROCESS_ID=")), None)
        if number:
          found[int(number.split(b"=")[1])] = int(pid)
    return [found[i] for i in sorted(found)]


class Chaos:
  """A run under faults.

  Args:
    workdir: of the run.
    words: its command line.
    chance: draws.
    most: seconds in which nothing may move.
  """

  def __init__(
    self, workdir: Path, words: list[str], chance: random.Random, log: Path, most: float
  ):
    self._most = most
    self._workdir, self._words, self._chance, self._log = workdir, words, chance, log
    self._supervisor = Supervisor(words, PROCESSES, log)
    self._kinds: dict[str, Callable[[], None]] = {
      "kill -9 of a process": lambda: self._signal(self._other(), signal.SIGKILL),
      "kill -9 of the coordinator": lambda: self._signal(0, signal.SIGKILL),
      "SIGSTOP of a process": lambda: self._signal(chance.randrange(PROCESSES), signal.SIGSTOP),
      "SIGTERM of a process": lambda: self._signal(chance.randrange(PROCESSES), signal.SIGTERM),
      "SIGTERM of the supervisor": lambda: self._relaunch(PROCESSES),
      "truncated newest checkpoint": self._truncate,
      "restart on 2 processes": lambda: self._relaunch(2),
      "full disk during a save": self._fill,
    }
    if not workdir.parent.is_mount():
      del self._kinds["full disk during a save"]
      print("chaos: no small disk could be mounted, no fault fills one", file=sys.stderr)

  def kinds(self) -> list[str]:
    return list(self._kinds)

  def step(self) -> int:
    """Last step with a line in the log, 0 for none."""
    lines = read_metrics(self._workdir)
    return lines[-1]["step"] if lines else 0

  def wait_for(self, done: Callable[[], bool], what: str) -> float:
    """Seconds until `done`. Raises TimeoutError when nothing moves for too long."""
    begin = moved = time.monotonic()
    before: Any = None
    while not done():
      now = (self._log.stat().st_size, self.step())
      if now != before:
        before, moved = now, time.monotonic()
      if time.monotonic() - moved > self._most:
        raise TimeoutError(f"chaos: nothing moved for {self._most:g} s, waiting for {what}")
      if self._supervisor.code() not in (None, 0):
        raise RuntimeError(f"chaos: the supervisor ended with {self._supervisor.code()}")
      time.sleep(0.05)
    return time.monotonic() - begin

  def inflict(self, kind: str, at: int) -> Row:
    """A fault once step `at` is done, and what it took until a later step was."""
    self.wait_for(lambda: self.step() >= at, f"step {at}")
    time.sleep(self._chance.uniform(0.0, 0.5))
    restarts, step = self._resumes(), self.step()
    begin = time.monotonic()
    self._kinds[kind]()
    self.wait_for(lambda: len(self._resumes()) > len(restarts), "a restart")
    resumed = self._resumes()[-1]
    # The next step that is new is what the fault has kept the run from.
    self.wait_for(lambda: self.step() > step or self._supervisor.code() == 0, f"step {step + 1}")
    return Row(kind, step, max(0, step - resumed), round(time.monotonic() - begin, 1))

  def finish(self) -> None:
    self.wait_for(lambda: self._supervisor.code() == 0, "the end")

  def kill(self) -> None:
    self._supervisor.kill()

  def _resumes(self) -> list[int]:
    path = self._workdir / "events.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
      with contextlib.suppress(json.JSONDecodeError):
        event = json.loads(line)
        found += [event["step"]] if event["event"] == "resume" else []
    return found

  def _other(self) -> int:
    return self._chance.randrange(1, PROCESSES)

  def _signal(self, number: int, which: int) -> None:
    pids = self._supervisor.pids()
    os.kill(pids[number % len(pids)], which)

  def _relaunch(self, processes: int) -> None:
    code = self._supervisor.ask_to_leave(self._most)
    if code != 42:
      raise RuntimeError(f"chaos: asked to leave, the supervisor ended with {code}, not 42")
    self._supervisor = Supervisor(self._words, processes, self._log)

  def _newest(self) -> list[Path]:
    folder = self._workdir / "checkpoints"
    return sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))

  def _truncate(self) -> None:
    """Of a run that was ended: every file of the newest checkpoint loses its second half."""
    self.wait_for(lambda: len(self._newest()) > 1, "a second checkpoint")
    self._supervisor.kill()
    time.sleep(0.5)
    for file in (self._newest()[-1] / "state").rglob("*"):
      if file.is_file():
        os.truncate(file, file.stat().st_size // 2)
    self._supervisor = Supervisor(self._words, PROCESSES, self._log)

  def _fill(self) -> None:
    filler = self._workdir.parent / "filler"
    stops = self._count("DiskFull") + self._count("OSError")
    with contextlib.suppress(OSError), filler.open("wb") as file:
      while True:
        file.write(b"0" * 2**16)
    filled = lambda: self._count("DiskFull") + self._count("OSError") > stops  # noqa: E731
    with contextlib.suppress(TimeoutError):
      self.wait_for(lambda: filled() or "its disk is full" in self._tail(), "a full disk")
    filler.unlink()

  def _tail(self) -> str:
    return self._log.read_text()[-3000:]

  def _count(self, reason: str) -> int:
    path = self._workdir / "events.jsonl"
    return path.read_text().count(f'"reason": "{reason}"') if path.exists() else 0


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
  """Mounts one at a folder, where that is allowed."""
  folder.mkdir(parents=True)
  words = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
  mounted = sys.platform == "linux" and not subprocess.run(words, capture_output=True).returncode
  try:
    yield
  finally:
    if mounted:
      subprocess.run(["umount", "-l", str(folder)], check=True)


def look(workdir: Path) -> dict:
  """What must not depend on how often a run was disturbed."""
  done = subprocess.run(
    [sys.executable, "-m", "sora_jax", "inspect", f"--workdir={workdir}", "--json"],
    capture_output=True, text=True, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )  # fmt: skip
  facts = json.loads(done.stdout.splitlines()[-1])
  lines = [(line["step"], line["loss"], line["grad_norm"]) for line in read_metrics(workdir)]
  return {name: facts[name] for name in SAME} | {"lines": lines}


def draw(kinds: list[str], faults: int, chance: random.Random) -> list[str]:
  """So many kinds of faults, each about as often as the others, in any order."""
  drawn = kinds * (faults // len(kinds) + 1)
  chance.shuffle(drawn)
  return drawn[:faults]


def most_lost(fault: str) -> int:
  """Steps that a fault may cost: none where the run was asked to leave."""
  if fault.startswith(("SIGTERM", "restart")):
    return 0
  # A checkpoint that was truncated is one that cannot be gone back to: the one before counts.
  return 2 * EVERY + 2 if fault.startswith("truncated") else EVERY + 1


def run(folder: Path, faults: int, seed: int, most: float = MOST_SECONDS) -> list[Row]:
  """The rows of the table. Nothing may stand still for `most` seconds.

  Raises:
    AssertionError: the disturbed run is another one at its end.
    TimeoutError: it hung.
  """
  chance = random.Random(seed)
  steps = EVERY * (faults + 3) + faults
  log, calm = folder / "log.txt", folder / "calm"
  folder.mkdir(parents=True, exist_ok=True)
  log.touch()
  quiet = Supervisor(command(calm, steps, "", most), PROCESSES, log)
  while quiet.code() is None:
    time.sleep(0.2)
  if quiet.code():
    raise RuntimeError(f"chaos: the undisturbed run ended with {quiet.code()}: {log}")
  rows = []
  with small_disk(folder / "disk"):
    workdir = folder / "disk" / "run"
    data = str(calm / "data" / "latents")
    chaos = Chaos(workdir, command(workdir, steps, data, most), chance, log, most)
    try:
      at = EVERY + 1
      for kind in draw(chaos.kinds(), faults, chance):
        rows.append(chaos.inflict(kind, at))
        print(f"chaos: {rows[-1]}", file=sys.stderr, flush=True)
        at = max(at + 2, chaos.step() + chance.randrange(1, EVERY))
        at = min(at, steps - 2)
      chaos.finish()
      found, expected = look(workdir), look(calm)
    finally:
      chaos.kill()
  for name, value in expected.items():
    assert found[name] == value, f"chaos: {name} differs, seed={seed}: {log}"
  return rows


def main(argv=None) -> int:
  p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  p.add_argument("--faults", type=int, default=20)
  p.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
  p.add_argument("--folder", default="", help="for runs and log (default: a temporary one)")
  p.add_argument("--out", default="", help="file for the table (default: stdout alone)")
  args = p.parse_args(argv)
  folder = Path(args.folder or tempfile.mkdtemp(prefix="sora-chaos-"))
  print(f"chaos: seed={args.seed}, {folder}", file=sys.stderr)
  rows = run(folder, args.faults, args.seed)
  table = ["| fault | at step | steps lost | seconds to the next new step |", "|---|---|---|---|"]
  table += [f"| {row.fault} | {row.step} | {row.lost} | {row.seconds} |" for row in rows]
  print("\n".join(table))
  if args.out:
    Path(args.out).write_text("\n".join(table) + "\n", encoding="utf-8")
  costly = [row for row in rows if row.lost > most_lost(row.fault)]
  for row in costly:
    print(f"chaos: {row} lost more than the steps since the last checkpoint", file=sys.stderr)
  return 1 if costly else 0


if __name__ == "__main__":
  sys.exit(main())

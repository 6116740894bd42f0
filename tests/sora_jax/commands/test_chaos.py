"""Real processes, killed and stopped: the run ends bit for bit as one that nobody disturbed."""

import random
import signal
import time

import pytest

from experiments.benchmarks import chaos
from sora_jax.train.metrics import read_metrics

pytestmark = pytest.mark.slow

SAME = ("step", "tokens_seen", "clips_seen", "cursor", "params_sha256", "ema_sha256", "opt_sha256")


@pytest.fixture
def end(sora):
  """What must not depend on how often a run was interrupted."""

  def look(workdir):
    facts = sora("inspect", f"--workdir={workdir}", "--json").result
    lines = [(line["step"], line["loss"], line["grad_norm"]) for line in read_metrics(workdir)]
    return {name: facts[name] for name in SAME} | {"lines": lines}

  return look


def kill_at(process, workdir, *, step: int, seconds: float) -> None:
  """Ends a process where it stands, some time after a step (0: after its start)."""
  if step:
    process.wait_for(workdir, step)
  time.sleep(seconds)
  assert process.signal(signal.SIGKILL) == -signal.SIGKILL, process.log()


def test_three_kills_change_nothing(start, finished, end, debug, tmp_path):
  workdir, seed = tmp_path / "run", random.SystemRandom().randrange(2**32)
  chance = random.Random(seed)
  argv = ("train", *debug.argv, f"--workdir={workdir}")
  moments = [
    dict(step=0, seconds=chance.uniform(0.5, 4.0)),  # importing, making data, compiling
    dict(step=chance.randrange(1, 8), seconds=chance.uniform(0.0, 0.3)),
    dict(step=chance.randrange(8, 12), seconds=chance.uniform(0.0, 0.15)),
  ]
  for moment in moments:
    kill_at(start(*argv), workdir, **moment)
  last = start(*argv)
  assert last.wait() == 0, last.log()
  expected = end(finished)
  assert [step for step, *_ in expected["lines"]] == list(range(1, debug.steps + 1))
  assert end(workdir) == expected, f"{seed=}, {moments=}"


def test_sigterm_saves_and_the_same_command_goes_on(start, sora, workdir, finished, end, debug):
  folder = workdir(debug.steps - 2 * debug.every)
  argv = ("train", *debug.argv, f"--workdir={folder}")
  first = start(*argv)
  first.wait_for(folder, debug.steps - 2 * debug.every + 1)
  first.send(signal.SIGTERM)  # a second one, while it saves or soon before, changes nothing
  time.sleep(0.05)
  assert first.signal(signal.SIGTERM) == 42, first.log()
  saved = sora("inspect", f"--workdir={folder}", "--json").result
  step = saved["step"]
  assert debug.steps - 2 * debug.every < step < debug.steps
  assert read_metrics(folder)[-1]["step"] == step
  assert first.log().splitlines()[-1] == (
    f"sora train: stopped by SIGTERM, saved at step {step}. The same command resumes."
  )
  assert sora(*argv).result["step"] == debug.steps
  assert end(folder) == end(finished)


def test_four_processes_under_faults(tmp_path):
  """Two minutes of `make chaos`, with the patience of a machine that does other work."""
  seed = random.SystemRandom().randrange(2**32)
  rows = chaos.run(tmp_path, 2, seed, most=240.0)
  assert len(rows) == 2 and all(r.lost <= chaos.most_lost(r.fault) for r in rows), (seed, rows)

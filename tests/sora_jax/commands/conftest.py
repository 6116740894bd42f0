"""What tests of the command line share: `sora` in this process, real processes, one trained run."""

import contextlib
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx

from sora_jax.commands.entry import main
from sora_jax.models.frozen_vae import save_frozen_vae
from sora_jax.models.vae import make_codec
from sora_jax.train.metrics import cut_back, read_metrics

ROOT = Path(__file__).resolve().parents[3]
STEPS, EVERY = 20, 4  # steps of the trained run; steps between its checkpoints, the last three kept
DEBUG = (
  "--config=experiments/demo.py:debug",
  f"--config.total_steps={STEPS}",
  f"--config.every.checkpoint_steps={EVERY}",
  "--config.every.evaluate_steps=10",
  "--config.optim.warmup_steps=2",
)
CODEC = dict(
  name="vae", widths=[8], blocks=[1], strides=[[4, 8]], taps=2, latent_channels=3, dtype="float32"
)


def pytest_configure(config):
  # ml_collections loads experiments that way; the warning is not ours to mend.
  config.addinivalue_line("filterwarnings", "ignore:the load_module:DeprecationWarning")


class Done(NamedTuple):
  """What a command left: exit code, stdout, stderr."""

  code: int
  out: str
  err: str

  @property
  def result(self) -> dict:
    assert self.code == 0, self.err
    return json.loads(self.out)


def call(*argv) -> Done:
  """Runs a command line in this process."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = main([str(word) for word in argv])
  return Done(code, out.getvalue(), err.getvalue())


class Process:
  """A `python -m sora_jax …` of its own, its output in a file."""

  def __init__(self, argv, log: Path):
    self._log = log
    with log.open("w") as file:
      self._process = subprocess.Popen(
        [sys.executable, "-m", "sora_jax", *map(str, argv)],
        cwd=ROOT,
        stdout=file,
        stderr=file,
      )

  def wait_for(self, workdir: Path, step: int, seconds: float = 240.0) -> None:
    """Until `step` has its line in metrics.jsonl."""
    end = time.monotonic() + seconds
    while not any(line["step"] >= step for line in read_metrics(workdir)):
      assert self._process.poll() is None and time.monotonic() < end, self._log.read_text()
      time.sleep(0.01)

  def send(self, number) -> None:
    self._process.send_signal(number)

  def signal(self, number) -> int:
    """Sends a signal and returns the exit code: minus the signal where it was not handled."""
    self._process.send_signal(number)
    return self.wait()

  def wait(self) -> int:
    return self._process.wait(timeout=240)

  def log(self) -> str:
    return self._log.read_text()


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
  """A folder that all workers of a test run have in common."""
  base = tmp_path_factory.getbasetemp()
  base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
  folder = base / "commands"
  folder.mkdir(exist_ok=True)
  return folder


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
  """Commands name experiments as a user in the repository does."""
  monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def finished(shared) -> Path:
  """Workdir of a run of `DEBUG` that nobody disturbed. Only to be read: see `workdir`."""
  folder = shared / "finished"
  with (shared / "lock").open("w") as lock, contextlib.chdir(ROOT):
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (shared / "done").exists():
      done = call("train", *DEBUG, f"--workdir={folder}")
      assert done.code == 0, done.err
      (shared / "done").touch()
  return folder


@pytest.fixture
def workdir(finished, tmp_path):
  """Makes copies of the finished run, cut back to one of its checkpoints."""

  def make(step: int = STEPS) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    for folder in (copy / "checkpoints").iterdir():
      if folder.name.isdigit() and int(folder.name) > step:
        shutil.rmtree(folder)
    cut_back(copy, step)
    return copy

  return make


@pytest.fixture(scope="session")
def draw_vae():
  """Keeps a VAE with drawn parameters in a workdir as a finished run does; returns the workdir."""

  def draw(workdir: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    shapes = nnx.state(nnx.eval_shape(lambda: make_codec(CODEC, seed=0)))
    params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32) * 0.3, shapes)
    statistics = {"mean": np.zeros(3), "std": np.ones(3)}
    folder = workdir / "frozen" / "vae"
    save_frozen_vae(folder, config=CODEC, params=params, statistics=statistics)
    return workdir

  return draw


@pytest.fixture
def start(tmp_path):
  """Starts processes: `start("train", …)`."""
  count = iter(range(100))
  return lambda *argv: Process(argv, tmp_path / f"log{next(count)}.txt")


@pytest.fixture
def sora():
  """Runs a command line in this process: `sora("train", …)` -> code, out, err, result."""
  return call


@pytest.fixture
def debug():
  """The trained run's command line, without its workdir, and its counts of steps."""
  return SimpleNamespace(argv=DEBUG, steps=STEPS, every=EVERY)


@pytest.fixture
def contents():
  """Gives size and time of every file of a folder, but for the log of events."""

  def look(folder: Path) -> dict[str, tuple[int, int]]:
    return {
      str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
      for path in sorted(folder.rglob("*"))
      if path.is_file() and path.name != "events.jsonl"
    }

  return look

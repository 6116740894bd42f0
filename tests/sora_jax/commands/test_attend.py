"""What takes minutes in C++ says so, and ends when it is told to."""

import os
import signal
import tempfile
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from sora_jax.commands import attend as module
from sora_jax.commands import plan as plan_command
from sora_jax.commands.attend import Ended, attend
from sora_jax.plan.compile import Program, compile_program


@pytest.fixture
def stuck():
  """A call that returns when the test is over."""
  over = threading.Event()
  yield lambda: over.wait(60)
  over.set()


def signal_soon(number: int) -> None:
  threading.Timer(0.2, lambda: os.kill(os.getpid(), number)).start()


def test_results_and_errors_come_back(capsys):
  assert attend(lambda: 7, "plan: compiles") == 7
  with pytest.raises(KeyError, match="gone"):
    attend(lambda: {}["gone"], "plan: compiles")
  assert capsys.readouterr().err == ""  # what is soon done gets no line


def test_says_how_long_it_takes_more_and_more_rarely(stuck, capsys, monkeypatch):
  monkeypatch.setattr(module, "POLL", 0.001)
  seconds = iter(range(0, 10_000, 2))
  over = threading.Event()

  def clock() -> float:
    now = next(seconds)
    if now > 250:
      over.set()
    return now

  attend(lambda: over.wait(60), "plan: compiles", clock)
  lines = capsys.readouterr().err.splitlines()
  assert 8 <= len(lines) <= 11 and all("plan: compiles, 0:0" in line for line in lines), lines
  told = [line.split(", ")[1][:7] for line in lines]
  assert "0:00:10" <= told[0] < "0:00:20" and told[-1] >= "0:03:00"


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (15, Ended)])
def test_a_signal_ends_it_at_once(stuck, number, error):
  before = signal.getsignal(signal.SIGTERM)
  begin = time.monotonic()
  signal_soon(number)
  with pytest.raises(error):
    attend(stuck, "plan: compiles")
  assert time.monotonic() - begin < 5 and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
  ("number", "said"),
  [(signal.SIGINT, "sora plan: interrupted."), (15, "remat=block: ended by SIGTERM.")],
)
def test_a_plan_ends_in_one_line_and_leaves_nothing(
  sora, stuck, monkeypatch, tmp_path, number, said
):
  """The compiler is still at it: its dump is removed all the same."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  (device,) = jax.devices()[:1]
  monkeypatch.setattr(plan_command, "describe_devices", lambda pod: [device])

  def lower():
    assert list(tmp_path.glob("sora-plan-*"))  # where XLA dumps
    signal_soon(number)
    stuck()

  program = Program(lower, None, None, 1)
  monkeypatch.setattr(plan_command, "build_program", lambda config, mesh: (program, None))
  done = sora("plan", "--config=sora_300m:tiny", "--topology=v5e:1", "--mesh=fsdp=1")
  assert done.code == 1 and done.out == "" and "Traceback" not in done.err
  *_, begins, last = done.err.splitlines()
  assert "plan: compiles" in begins and "(a large model takes minutes)" in begins
  assert said in last
  assert not [path for path in tmp_path.rglob("*") if path.is_file() or "plan-" in path.name]


def test_a_program_is_compiled_as_it_was_attended(monkeypatch):
  """`attend` has the compiling alone: the same program comes out of it."""
  x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
  seen = []

  def watch(work):
    seen.append(work())
    raise RuntimeError("seen")

  program = Program(lambda: jax.jit(lambda x: x @ x).lower(x), None, None, 1)
  with pytest.raises(RuntimeError, match="seen"):
    compile_program(program, "tpu", watch)
  assert "dot" in seen[0].as_text()

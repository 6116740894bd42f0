"""A trace and the program of a run, which is not changed by it."""

import json

import jax
import jax.numpy as jnp

from sora_jax.train.profile import Profiler, keep_program


def work(x):
  return jnp.tanh(x @ x)


def test_the_program_is_compiled_once_and_written(tmp_path):
  traced = []

  def step(x):
    traced.append(1)
    return work(x)

  run = keep_program(jax.jit(step, donate_argnums=0), tmp_path / "profile")
  x = jnp.eye(64)
  for _ in range(3):
    x = run(x)
  assert len(traced) == 1
  assert x[0, 0] == jnp.tanh(jnp.tanh(jnp.tanh(1.0) ** 2) ** 2)
  assert "tanh" in (tmp_path / "profile" / "step.hlo.txt").read_text()
  assert "stablehlo.tanh" in (tmp_path / "profile" / "step.stablehlo.txt").read_text()
  memory = json.loads((tmp_path / "profile" / "memory.json").read_text())
  assert memory["argument_bytes"] == memory["output_bytes"] == 64 * 64 * 4


def test_a_trace_of_the_steps_asked_for(tmp_path, capsys):
  with Profiler(tmp_path, first=2, steps=2) as profiler:
    for step in range(11, 16):
      jax.block_until_ready(jax.jit(work)(jnp.eye(32)))
      profiler(step)
  (folder,) = tmp_path.iterdir()
  assert folder.name == "step-12"
  assert list(folder.rglob("*.xplane.pb")) and list(folder.rglob("perfetto_trace*"))
  assert f"trace and program are in {tmp_path}" in capsys.readouterr().err


def test_a_session_too_short_for_a_trace_says_so(tmp_path, capsys):
  with Profiler(tmp_path, first=10, steps=2) as profiler:
    profiler(1)
  assert "no trace: the session did 1 steps, profile.first_step=10" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_a_stop_within_the_trace_keeps_it(tmp_path):
  with Profiler(tmp_path, first=1, steps=5) as profiler:
    profiler(1)
  assert list(tmp_path.rglob("*.xplane.pb"))


def test_nothing_is_traced_unless_asked_for(tmp_path, capsys):
  with Profiler(tmp_path, first=1, steps=0) as profiler:
    profiler(1)
  assert not list(tmp_path.iterdir()) and capsys.readouterr().err == ""

"""Compiled programs are kept between processes."""

import os
import subprocess
import sys
import tempfile

from sora_jax.commands import plan_cache
from sora_jax.commands.compiled import FOLDER, LEAST_SECONDS, keep_compiled

PROGRAM = """
from sora_jax.commands.compiled import keep_compiled
keep_compiled()
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: jnp.sin(x @ x))(jnp.ones((8, 8)))
print(sum("cache_hits" in name for name in hits))
"""


def start(**changes) -> str:
  """What the program prints, in an environment that says nothing of a cache but for `changes`."""
  environment = {name: value for name, value in os.environ.items() if "CACHE" not in name}
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM], env=environment | changes, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  return done.stdout + done.stderr


def test_the_second_start_does_not_compile(tmp_path):
  environment = {"XDG_CACHE_HOME": str(tmp_path), LEAST_SECONDS: "0"}
  assert start(**environment) == "0\n"
  assert list((tmp_path / "sora_jax" / "xla").iterdir())
  hits = start(**environment).strip()
  assert hits.isdecimal() and int(hits) > 0
  assert start(**environment, JAX_ENABLE_COMPILATION_CACHE="false") == "0\n"


def test_what_the_user_set_stays():
  environment = {FOLDER: "gs://bucket/cache"}
  keep_compiled(environment)
  assert environment[FOLDER] == "gs://bucket/cache"
  environment = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
  keep_compiled(environment)
  assert FOLDER not in environment


def test_a_home_that_is_not_known_costs_nothing(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  environment = {FOLDER: "~/programs"}
  keep_compiled(environment)
  assert environment[FOLDER] == str(tmp_path / "home" / "programs")
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user without an entry
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  environment = {}
  keep_compiled(environment)
  assert environment[FOLDER] == f"{tmp_path}/sora_jax-{os.getuid()}/xla"
  assert plan_cache.cache_file({}, "v5e:1").is_absolute()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
  keep_compiled(environment)
  assert FOLDER not in environment
  line = f"sora: {tmp_path}/file/sora_jax/xla cannot be written, so every start compiles anew."
  assert capsys.readouterr().err.startswith(line)

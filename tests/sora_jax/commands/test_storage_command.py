"""A run whose workdir is a URL goes on on another machine, which has nothing of it."""

import json
import socket

from sora_jax.train.metrics import read_metrics
from sora_jax.train.stop import Signals
from sora_jax.train.workdir import copy_folder

SAME = ("step", "tokens_seen", "clips_seen", "cursor", "params_sha256", "ema_sha256", "opt_sha256")


def test_a_run_moves_to_another_machine(sora, debug, finished, s3, tmp_path, monkeypatch):
  url = f"{s3}/moves"
  argv = ("train", *debug.argv, f"--config.data.path={finished}/data/latents", f"--workdir={url}")

  def become(machine: str):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
    monkeypatch.setattr(socket, "gethostname", lambda: machine)

  become("one")
  with monkeypatch.context() as patch:
    patch.setattr(Signals, "__call__", lambda _, step: "SIGTERM" if step == 7 else "")
    assert sora(*argv).code == 42
  become("two")
  done = sora(*argv)
  assert done.result["step"] == debug.steps and done.result["workdir"] == url
  assert f"resumes at step 7 of {debug.steps}" in done.err
  found, expected = (
    sora("inspect", f"--workdir={name}", "--json").result for name in (url, finished)
  )
  assert {name: found[name] for name in SAME} == {name: expected[name] for name in SAME}
  assert found["goodput"]["stops"] == {"Preempted": 1, "done": 1}
  lines = [[(m["step"], m["loss"]) for m in read_metrics(f)] for f in (copy_folder(url), finished)]
  assert lines[0] == lines[1]
  assert json.loads((copy_folder(url) / "config.json").read_text())["total_steps"] == debug.steps

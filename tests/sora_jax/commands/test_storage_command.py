"""A run whose workdir is a URL goes on on another machine, and leaves no secret anywhere."""

import json
import socket

import fsspec

from sora_jax.train.metrics import read_metrics
from sora_jax.train.stop import Signals
from sora_jax.train.workdir import copy_folder

SECRETS = ("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "MY_PASSWORD")
SAME = ("step", "tokens_seen", "clips_seen", "cursor", "params_sha256", "ema_sha256", "opt_sha256")


def test_a_run_moves_to_another_machine(sora, debug, finished, s3, tmp_path, monkeypatch):
  url = f"{s3}/moves"
  argv = ("train", *debug.argv, f"--config.data.path={finished}/data/latents", f"--workdir={url}")

  def become(machine: str):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
    monkeypatch.setattr(socket, "gethostname", lambda: machine)

  planted = [f"planted-{name.lower()}" for name in SECRETS]
  for name, word in zip(SECRETS, planted, strict=True):
    monkeypatch.setenv(name, word)  # the server takes any
  become("one")
  with monkeypatch.context() as patch:
    patch.setattr(Signals, "__call__", lambda _, step: "SIGTERM" if step == 7 else "")
    first = sora(*argv)
  assert first.code == 42
  become("two")
  done = sora(*argv)
  assert done.result["step"] == debug.steps and done.result["workdir"] == url
  assert f"resumes at step 7 of {debug.steps}" in done.err
  looked = [sora("inspect", f"--workdir={name}", "--json") for name in (url, finished)]
  found, expected = (one.result for one in looked)
  assert {name: found[name] for name in SAME} == {name: expected[name] for name in SAME}
  assert found["goodput"]["stops"] == {"Preempted": 1, "done": 1}
  lines = [[(m["step"], m["loss"]) for m in read_metrics(f)] for f in (copy_folder(url), finished)]
  assert lines[0] == lines[1]
  assert json.loads((copy_folder(url) / "config.json").read_text())["total_steps"] == debug.steps
  written = {str(p): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
  store, root = fsspec.core.url_to_fs(url)
  written |= {path: store.cat_file(path) for path in store.find(root)}
  said = [text for one in (first, done, looked[0]) for text in (one.out, one.err)]
  written["said"] = "".join(said).encode()
  assert len(written) > 20 and any("/checkpoints/" in path for path in written)
  for path, content in written.items():
    assert not any(word.encode() in content for word in planted), path

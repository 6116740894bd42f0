"""What stops a run with exit code 1: one line, and the checkpoint before it whole."""

from sora_jax.train import checkpoint, session
from sora_jax.train.metrics import read_metrics


def hashes(sora, workdir):
  facts = sora("inspect", f"--workdir={workdir}", "--json").result
  return {name: facts[name] for name in facts if name.endswith("sha256")} | {"step": facts["step"]}


def last_line(done):
  *before, last = done.err.splitlines()
  assert "Traceback" not in done.err and not any(line.startswith("sora ") for line in before)
  return last


def test_a_full_disk_keeps_the_checkpoint_before(sora, workdir, debug, monkeypatch):
  begin = debug.steps - 2 * debug.every
  folder = workdir(begin)
  before = hashes(sora, folder)
  monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 10_000)
  done = sora("train", *debug.argv, f"--workdir={folder}")
  assert done.code == 1
  assert last_line(done).startswith(
    f"sora train: checkpoint: free=10,000 bytes on the disk of {folder / 'checkpoints'} are less"
  )
  assert f"that step {begin + debug.every} needs (the checkpoint at step {begin} is whole)" in (
    last_line(done)
  )
  assert hashes(sora, folder) == before and before["step"] == begin


def test_a_loss_that_is_not_finite_names_the_steps(sora, workdir, debug, monkeypatch):
  begin = debug.steps - 2 * debug.every
  saved = begin + debug.every
  folder, bad = workdir(begin), saved + 2
  honest, counted = session.make_put, iter(range(begin + 1, 100))

  def poison(mesh):
    put = honest(mesh)
    factor = lambda: float("nan") if next(counted) == bad else 1.0  # noqa: E731
    return lambda batch: put(batch | {"latents": batch["latents"] * factor()})

  monkeypatch.setattr(session, "make_put", poison)
  done = sora("train", *debug.argv, f"--workdir={folder}")
  assert done.code == 1
  assert last_line(done).startswith("sora train: loss=nan, grad_norm=nan, param_norm=nan ")
  assert f"in steps {bad} to {bad}. Last good checkpoint: step {saved}" in last_line(done)
  assert hashes(sora, folder)["step"] == saved and read_metrics(folder)[-1]["step"] == bad - 1

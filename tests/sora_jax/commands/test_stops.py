"""What stops a run with exit code 1: one line, and the checkpoint before it whole."""

import itertools

from sora_jax.train import checkpoint, session
from sora_jax.train.metrics import read_metrics


def hashes(sora, workdir):
  facts = sora("inspect", f"--workdir={workdir}", "--json").result
  return {name: facts[name] for name in facts if name.endswith("sha256")} | {"step": facts["step"]}


def last_line(done):
  *before, last = done.err.splitlines()
  assert "Traceback" not in done.err and not any(line.startswith("sora ") for line in before)
  return last


def losses(workdir):
  return [(line["step"], line["loss"], line["tokens_seen"]) for line in read_metrics(workdir)]


def spoil(monkeypatch, *, first: int, factors: dict[int, float]) -> None:
  """Multiplies the latents of some batches, counted from `first` on as they are put on devices."""
  honest, counted = session.make_put, itertools.count(first)

  def make_put(mesh):
    put = honest(mesh)
    return lambda b: put(b | {"latents": b["latents"] * factors.get(next(counted), 1.0)})

  monkeypatch.setattr(session, "make_put", make_put)


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


def test_a_checkpoint_of_another_number_is_refused_before_a_step(sora, workdir, debug):
  """Else the run would go on from its state, and Orbax would save no step below its number."""
  folder = workdir(step := debug.steps - 2 * debug.every)
  checkpoints, events = folder / "checkpoints", folder / "events.jsonl"
  (checkpoints / str(step)).rename(checkpoints / "9000")
  lines = read_metrics(folder)
  done = sora("train", *debug.argv, f"--workdir={folder}")
  assert done.code == 2
  assert f"checkpoints/9000 holds the state of step {step}: it was renamed or" in last_line(done)
  advice = f"Move that folder elsewhere, or give it the name {step}."
  assert last_line(done).endswith(advice)  # training takes no step by name
  assert read_metrics(folder) == lines and [p.name for p in checkpoints.iterdir()] == ["9000"]
  assert '"begin"' not in events.read_text().splitlines()[-1]
  (checkpoints / "9000").rename(checkpoints / str(step))
  assert sora("inspect", f"--workdir={folder}", "--json").result["step"] == step


def test_a_loss_that_is_not_finite_names_the_steps(sora, workdir, debug, monkeypatch):
  begin = debug.steps - 2 * debug.every
  saved = begin + debug.every
  folder, bad = workdir(begin), saved + 2
  spoil(monkeypatch, first=begin + 1, factors={bad: float("nan")})
  done = sora("train", *debug.argv, f"--workdir={folder}")
  assert done.code == 1
  assert last_line(done).startswith("sora train: loss=nan, grad_norm=nan, param_norm=nan ")
  assert f"in steps {bad} to {bad}. Last good checkpoint: step {saved}" in last_line(done)
  assert hashes(sora, folder)["step"] == saved and read_metrics(folder)[-1]["step"] == bad - 1


def test_a_spike_is_gone_back_from_and_its_data_is_left_out(sora, debug, tmp_path, monkeypatch):
  """As if its step of the data had been left out from the beginning, bit for bit."""
  bad, runs = 3 * debug.every + 2, [tmp_path / "spiked", tmp_path / "without"]
  argv = ("train", *debug.argv, "--config.spike.factor=3.0", "--config.spike.most=1")
  spoil(monkeypatch, first=1, factors={bad: 30.0})
  done = sora(*argv, f"--workdir={runs[0]}")
  assert done.result["step"] == debug.steps
  said = f"at step {bad} is above spike.factor=3 times the median"
  assert said in done.err and f"over steps {bad - 1} to {bad - 1} of the data" in done.err
  monkeypatch.undo()
  left_out = f"--config.data.skip_steps=(({bad - 1},{bad}),)"
  assert sora(*argv, left_out, f"--workdir={runs[1]}").result["step"] == debug.steps
  assert hashes(sora, runs[0]) == hashes(sora, runs[1])
  assert losses(runs[0]) == losses(runs[1])

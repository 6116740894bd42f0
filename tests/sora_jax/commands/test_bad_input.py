"""What a user can mend: one line on stderr, exit code 2, and nothing lost."""

import json
import os
import shutil

import pytest

from data_pipeline.dataset import Dataset
from data_pipeline.writer import DatasetWriter

DEBUG = "experiments/demo.py:debug"
TRAIN = ("train", f"--config={DEBUG}")


def complaint(done) -> str:
  """The last line of a command that refused, which says what is wrong; none before it does."""
  assert done.code == 2 and done.out == "", done
  assert "Traceback" not in done.err
  *before, last = done.err.splitlines()
  assert not [line for line in before if line.startswith("sora")]
  return last


@pytest.mark.parametrize(
  "words, text",
  [
    ("optim.lrr=3", "optim.lrr is not a setting of {}. Did you mean optim.lr?"),
    ("optm.warmup_steps=3", "Did you mean optim.warmup_steps?"),
    ("optim.lr=fast", "optim.lr=fast is not of type float ({} has 0.0"),
    ("total_steps=1.5", "total_steps=1.5 is not of type int ({} has 60)"),
    ("model.zero_init=perhaps", "model.zero_init=perhaps is not of type bool ({} has True)"),
    ("model=3", "model is a group of settings. Set one of them, such as model."),
    ("model.patch=(1,2,'a')", "model.patch=(1, 2, 'a') must be a tuple of 3 (each a whole number"),
    ("world.formats=((9,32,32,8.0),)", "world.formats=((9, 32, 32, 8.0),) must be a tuple of 1"),
    ("world.formats=((9.5,32,32,8.0,1.0),)", "world.formats=((9.5, 32, 32, 8.0, 1.0),) must be"),
    ("world.sizes=(1,)", "world.sizes=(1,) must be a tuple of 1 or more (one of ['large', 'small'"),
    ("model.patch=2", "model.patch=(2,) must be a tuple of 3 (each a whole number in [1, 64])"),
    ("every.checkpoint_steps=0", "checkpoint_steps=0 must be a whole number of 1 or more ({})"),
    ("total_steps=0", "total_steps=0 must be a whole number of 1 or more"),
    ("model.name=dot", "model.name='dot' is not one of ['dit', 'space_to_depth', 'vae']"),
    ("seed=9223372036854775808", "seed=9223372036854775808 must be a whole number in [0, 42949672"),
    ("diffusion.t_min=0.0", "diffusion.t_min=0.0 must be a number in [1e-06, 1]"),
    ("optim.lr=nan", "optim.lr=nan must be a number above 0, at most 1e+06"),
    ("model.attention_backend=splash", "backend='splash' runs on tpu, and these devices are cpu"),
    ("mesh.tensor=2", "mesh: data=-1, fsdp=1, context=1, tensor=2 does not use 1 devices evenly"),
  ],
)
def test_config(sora, tmp_path, words, text):
  done = sora(*TRAIN, f"--workdir={tmp_path}", f"--config.{words}")
  assert complaint(done).startswith("sora train: ") and len(done.err.splitlines()) == 1
  assert text.format(DEBUG) in done.err
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  "words, text",
  [
    (["trian"], "sora: 'trian' is not a command. Did you mean train? See sora --help."),
    (["train", "--workdir=w"], "the following arguments are required: --config. See sora train"),
    (["train", "--config=nowhere.py", "--workdir=w"], "config: no file 'nowhere.py'"),
    (
      ["train", "--config=experiments/demo.py:nope", "--workdir=w"],
      "demo.py:nope is not one of ['debug', 'dit', 'vae']",
    ),
    ([*TRAIN, "--workdir=/dev/null/w"], "--workdir=/dev/null/w cannot be written (Not a directory"),
    ([*TRAIN, "--workdir=w", "--steps=3"], "unrecognized arguments: --steps=3. See sora train"),
    (["data", f"--config={DEBUG}", "--out=/dev/null/w"], "/dev/null/w cannot be written (Not a"),
    (["demo", "--out=/dev/null/w"], "--out=/dev/null/w cannot be written (Not a directory"),
    (["inspect"], "one of the arguments --workdir --data is required"),
    (["inspect", "--workdir=w"], "--workdir=w holds no checkpoints folder"),
    (["inspect", "--data=w"], "w/meta.json does not exist, so w is no dataset"),
    (["sample", "--workdir=w", "--prompt=x", "--out=x.mp4"], "--workdir=w holds no run"),
    (["encode", "--workdir=w", "--data=d", "--out=o"], "w/frozen/vae/config.json does not exist"),
    (["encode", "--workdir=w", "--data=d", "--out=o", "--text=clip"], "name='clip' is not known"),
    (["eval", "--workdir=w", "--data=d", "--suite=fvd"], "invalid choice: 'fvd'"),
  ],
)
def test_commands(sora, words, text):
  done = sora(*words)
  assert text in complaint(done) and len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
  "words, text",
  [
    (["--prompt=" + "x" * 600], "tokens=601, over max_tokens=512"),
    (["--prompt=x", "--negative-prompt=" + "x" * 600], "tokens=601, over max_tokens=512"),
    (["--prompts=nowhere.txt"], "--prompts=nowhere.txt cannot be read"),
    (["--prompt=x", "--size=33x32"], "size=33x32 has width=33, not a multiple of 8"),
    (["--prompt=x", "--size=24x32"], "w=3 is not a multiple of its patch side 2"),
    (["--prompt=x", "--size=large"], "--size: large is not WIDTHxHEIGHT"),
    (["--prompt=x", "--seconds=nan"], "--seconds: nan must be a number in [0, 3600]"),
    (["--prompt=x", "--fps=0"], "--fps: 0 must be a number above 0, at most 1000"),
    (["--prompt=x", "--steps=0"], "--steps: 0 must be a whole number in [1, 100000]"),
    (["--prompt=x", "--solver=rk4"], "solver='rk4' is not one of ['euler', 'heun']"),
    (["--prompt=x", "--shift=0"], "shift=0 must be positive (1 is none), or auto"),
    (["--prompt=x", "--guidance=nan"], "--guidance: nan must be a number in [-1e+06, 1e+06]"),
    (["--prompt=x", "--draw=-1"], "--draw=-1 is not between 0 and"),
    (["--prompt=x", "--draw=9223372036854775808"], "is not between 0 and 2**63"),
    (["--prompt=x", "--rows=0"], "--rows: 0 must be a whole number in [1, 65536]"),
    (["--prompt=x", "--crf=99"], "--crf: 99 must be a whole number in [0, 51]"),
    (["--prompt=x", "--step=3"], "weights: step 3 is not saved in"),
    (["--prompt=x", "--weights=opt"], "weights: 'opt' is not one of ['ema', 'params']"),
  ],
)
def test_samples(sora, finished, tmp_path, words, text):
  done = sora("sample", f"--workdir={finished}", f"--out={tmp_path / 'x.mp4'}", *words)
  assert text in complaint(done) and len(done.err.splitlines()) == 1
  assert not list(tmp_path.glob("*.mp4"))


@pytest.mark.parametrize("text", ["def get_config(arg=", "1 / 0"])
def test_a_config_file_that_does_not_load(sora, tmp_path, text):
  path = tmp_path / "mine.py"
  path.write_text(text)
  done = sora("train", f"--config={path}:dit", f"--workdir={tmp_path / 'run'}")
  assert str(path) in complaint(done) and len(done.err.splitlines()) == 1
  assert not (tmp_path / "run").exists()


def test_no_samples_are_no_question(sora):
  words = ("--workdir=w", "--data=d", "--suite=adherence", "--samples=0")
  assert "--samples: 0 must be a whole number of 1 or more" in complaint(sora("eval", *words))


@pytest.mark.parametrize(
  "out, text",
  [
    ("nowhere/x.mp4", "write: out="),
    ("", " is no file of .mp4 or .png. Name one"),
    ("file/x.mp4", "write: out="),
  ],
)
def test_an_out_path_that_cannot_be_written(sora, finished, tmp_path, out, text):
  (tmp_path / "file").touch()
  words = ("--prompt=x", f"--out={tmp_path / out}")
  assert text in complaint(sora("sample", f"--workdir={finished}", *words))


@pytest.mark.parametrize(
  "words, text",
  [
    ("optim.lr=0.5", "in the checkpoint, 0.5 now"),
    ("model.width=32", "model.width: 64 in the checkpoint, 32 now"),
    ("data.rows=8", "data.rows: 4 in the checkpoint, 8 now"),
    ("world.clips=65", "world.clips: 64 in the checkpoint, 65 now"),
    ("data.path=elsewhere", "elsewhere/meta.json does not exist, so elsewhere is no dataset"),
  ],
)
def test_a_workdir_of_another_config(sora, finished, debug, contents, words, text):
  before = contents(finished)
  done = sora("train", *debug.argv, f"--workdir={finished}", f"--config.{words}")
  assert text in complaint(done)
  assert contents(finished) == before


def test_a_workdir_of_another_dataset(sora, workdir, debug, contents):
  """The dataset at the same place has lost a record since the run began."""
  folder = workdir()
  path = folder / "data" / "latents"
  dataset = Dataset.open(path, kind="latent")
  path.rename(path.with_name("before"))
  dataset.path = path.with_name("before")
  with DatasetWriter(
    path, "latent", name=dataset.name, shard_bytes=10**9, meta=dataset.meta
  ) as writer:
    for row in range(len(dataset) - 1):
      writer.add(dataset.read(row))
    for part in ("vae", "text"):
      shutil.copytree(dataset.path / part, writer.folder / part)
  before = contents(folder)
  done = sora("train", *debug.argv, f"--workdir={folder}")
  assert "is not the checkpoint's" in complaint(done) and "(another dataset)" in complaint(done)
  assert contents(folder) == before


@pytest.fixture
def latents(finished, tmp_path):
  return shutil.copytree(finished / "data" / "latents", tmp_path / "latents")


@pytest.mark.parametrize(
  "damage, text",
  [
    (os.remove, "does not exist, the index says records="),
    (lambda path: os.truncate(path, path.stat().st_size // 2), "truncated or damaged"),
  ],
)
def test_a_missing_or_truncated_shard(sora, latents, tmp_path, damage, text):
  damage(next(latents.glob("*-train.array_record-*")))
  workdir = tmp_path / "run"
  train = sora(*TRAIN, f"--workdir={workdir}", f"--config.data.path={latents}")
  assert text in complaint(train) and "-train.array_record-" in complaint(train)
  assert text in complaint(sora("inspect", f"--data={latents}"))
  assert not (workdir / "checkpoints").exists()


@pytest.mark.parametrize(
  "words, text",
  [
    ("model.patch=(1,2,4)", r"w=6 of clip row"),
    ("data.slots=16", "more than slots=16. Raise data.slots"),
    ("data.caption_slots=8", "caption_slots=8"),
  ],
)
def test_clips_that_do_not_fit(sora, latents, tmp_path, words, text):
  path = f"--config.data.path={latents}"
  done = sora(*TRAIN, f"--workdir={tmp_path / 'run'}", path, f"--config.{words}")
  assert text in complaint(done)


def test_weights_of_another_model(sora, finished, debug, tmp_path):
  words = (f"--config.init_from={finished}", "--config.model.width=32")
  done = sora("train", *debug.argv, f"--workdir={tmp_path}", *words)
  assert "norm_k/scale=(2, 32), this model has (2, 16)" in complaint(done)


def test_a_step_is_said_apart_from_its_run(sora, finished, debug, tmp_path):
  """What was once RUN@STEP is refused by whatever reads a run, which says how to write it."""
  old = f"{finished}@{debug.steps}"
  for words in (
    ("train", *debug.argv, f"--workdir={tmp_path / 'run'}", f"--config.init_from={old}"),
    ("sample", f"--workdir={old}", "--prompt=x", f"--out={tmp_path / 'x.mp4'}"),
    ("eval", f"--workdir={old}", "--suite=adherence", "--data=d", f"--out={tmp_path / 'e'}"),
    ("inspect", f"--workdir={old}"),
    ("encode", f"--workdir={old}", "--data=d", "--out=o", "--text=bytes"),
  ):
    done = sora(*words)
    text = f"run: {old} is none, but {finished} has a step {debug.steps}. A step is said apart from"
    assert text in complaint(done), words
    assert f"--step={debug.steps}, or init_step={debug.steps} in a config." in done.err
  words = ("train", *debug.argv, f"--workdir={tmp_path / 'run'}")
  for step, text in (("-2", "must be a whole number of -1 or more"), ("4", "is no step of")):
    done = sora(*words, f"--config.init_step={step}")
    assert f"init_step={step} {text}" in complaint(done)


def test_a_video_model_is_not_asked_for_samples(sora, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"model": {"name": "vae"}}))
  done = sora("sample", f"--workdir={tmp_path}", "--prompt=x", f"--out={tmp_path / 'x.mp4'}")
  assert "is a run of a vae. Give the workdir of a DiT." in complaint(done)

"""A session on a toy task: another run's weights, resuming, and what a workdir refuses."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipeline.errors import BadInput
from sora_jax.parallel.mesh import make_mesh
from sora_jax.parallel.rules import REPLICATED
from sora_jax.train.averages import ExponentialAverage
from sora_jax.train.checkpoint import Checkpoints
from sora_jax.train.metrics import Counts, read_metrics
from sora_jax.train.optim import make_schedule
from sora_jax.train.run_folder import check_workdir
from sora_jax.train.session import train
from sora_jax.train.task import Schedule, Task
from sora_jax.train.weights import Origin, check_origin, compare_origin, read_weights

STEPS, EVERY = 4, 2
HALF = {"ema": ExponentialAverage(0.5)}
NOWHERE = Origin("", None, "ema")


class Batches:
  """Numbers 0, 1, 2, … as host batches."""

  fingerprint = "plan"

  totals = None

  def __init__(self, cursor):
    self.cursor = {"batch": 0} | (cursor or {})

  def __iter__(self):
    return self

  def __next__(self):
    self.cursor = {"batch": self.cursor["batch"] + 1}
    return {"target": np.full(3, self.cursor["batch"], np.float32)}

  def close(self):
    pass


def task(*, side: int = 3, key: int = 0, dataset: str = "data", **changes) -> Task:
  def loss(params, frozen, batch):
    error = params["layer"]["kernel"].sum(0)[:3] - batch["target"]
    return jnp.mean(error**2) + params["layer"]["bias"] ** 2, {}

  return Task(
    init=lambda: {
      "layer": {
        "kernel": jax.random.normal(jax.random.key(key), (2, side)),
        "bias": jnp.float32(key + 1),
      }
    },
    gradient=jax.value_and_grad(loss, has_aux=True),
    optimizer=optax.adam(0.1),
    averages=HALF,
    rules=REPLICATED,
    batches=Batches,
    count=lambda totals: Counts(3, 1, 1.0, 4),
    hooks=[],
    dataset_fingerprint=dataset,
  )._replace(**changes)


def run(workdir, work=None, *, total=STEPS, origin=None, config=None):
  mesh = make_mesh(devices=jax.devices()[:1])
  workdir.mkdir(exist_ok=True)
  with jax.set_mesh(mesh):
    return train(
      work or task(),
      workdir,
      config or {"seed": 0},
      Schedule(total, 1, EVERY, 9, 0),
      mesh,
      origin=origin or NOWHERE,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A finished run, and its states at both checkpoints."""
  folder = tmp_path_factory.mktemp("session") / "user@host"  # a path may hold the sign of a step
  run(folder)
  with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
    return folder, {step: checkpoints.read(step) for step in (EVERY, STEPS)}


def equal(found, expected):
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b), found, expected)


@pytest.mark.parametrize("which", ["ema", "params"])
@pytest.mark.parametrize("step", [EVERY, None])
def test_starts_with_another_runs_weights(trained, tmp_path, which, step):
  folder, states = trained
  origin = Origin(str(folder), step, which)
  state, progress = run(tmp_path, task(key=5), total=0, origin=origin)
  expected = states[step or STEPS][which]
  equal(state.params, expected)
  equal(state.ema, expected)
  assert int(state.step) == 0 and progress.tokens_seen == 0 and progress.cursor == {"batch": 0}
  assert not np.any(jax.tree.leaves(jax.tree.map(np.any, state.opt)))  # its moments are its own
  assert np.any(
    states[EVERY]["ema"]["layer"]["kernel"] != states[EVERY]["params"]["layer"]["kernel"]
  )


def test_further_averages_are_kept_beside_the_first(trained, tmp_path):
  work = task(averages=HALF | {"0.25": ExponentialAverage(0.25), "0.9": ExponentialAverage(0.9)})
  state = run(tmp_path / "a", work)[0]
  equal(state.ema, trained[1][STEPS]["ema"])  # whatever else is kept
  assert list(state.averages) == ["0.25", "0.9"]
  with Checkpoints(tmp_path / "a" / "checkpoints", read_only=True) as checkpoints:
    assert checkpoints.averages(STEPS) == ["0.25", "0.9"]
    assert list(checkpoints.read(STEPS, parts=("averages/0.9",))) == ["averages/0.9"]
  source = str(tmp_path / "a")
  begun = run(tmp_path / "b", task(), total=0, origin=Origin(source, None, "ema:0.25"))[0]
  equal(begun.params, state.averages["0.25"])
  assert np.any(np.asarray(begun.params["layer"]["kernel"] != state.ema["layer"]["kernel"]))
  kept = r"\['ema', 'ema:0.25', 'ema:0.9'\]"
  with pytest.raises(BadInput, match=f"'ema:0.3' is not in .*keeps {kept}"):
    read_weights(Origin(source, None, "ema:0.3"))
  equal(run(tmp_path / "a", work)[0].averages, state.averages)  # and restored


def test_a_run_may_keep_no_average(trained, tmp_path):
  work = task(averages={})
  run(tmp_path / "a", work, total=EVERY)
  state = run(tmp_path / "a", work)[0]  # resumed
  assert state.ema == {} and state.averaged is state.params
  equal(state.params, trained[1][STEPS]["params"])
  source = Origin(str(tmp_path / "a"), None, "params")
  equal(read_weights(source)[0], read_weights(source._replace(run=str(trained[0])))[0])
  with pytest.raises(BadInput, match="keeps no average of its parameters. Give 'params'"):
    read_weights(source._replace(which="ema"))
  with Checkpoints(tmp_path / "a" / "checkpoints", read_only=True) as checkpoints:
    assert checkpoints.read(STEPS)["ema"] == {}


def test_a_decay_may_start_from_a_checkpoint_of_the_stable_phase(tmp_path):
  """Warm-up, stable, decay: a run that was planned longer branches off and equals a shorter one."""

  def train_to(folder, total):
    rate = dict(lr=0.1, schedule="wsd", warmup_steps=1, decay_steps=2, min_lr_ratio=0.1)
    optimizer = optax.adam(make_schedule(**rate, total_steps=total))
    config = {"total_steps": total, "optim": {"schedule": "wsd"}}
    return run(folder, task(optimizer=optimizer), total=total, config=config)[0]

  short = train_to(tmp_path / "short", STEPS)
  long = train_to(tmp_path / "long", STEPS + 4)
  branch = tmp_path / "branch" / "checkpoints"
  branch.mkdir(parents=True)
  shutil.copytree(tmp_path / "long" / "checkpoints" / str(EVERY), branch / str(EVERY))
  equal(train_to(tmp_path / "branch", STEPS), jax.device_get(short))
  assert np.any(np.asarray(long.params["layer"]["kernel"] != short.params["layer"]["kernel"]))


def test_other_weights_are_read_once(trained, tmp_path):
  """A run that has a checkpoint of its own goes on from it, wherever it began."""
  there = Origin(str(trained[0]), None, "ema")
  first = run(tmp_path / "a", origin=there)[0]
  run(tmp_path / "b", total=EVERY, origin=there)
  second = run(tmp_path / "b", origin=there._replace(run=str(tmp_path / "gone")))[0]
  equal(second, jax.tree.map(np.asarray, first))
  assert [line["step"] for line in read_metrics(tmp_path / "b")] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
  "source, step, which, text",
  [
    ("{}", 3, "ema", r"weights: step 3 is not saved in .*checkpoints, which has \[.*4\]"),
    ("{}@3", None, "ema", "@3' is no run with checkpoints. Give the folder of one"),
    ("{}@2", None, "ema", r"run: .*@2 is none, but .*@host has a step 2.*--step=2, or init_step=2"),
    ("{}@last", None, "ema", "is no run with checkpoints"),
    ("{}/nowhere", None, "ema", "is no run with checkpoints"),
    ("{}", None, "opt", r"weights: 'opt' is not one of \['ema', 'params'\]"),
  ],
)
def test_weights_that_are_not_there(trained, tmp_path, source, step, which, text):
  with pytest.raises(BadInput, match=text):
    run(tmp_path, origin=Origin(source.format(trained[0]), step, which))
  assert not list((tmp_path / "checkpoints").iterdir())


def test_weights_of_other_shapes(trained, tmp_path):
  text = r"holds layer/kernel=\(2, 3\), this model has \(2, 5\)"
  with pytest.raises(BadInput, match=text):
    run(tmp_path, task(side=5), origin=Origin(str(trained[0]), None, "ema"))


def test_weights_of_other_names(trained, tmp_path):
  work = task()
  renamed = work._replace(init=lambda: {"head": work.init()["layer"]})
  with pytest.raises(BadInput, match=r"holds head/bias=None, this model has \(\)"):
    run(tmp_path, renamed, origin=Origin(str(trained[0]), None, "ema"))


def test_reads_what_was_saved(trained):
  folder, states = trained
  weights, step = read_weights(Origin(str(folder), EVERY, "params"))
  assert step == EVERY and set(weights) == {"layer/bias", "layer/kernel"}
  equal(weights["layer/kernel"], states[EVERY]["params"]["layer"]["kernel"])
  assert read_weights(Origin(str(folder), None, "ema"))[1] == STEPS


def test_a_folder_that_is_named_like_a_step_of_another_run_is_itself(trained, tmp_path):
  """Beside a run `exp`, the run `exp@2` is sampled and started from, not step 2 of `exp`."""
  shutil.copytree(trained[0], tmp_path / "exp")
  state = run(tmp_path / "exp@2", task(key=5), total=EVERY)[0]
  found, step = read_weights(Origin(str(tmp_path / "exp@2"), None, "params"))
  assert step == EVERY
  equal(found["layer/kernel"], state.params["layer"]["kernel"])
  (tmp_path / "exp@4").mkdir()  # an empty folder is no run either, but a folder
  with pytest.raises(BadInput, match="exp@4' is no run with checkpoints"):
    read_weights(Origin(str(tmp_path / "exp@4"), None, "params"))


@pytest.mark.parametrize(
  "change, text",
  [
    (dict(config={"seed": 1}), "seed: 0 in the checkpoint, 1 now"),
    (dict(work=task(dataset="other")), "dataset_fingerprint=other is not the checkpoint's data"),
    (dict(work=task(side=4)), r"layer/kernel=\(2, 3\), this config makes \(2, 4\)"),
    (dict(total=EVERY), rf"total_steps={EVERY} is below step {STEPS}, which --workdir"),
  ],
)
def test_a_workdir_of_another_run(trained, change, text):
  """What is refused leaves config.json and metrics.jsonl as they are, the times included."""
  files = [trained[0] / name for name in ("config.json", "metrics.jsonl")]
  before = [(file.read_text(), file.stat().st_mtime_ns) for file in files]
  with pytest.raises(BadInput, match=text):
    run(trained[0], **{"total": STEPS + 2} | change)
  assert [(file.read_text(), file.stat().st_mtime_ns) for file in files] == before


def test_checks_a_workdir_before_anything_is_built(trained, tmp_path):
  check_workdir(tmp_path, {"seed": 7})  # no run yet
  check_workdir(trained[0], {"seed": 0})
  with pytest.raises(BadInput, match="seed: 0 in the checkpoint, 7 now. Use a new --workdir"):
    check_workdir(trained[0], {"seed": 7})


def test_more_steps_are_allowed_and_said(trained, tmp_path, capsys):
  config = {"seed": 0, "total_steps": EVERY, "optim": {"schedule": "cosine"}}
  run(tmp_path, total=EVERY, config=config)
  state, _ = run(tmp_path, config=config | {"total_steps": STEPS})
  assert int(state.step) == STEPS
  assert "train: resume: total_steps=4 was 2" in capsys.readouterr().err


def test_weights_that_predict_something_else_are_named(tmp_path, capsys):
  """Equal shapes, but velocities instead of clean patches: allowed, and said."""
  config = {"seed": 0, "model": {"prediction": "clean"}}
  run(tmp_path / "theirs", config=config)
  source = Origin(str(tmp_path / "theirs"), 2, "ema")
  run(tmp_path / "ours", total=0, config=config, origin=source)
  assert "prediction" not in capsys.readouterr().err
  other = {"seed": 0, "model": {"prediction": "velocity"}}
  run(tmp_path / "others", total=0, config=other, origin=source)
  assert "another prediction (clean, here velocity). Its weights" in capsys.readouterr().err
  assert compare_origin(source, tmp_path / "ours") == []


def test_weights_of_another_vae_or_text_encoder_are_refused(tmp_path):
  made_with = {"vae": "a" * 64, "text": "b" * 64}
  origin = Origin(str(tmp_path), 2, "ema")
  check_origin(origin, made_with)  # a run that keeps none, such as a VAE's
  for part, mark in made_with.items():
    folder = tmp_path / "frozen" / part
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"fingerprint": mark}))
  check_origin(origin, made_with)
  for part, what in (("vae", "VAE"), ("text", "text encoder")):
    text = rf"init_from={tmp_path} was trained with another {what} .* with cccccccccccc\)"
    with pytest.raises(BadInput, match=text):
      check_origin(origin, made_with | {part: "c" * 64})

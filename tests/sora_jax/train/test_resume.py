"""What may change on resume; and kill -9, three times, to the same last bit."""

import copy
import fnmatch
import functools
import os
import signal
import subprocess
import sys
import time

import pytest

from data_pipeline.errors import BadInput
from experiments import demo
from sora_jax.commands.inspect_run import describe_run
from sora_jax.train.metrics import read_metrics
from sora_jax.train.migrations import migrate
from sora_jax.train.resume import MAY_CHANGE, check_resume, flatten, run_facts, warn_inexact

CONFIG = {
  "version": 2,
  "total_steps": 100,
  "data": {"slots": 4096, "rows": 8},
  "model": {"width": 64, "patch": (1, 2, 2), "remat": "none"},
  "optim": {"lr": 1e-3, "schedule": "cosine"},
  "mesh": {"data": -1, "fsdp": 1},
  "every": {"log_steps": 10},
}
FACTS = dict(dataset_fingerprint="d1", plan_fingerprint="p1")


def changed(**flat):
  config = copy.deepcopy(CONFIG)
  for name, value in flat.items():
    *groups, key = name.split("__")
    place = config
    for group in groups:
      place = place[group]
    place[key] = value
  return run_facts(config, **FACTS)


def test_the_same_run_resumes_silently():
  saved = run_facts(CONFIG, **FACTS)
  assert check_resume(saved, changed(model__patch=[1, 2, 2])) == []  # JSON knows no tuples


def test_where_and_how_often_may_change():
  now = changed(mesh__fsdp=4, every__log_steps=1, model__remat="full")
  assert check_resume(run_facts(CONFIG, **FACTS), now) == []


def test_the_data_may_move_and_be_read_otherwise():
  now = changed(data__path="elsewhere", data__threads=9, data__prefetch=9, init_from="")
  assert check_resume(run_facts(CONFIG, **FACTS), now) == []


def test_every_pattern_names_a_setting():
  names = [name for make in demo.CONFIGS.values() for name in flatten(make().to_dict())]
  for pattern in MAY_CHANGE:
    assert fnmatch.filter(names, pattern), pattern


@pytest.mark.parametrize("arg", ["dit", "vae", "debug"])
def test_whatever_decides_what_is_learnt_is_compared(arg):
  """Each setting of these groups, but for those that only say where from and how fast."""
  free = {"model.remat", "model.attention_backend"}
  free |= {f"data.{name}" for name in ("path", "skip_steps", "threads", "prefetch")}
  groups = ("diffusion", "optim", "model", "data", "loss", "codec", "codec_text", "seed", "world")
  config = demo.CONFIGS[arg]().to_dict()
  saved, found = run_facts(config, **FACTS), set()
  for name in flatten({key: config[key] for key in groups if key in config}):
    now = copy.deepcopy(saved)
    *path, key = name.split(".")
    place = functools.reduce(dict.__getitem__, path, now["config"])
    place[key] = "another"
    if name in free:
      assert check_resume(saved, now) == []
      continue
    found.add(name.split(".")[0])
    with pytest.raises(BadInput, match=f"resume: {name}: .* in the checkpoint, another now"):
      check_resume(saved, now)
  assert {"optim", "model", "data", "seed"} <= found and ("diffusion" in found) == (arg != "vae")


def test_a_run_of_before_is_told_what_it_computes_otherwise():
  optim = {"name": "muon", "schedule": "wsd", "lr": 1e-3}
  saved = run_facts(CONFIG | {"optim": optim}, **FACTS)
  del saved["config"]["version"]
  now = run_facts(migrate(saved["config"], "")[0], **FACTS)
  filled, muon, wsd = check_resume(saved, now)
  assert "is of version 1" in filled and "optim.name=muon orthogonalises q, k, v, gate" in muon
  assert "optim.schedule=wsd reaches its floor in the last step" in wsd
  assert check_resume(now, now) == []  # and once only
  saved["config"]["optim"] |= {"name": "adamw", "schedule": "cosine"}
  saved["config"]["diffusion"] = {"weighting": {"name": "min_snr"}, "density": {"max_shift": 0.0}}
  now = run_facts(migrate(saved["config"], "")[0], **FACTS)
  _, weighting = check_resume(saved, now)
  assert "diffusion.weighting.name=min_snr divides the weights by their expectation" in weighting


def test_a_run_of_before_is_told_what_is_no_setting():
  saved = run_facts(CONFIG | {"notes": {"author": "me"}}, **FACTS)
  del saved["config"]["version"]
  now = run_facts(migrate(saved["config"], "")[0], **FACTS)
  del now["config"]["notes"]
  (line,) = check_resume(saved, now)[1:]
  assert line == (
    "resume: notes.author=me of the checkpoint is no setting, and nothing read it: left out"
  )


def test_what_is_learnt_may_not_and_every_change_is_listed():
  text = (
    "resume: data.slots: 4096 in the checkpoint, 8192 now; optim.lr: 0.001 in the checkpoint,"
    " 0.002 now. Use a new --workdir, or set data.slots=4096, optim.lr=0.001."
  )
  now = changed(data__slots=8192, optim__lr=2e-3, total_steps=9)
  with pytest.raises(BadInput) as caught:
    check_resume(run_facts(CONFIG, **FACTS), now)
  assert str(caught.value) == text


def test_a_new_setting_counts_as_a_change():
  with pytest.raises(BadInput, match="model.new: absent in the checkpoint, 1 now"):
    check_resume(run_facts(CONFIG, **FACTS), changed(model__new=1))


def test_warns_where_no_flag_makes_sums_exact():
  assert warn_inexact("cpu", "") == warn_inexact("tpu", "") == []
  (line,) = warn_inexact("gpu", "--xla_gpu_autotune_level=0")
  assert "not be exact to the bit" in line and "--xla_gpu_deterministic_ops=true" in line
  assert warn_inexact("gpu", "--a --xla_gpu_deterministic_ops=true") == []
  assert warn_inexact("gpu", "--xla_gpu_deterministic_ops") == []
  exclude = "--xla_gpu_exclude_nondeterministic_ops=true"  # leaves the choice of kernels open
  assert warn_inexact("gpu", exclude)
  assert warn_inexact("gpu", f"{exclude} --xla_gpu_autotune_level=0") == []


@pytest.mark.parametrize("key, what", [("dataset", "dataset"), ("plan", "pack plan")])
def test_another_dataset_or_plan_is_refused(key, what):
  key = f"{key}_fingerprint"
  with pytest.raises(BadInput, match=rf"{key}=x1 is not the checkpoint's .1 \(another {what}\)"):
    check_resume(run_facts(CONFIG, **FACTS), run_facts(CONFIG, **(FACTS | {key: "x1"})))


def test_longer_training_moves_a_cosine_and_says_so():
  (warning,) = check_resume(run_facts(CONFIG, **FACTS), changed(total_steps=200))
  assert "total_steps=200 was 100, so the learning rate of the cosine schedule differs" in warning


def test_another_environment_is_named():
  now = run_facts(CONFIG, **FACTS)
  saved = copy.deepcopy(now)
  saved["environment"]["jaxlib"] = "0.0.1"
  (warning,) = check_resume(saved, now)
  assert "jaxlib: '0.0.1' before" in warning and "not bit for bit" in warning


# Imports once, then runs one child process for each workdir that it reads from stdin.
PROGRAM = """
import os, sys, time, traceback, warnings
import jax, jax.numpy as jnp, numpy as np
from sora_jax.parallel.mesh import make_mesh
from sora_jax.parallel.place import make_put
from sora_jax.parallel.rules import REPLICATED
from sora_jax.train.averages import PowerAverage
from sora_jax.train.checkpoint import Checkpoints
from sora_jax.train.events import Events
from sora_jax.train.loop import fit
from sora_jax.train.metrics import Counts, MetricsWriter, cut_back
from sora_jax.train.optim import advance, make_optimizer
from sora_jax.train.migrations import migrate
from sora_jax.train.resume import check_resume, run_facts
from sora_jax.train.state import Progress, abstract_state, init_state, state_shardings

TOTAL = 60

class Batches:
  cursor, totals = {"bin": 0}, None
  def __next__(self):
    time.sleep(0.01)
    at = self.cursor["bin"]
    self.cursor = {"bin": at + 1}
    return {"x": np.random.RandomState(at).randn(8, 16).astype(np.float32)}

optimizer = make_optimizer(
  name="adamw", lr=1e-2, schedule="cosine", warmup_steps=5, total_steps=TOTAL, decay_steps=0,
  min_lr_ratio=0.0, weight_decay=0.0, b1=0.9, b2=0.999, eps=1e-8, clip_norm=1.0,
  clip_sigmas=0.0, clip_decay=0.99, momentum_dtype="float32", variance_dtype="float32",
)

def loss_fn(params, x):
  y = jnp.tanh(x @ params["one"]) @ params["two"]
  return jnp.mean((y[:, 0] - x.sum(1)) ** 2)

def step(state, frozen, batch):
  loss, gradients = jax.value_and_grad(loss_fn)(state.params, batch["x"])
  state, metrics = advance(state, gradients, optimizer, {"ema": PowerAverage(0.1)})
  return state, metrics | {"loss": loss}

def make():
  one = jax.random.normal(jax.random.key(0), (16, 32)) * 0.3
  return init_state({"one": one, "two": jnp.zeros((32, 1))}, optimizer)

def train(workdir, events, checkpoints):
  shapes, mesh = jax.eval_shape(make), make_mesh()
  places = state_shardings(shapes, REPLICATED, mesh)
  config = {"version": 2, "total_steps": TOTAL}
  facts = run_facts(config, dataset_fingerprint="d", plan_fingerprint="p")
  batches, at = Batches(), checkpoints.latest_step()
  if at is None:
    state, progress = jax.jit(make, out_shardings=places)(), Progress(batches.cursor)
  else:
    state, progress, saved = checkpoints.restore(at, abstract_state(shapes, places))
    assert check_resume(saved, facts) == []
    batches.cursor = progress.cursor
  cut_back(workdir, int(state.step))
  with MetricsWriter(workdir, total_steps=TOTAL, step=int(state.step)) as report:
    fit(state, None, batches, jax.jit(step, donate_argnums=0), total_steps=TOTAL, log_steps=1,
        save_steps=8, put=make_put(mesh), count=lambda totals: Counts(100, 8, 1e3, 100),
        report=report,
        save=lambda n, s, p: checkpoints.save(n, s, p, facts), progress=progress, events=events)

def child(workdir):
  warnings.simplefilter("error")
  try:
    with Events(workdir) as events:
      with Checkpoints(workdir + "/checkpoints", max_to_keep=2, events=events) as checkpoints:
        train(workdir, events, checkpoints)
    os._exit(0)
  except BaseException:
    traceback.print_exc()
    os._exit(1)

warnings.simplefilter("ignore")  # no backend and no thread of it is there yet: the fork is safe
for line in sys.stdin:
  process = os.fork()
  if process == 0:
    child(line.strip())
  print(process, flush=True)
  print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@pytest.fixture
def nursery(tmp_path):
  """The program above, its stderr in a file."""
  with (tmp_path / "stderr").open("w") as log:
    process = subprocess.Popen(
      [sys.executable, "-c", PROGRAM],
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=log,
      text=True,
    )
  with process:
    yield process
    process.stdin.close()


def run(nursery, workdir, kill_at=None):
  """One session; killed once it has logged `kill_at`: the machine makes the moment random."""
  nursery.stdin.write(f"{workdir}\n")
  nursery.stdin.flush()
  child, end = int(nursery.stdout.readline()), time.monotonic() + 60
  while kill_at and not any(line["step"] >= kill_at for line in read_metrics(workdir)):
    assert time.monotonic() < end, (workdir.parent / "stderr").read_text()
    time.sleep(0.003)
  if kill_at:
    os.kill(child, signal.SIGKILL)
  code = int(nursery.stdout.readline())
  assert code == (-signal.SIGKILL if kill_at else 0), (workdir.parent / "stderr").read_text()


def test_killed_three_times_ends_in_the_same_bits(tmp_path, nursery):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  for step in (12, 29, 50, None):
    run(nursery, killed, step)
  run(nursery, whole)
  expected, found = describe_run(whole), describe_run(killed)
  same = ["step", "cursor", "tokens_seen", "clips_seen"]
  same += ["params_sha256", "ema_sha256", "opt_sha256"]
  assert {key: found[key] for key in same} == {key: expected[key] for key in same}
  assert found["step"] == 60 and found["tokens_seen"] == 6_000
  losses = [[(line["step"], line["loss"]) for line in read_metrics(run)] for run in (whole, killed)]
  assert losses[0] == losses[1] and [step for step, _ in losses[0]] == list(range(1, 61))
  time_spent = found["goodput"]
  assert time_spent["starts"] == 4 and time_spent["stops"] == {"done": 1, "killed": 3}
  assert sum(time_spent["shares"].values()) == pytest.approx(1, abs=1e-3)
  assert min(time_spent["shares"][name] for name in ("steps", "restart", "compile")) > 0

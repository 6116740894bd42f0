"""Every setting of every shipped config, set to what it must not be: refused by name, or built.

Nothing is trained and nothing compiled: each value goes through the checks that come before all
else, and where these let it pass, through what is built of the setting's group.
"""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.curate.settings import read_settings
from data_pipeline.errors import BadInput
from data_pipeline.film.fetch import read_film
from data_pipeline.worlds.settings import check_world
from data_pipeline.worlds.write import world_records
from experiments import curate_default, demo, film, physworld, sora_1b, sora_5b, sora_14b, sora_300m
from packed import Clips
from sora_jax.build.dit import packed_batches
from sora_jax.build.program import build_program, check_plannable
from sora_jax.build.run import (
  build_mesh,
  build_optimizer,
  build_rate,
  build_schedule,
  check_microbatches,
)
from sora_jax.build.schema import ELSEWHERE, check_run
from sora_jax.build.vae import clip_cost
from sora_jax.commands.encode import config_rules
from sora_jax.diffusion.samplers import time_grid
from sora_jax.generate.encode import latent_shape
from sora_jax.generate.sample import Settings, check_settings
from sora_jax.models.vae import make_codec
from sora_jax.parallel.mesh import make_mesh
from sora_jax.train.spikes import Guard
from sora_jax.train.vae_loss import make_vae_loss

BAD = (None, "", -1, 0, 1e30, float("nan"), float("inf"), (), "abc", ((),), {}, True, 10**30)
RUNS = {
  **{f"demo:{arg}": demo.get_config(arg) for arg in demo.CONFIGS},
  **{f"physworld:{arg}": physworld.get_config(arg) for arg in physworld.CONFIGS},
  **{f"film:{arg}": film.get_config(arg) for arg in film.CONFIGS if "encode" not in arg},
  **{
    f"{recipe.__name__}:{arg}": recipe.get_config(arg)
    for recipe in (sora_300m, sora_1b, sora_5b, sora_14b)
    for arg in ("tiny", "high")
  },
}
OTHERS = {
  **{f"curate:{arg}": curate_default.get_config(arg) for arg in ("default", "ask", "debug")},
  **{f"film:{arg}": film.get_config(arg) for arg in film.CONFIGS if arg in ("dit", "encode")},
}


def leaves(tree: dict, prefix: str = ""):
  """Dotted names of all settings and of their groups."""
  for key, value in tree.items():
    yield f"{prefix}{key}"
    if isinstance(value, dict):
      yield from leaves(value, f"{prefix}{key}.")


def set_to(config: dict, name: str, value) -> dict:
  """A copy with one setting changed; taken out where the value is `leaves`."""
  config = place = dict(config)
  *groups, key = name.split(".")
  for group in groups:
    place[group] = place = dict(place[group])
  if value is leaves:
    del place[key]
  else:
    place[key] = value
  return config


def trials(config: dict, prefixes: tuple[str, ...] = ("",)):
  """(name, value, config with it) for every setting that begins so, and every bad value."""
  for name in leaves(config):
    if name.startswith(prefixes):
      for value in (leaves, *BAD):
        yield name, value, set_to(config, name, value)


def refused(name: str, value, build) -> bool:
  """Whether `build()` refused; it has to be by the setting's name, and in one line."""
  try:
    build()
    return False
  except BadInput as error:
    group, _, key = name.rpartition(".")
    named = key in str(error) or ("." in group and group in str(error))
    assert named and "\n" not in str(error), (name, value, str(error))
    return True
  except Exception as error:
    raise AssertionError(f"{name}={value!r}: {error!r}") from error


def check(plain: dict) -> None:
  """What comes before anything is built."""
  check_run(plain, "mine.py")
  if "world" in plain:
    check_world(plain["world"])


def build_what_all_have(config) -> None:
  schedule, mesh = build_schedule(config), build_mesh(config)
  Guard(schedule.spike)
  check_microbatches(config, mesh)
  optimizer = build_optimizer(config)[0]
  params = {"blocks/mlp/out/kernel": jax.ShapeDtypeStruct((2, 4, 4), "float32")}
  state = jax.eval_shape(optimizer.init, params)
  jax.eval_shape(optimizer.update, params, state, params)
  jax.eval_shape(build_rate(config), jax.ShapeDtypeStruct((), "int32"))


def build_sampling(config) -> None:
  s = config.sample
  check_settings(Settings(s.steps, s.guidance, s.solver, s.shift, 0))
  time_grid(s.steps, s.shift or 1.0)  # 0: derived
  vae = SimpleNamespace(time_factor=4, space_factor=8)
  latent_shape(s.seconds, s.width, s.height, s.fps, vae, (1, 1, 1))


def build_loader(config) -> None:
  datasets = [Clips(8)]
  datasets[0].path = "memory"
  mixed = {name: config.data[name] for name in ("weights", "caption_weights", "skip_steps")}
  given = dict(dropout=config.data.caption_dropout, given=config.data.given_first_frame)
  loader = packed_batches(config, datasets, None, share=(0, 1), split="train", **given, **mixed)
  try:
    next(loader)
  finally:
    loader.close()


def build_model(config) -> None:
  check_plannable(config)
  build_program(config, make_mesh())


def build_vae(config) -> None:
  codec = config.model.to_dict()
  clip_cost(codec, config.data)
  structure = nnx.graphdef(nnx.eval_shape(lambda: make_codec(codec, seed=0)))
  make_vae_loss(structure, seed=0, kl_weight=config.loss.kl_weight, terms=config.loss.terms)


def build_codec(config) -> None:
  nnx.eval_shape(lambda: make_codec(config.codec.to_dict(), seed=0))


def build_world(config) -> None:
  next(world_records(config.world.to_dict()))


# Settings -> what is built of them, apart for a DiT and a VAE.
GENERAL = ("total_steps", "mesh.", "accumulate_steps", "every.", "wait.", "spike.", "profile.")
GENERAL += ("keep.", "optim.", "seed", "data.rows")
BUILT = {
  "dit": {
    GENERAL: build_what_all_have,
    ("sample.",): build_sampling,
    ("data.",): build_loader,
    ("model.", "diffusion.", "plan.", "shard_over_context"): build_model,
    ("codec.",): build_codec,
    ("world.",): build_world,
  },
  "vae": {
    GENERAL: build_what_all_have,
    ("model.", "loss.", "data."): build_vae,
    ("world.",): build_world,
  },
}


@pytest.mark.parametrize("name", RUNS)
def test_shipped_configs_are_sound(name):
  check(RUNS[name].to_dict())


@pytest.mark.parametrize("name", RUNS)
def test_no_setting_of_a_run_passes_the_checks_as_what_it_is_not(name):
  plain = {k: v for k, v in RUNS[name].to_dict().items() if k not in ELSEWHERE or k == "world"}
  for setting, value, config in trials(plain):
    was_refused = refused(setting, value, lambda config=config: check(config))
    assert was_refused or value is not None, (setting, value)


def as_written_otherwise(value):
  """The same value as other people write it: NumPy's floats, whole numbers, lists."""
  if isinstance(value, dict):
    return {name: as_written_otherwise(one) for name, one in value.items()}
  if isinstance(value, (tuple, list)):
    return [as_written_otherwise(one) for one in value]
  if type(value) is float:
    return int(value) if value.is_integer() else np.float64(value)
  return value


@pytest.mark.parametrize("name", RUNS)
def test_the_same_values_written_otherwise_pass(name):
  config = ConfigDict(as_written_otherwise(RUNS[name].to_dict()))
  check(config.to_dict())
  check(json.loads(config.to_json()))  # as a checkpoint keeps it


SMALL = {"dit": demo.get_config("debug"), "vae": demo.get_config("vae")}


@pytest.mark.parametrize("kind", SMALL)
def test_what_passes_the_checks_is_built_or_refused(kind):
  plain = SMALL[kind].to_dict()
  for prefixes, build in BUILT[kind].items():
    build(ConfigDict(plain))
    for setting, value, config in trials(plain, prefixes):
      if not refused(setting, value, lambda config=config: check(config)):
        refused(setting, value, lambda config=config, build=build: build(ConfigDict(config)))


@pytest.mark.parametrize("name", OTHERS)
def test_settings_that_are_no_runs(name):
  build = {
    "curate": lambda group: read_settings(group),
    "encode": lambda group: config_rules(ConfigDict({"encode": group})),
    "film": lambda group: read_film(group),
  }
  plain = OTHERS[name].to_dict()
  for group, make in build.items():
    if group in plain:
      make(plain[group])
      for setting, value, config in trials(plain, (f"{group}.",)):
        refused(setting, value, lambda config=config, make=make, of=group: make(config[of]))

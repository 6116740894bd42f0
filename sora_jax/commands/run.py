"""A trained DiT run, opened for sampling: config, weights, and what its `frozen/` folder holds."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.access import check_file
from data_pipeline.errors import BadInput
from sora_jax.build.dit import build_sampler, dit_settings
from sora_jax.build.schema import check_trained
from sora_jax.commands.progress import say
from sora_jax.generate.pipeline import Pipeline
from sora_jax.models.dit import DiT
from sora_jax.models.frozen_vae import load_frozen_vae
from sora_jax.models.text.encoder import describe
from sora_jax.models.text.registry import load_frozen_text_encoder
from sora_jax.train.migrations import check_time_factor, migrate, version_of
from sora_jax.train.weights import Origin, read_weights, replace_params
from sora_jax.train.workdir import open_run_folder


class Run(NamedTuple):
  """Config (unlocked copy), the step of its weights, and the pipeline they make.

  `version` is that of the settings it was trained with.
  """

  config: Any
  step: int
  pipeline: Pipeline
  version: int


def check_seconds(opened: Run, workdir: str, seconds: float) -> None:
  """Refuses videos of a run that learnt wrong seconds; a picture, of 0 seconds, is at none.

  Raises:
    BadInput: see `check_time_factor`.
  """
  if seconds > 0:
    factor = opened.pipeline.vae.time_factor
    check_time_factor(opened.version, factor, f"--workdir={workdir}")


def read_config(folder: Path) -> tuple[ConfigDict, int]:
  """The config that a DiT was trained with, as this version knows it, and the version it was of.

  Raises:
    BadInput: damaged, of another kind of model, or of a version with other settings.
  """
  path = folder / "config.json"
  try:
    saved = json.loads(path.read_text(encoding="utf-8"))
    model = saved["model"]["name"]
  except (ValueError, KeyError, TypeError) as error:
    raise BadInput(f"run: {path} is damaged ({error!r}). Copy the run again.") from error
  if model != "dit":
    raise BadInput(f"--workdir={folder} is a run of a {model}. Give the workdir of a DiT.")
  version = version_of(saved, f"run: {path}")
  saved, line = migrate(saved, f"run: {path}")
  if line:
    say(line)
  check_trained(saved, str(path))
  return ConfigDict(saved), version


def open_run(workdir: str, *, step: int | None, weights: str) -> Run:
  """Opens a run of `sora train` at a checkpoint.

  Args:
    workdir: of a DiT, a path or a URL.
    step: of the checkpoint; None for the newest.
    weights: "ema", "params" or "ema:NUMBER", see `Origin`.
  Raises:
    BadInput: no such run or checkpoint, or it is not a DiT's.
  """
  folder = open_run_folder(workdir)
  absent = f"--workdir={workdir} holds no run (no config.json). Give a workdir of sora train."
  check_file(folder / "config.json", "run", absent)
  config, version = read_config(folder)
  vae = load_frozen_vae(folder / "frozen" / "vae")
  encoder = load_frozen_text_encoder(folder / "frozen" / "text")
  text = describe(encoder)
  settings = dit_settings(config, latent_channels=vae.latent_channels, text=text)
  origin = Origin(workdir, step, weights)
  loaded, found = read_weights(origin)
  shapes = nnx.state(nnx.eval_shape(lambda: DiT(**settings, rngs=nnx.Rngs(0))))
  params = replace_params(shapes, loaded, str(origin))
  sampler = build_sampler(config, jax.device_put(params), vae, text)
  return Run(config, found, Pipeline(encoder, sampler, vae), version)

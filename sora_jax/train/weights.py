"""Weights of another run: to start a stage from, or to sample with."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from data_pipeline.errors import BadInput
from sora_jax.parallel.rules import named_leaves, path_name
from sora_jax.train.averages import (
  FIRST,
  NARROWEST,
  WIDEST,
  Average,
  PowerAverage,
  saved_averages,
)
from sora_jax.train.checkpoint import Checkpoints
from sora_jax.train.migrations import FACTOR_OF_VERSION_1, as_json, migrate, version_of
from sora_jax.train.posthoc import reconstruct
from sora_jax.train.run_folder import tell
from sora_jax.train.workdir import find_checkpoints, open_run_folder


class Origin(NamedTuple):
  """Weights of another run.

  Attributes:
    run: its folder or URL, as it is named; "" for none.
    step: of the checkpoint; None for the newest.
    which: "params", "ema", or "ema:NUMBER", an average by its width or decay.
  """

  run: str
  step: int | None
  which: str

  def __str__(self) -> str:
    return self.run if self.step is None else f"{self.run}, step {self.step}"


def read_weights(origin: Origin) -> tuple[dict[str, Any], int]:
  """Reads parameters of another run by path name, as numpy arrays, and their step.

  An average of a width that was not kept is made from those of all checkpoints, see `posthoc`, and
  a line says so.

  Raises:
    BadInput: no such run, step or kind of weights.
  """
  source, step, which = origin
  folder = find_checkpoints(open_run_folder(source))
  number = _parse(which)
  if folder is None:
    raise BadInput(f"weights: {source!r} is no run with checkpoints. Give the folder of one.")
  with Checkpoints(folder, read_only=True) as checkpoints:
    found = checkpoints.look(step, lambda at: (_read(checkpoints, at, origin, number), at))
    if found is None:
      saved, asked = checkpoints.all_steps(), "a checkpoint" if step is None else f"step {step}"
      raise BadInput(f"weights: {asked} is not saved in {folder}, which has {saved}.")
    return found


def _parse(which: str) -> float | None:
  """The width or decay of "ema:NUMBER"; None of "ema" and "params". Raises BadInput for others."""
  kind, colon, text = which.partition(":")
  try:
    number = float(text) if colon else None
  except ValueError:
    number = math.nan
  if which not in ("ema", "params") and (kind != "ema" or number is None or not 0 <= number <= 1):
    raise BadInput(
      f"weights: {which!r} is not one of ['ema', 'params'], nor ema:NUMBER, an average by its width"
      " or decay."
    )
  return number


def _find_average(kept: list[str], averages: Mapping[str, Average], number: float) -> str:
  """The part of a state that is the average of a width or decay; "" where none is kept."""
  if FIRST in averages and averages[FIRST].number == number:
    return FIRST
  return next((f"averages/{name}" for name in kept if float(name) == number), "")


def _read(
  checkpoints: Checkpoints, step: int, origin: Origin, number: float | None
) -> dict[str, Any]:
  kept = checkpoints.averages(step)
  config = migrate(checkpoints.describe(step)[1]["config"], f"weights: {origin}")[0]
  averages = saved_averages(config)
  part = origin.which if number is None else _find_average(kept, averages, number)
  if part:
    weights = checkpoints.read(step, parts=(part,))[part]
    if not weights:
      raise BadInput(
        f"weights: {origin.run!r} keeps no average of its parameters. Give 'params', not 'ema'."
      )
    return named_leaves(weights)
  assert number is not None
  by_width = any(isinstance(one, PowerAverage) for one in averages.values())
  if not by_width or not NARROWEST <= number <= WIDEST:
    names = ["ema", *(f"ema:{other}" for other in kept)]
    raise BadInput(
      f"weights: {origin.which!r} is not in {origin.run!r}, which keeps {names}. Others are made"
      f" only of widths in [{NARROWEST}, {WIDEST}], by runs with an optim.ema_width."
    )
  weights, line = reconstruct(checkpoints, averages, step, number)
  tell(line)
  return named_leaves(weights)


def replace_params(params, weights: dict[str, Any], source: str):
  """The tree of `params` with the values of `weights`, which must have its names and shapes.

  Args:
    source: of the weights, for complaints.
  """
  wanted = {name: tuple(leaf.shape) for name, leaf in named_leaves(params).items()}
  found = {name: tuple(leaf.shape) for name, leaf in weights.items()}
  for name in sorted(wanted.keys() | found.keys()):
    if wanted.get(name) != found.get(name):
      raise BadInput(
        f"weights: {source!r} holds {name}={found.get(name)}, this model has {wanted.get(name)}. "
        "Start from a run of the same model, or set init_from=''."
      )
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: jnp.asarray(weights[path_name(path)], leaf.dtype), params
  )


FROZEN = {"vae": "VAE", "text": "text encoder"}  # what a run keeps in `frozen/`, by folder


def check_origin(origin: Origin, made_with: Mapping[str, str | None]) -> None:
  """Refuses weights that learnt the latents of another VAE, or another encoder's captions.

  Their shapes may be equal all the same.

  Args:
    origin: of the weights.
    made_with: fingerprints of "vae" and "text", those of this run's dataset.
  Raises:
    BadInput: that run keeps another one.
  """
  folder = open_run_folder(origin.run)
  for part, what in FROZEN.items():
    file = folder / "frozen" / part / "config.json"
    theirs, ours = _look_up(file, ("fingerprint",)), made_with[part]
    if theirs is not None and theirs != ours:
      raise BadInput(
        f"train: init_from={origin.run} was trained with another {what} ({str(theirs)[:12]}, this "
        f"run's latents were made with {str(ours)[:12]}). Encode the clips with that run's {what}, "
        "or set init_from=''."
      )


# What a model was trained with that its weights' shapes do not tell.
LEARNT = {"prediction": "prediction", "rotary_seconds": "range of rotary periods"}


def compare_origin(origin: Origin, workdir: Path) -> list[str]:
  """Warns of weights that were trained to predict or to see otherwise, as far as both runs say."""
  run = open_run_folder(origin.run)
  theirs, ours = (_model_of(folder / "config.json") for folder in (run, workdir))
  return [
    f"init_from: {origin.run} was trained with another {what} ({theirs[name]}, here {ours[name]})."
    " Its weights have to learn that anew."
    for name, what in LEARNT.items()
    if name in theirs and name in ours and theirs[name] != ours[name]
  ]


def compare_seconds(origin: Origin, time_factor: int) -> list[str]:
  """Warns of weights that may have learnt wrong seconds, as those of version 1 of other factors.

  Args:
    origin: of the weights.
    time_factor: of the VAE whose latents they learnt, which are this run's, see `check_origin`.
  """
  config = open_run_folder(origin.run) / "config.json"
  version = version_of(_look_up(config, ()), f"init_from: {config}")
  if version > 1 or time_factor == FACTOR_OF_VERSION_1:
    return []
  return [
    f"init_from: {origin.run} is of version 1, which took time_factor={FACTOR_OF_VERSION_1} for"
    f" every VAE's, and its VAE has {time_factor}: if it saw videos, it learnt wrong seconds. Its"
    " weights have to learn that anew."
  ]


def _model_of(path: Path) -> dict[str, Any]:
  """`model` of a run's config, as this version means it; {} where there is none."""
  saved = _look_up(path, ())
  return as_json(migrate(saved, f"init_from: {path}")[0]).get("model", {})


def _look_up(path: Path, keys: tuple[str, ...]) -> Any:
  """A value deep in a JSON file; None where the file or a key is not there.

  Raises:
    BadInput: it is not JSON.
  """
  try:
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
  except ValueError as error:
    raise BadInput(f"init_from: {path} is not JSON ({error}). Copy that run again.") from error
  for key in keys:
    value = value.get(key) if isinstance(value, dict) else None
  return value

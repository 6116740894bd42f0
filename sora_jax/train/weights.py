"""Weights of another run: to start a stage from, or to sample with."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from data_pipeline.errors import BadInput
from sora_jax.parallel.rules import named_leaves, path_name
from sora_jax.train.checkpoint import Checkpoints


def split_source(source: str) -> tuple[Path, int | None]:
  """Folder and step of "RUN@STEP"; of "RUN" the step is None, for its newest checkpoint."""
  run, _, step = source.rpartition("@")
  return (Path(run), int(step)) if run and step.isdecimal() else (Path(source), None)


def read_weights(source: str, which: str) -> tuple[dict[str, Any], int]:
  """Parameters of another run by path name, as numpy arrays, and their step.

  Args:
    source: "RUN@STEP", or "RUN" for its newest checkpoint.
    which: "ema" or "params".
  Raises:
    BadInput: no such run, step or kind of weights.
  """
  run, step = split_source(source)
  folder = run / "checkpoints"
  if which not in ("ema", "params"):
    raise BadInput(f"weights: {which!r} is not one of ['ema', 'params'].")
  if not folder.is_dir():
    raise BadInput(f"weights: {source!r} names no run with checkpoints. Give RUN or RUN@STEP.")
  with Checkpoints(folder, read_only=True) as checkpoints:
    latest = checkpoints.latest_step()
    if latest is None or (step is not None and not (folder / str(step)).is_dir()):
      raise BadInput(f"weights: {source!r} is not saved in {folder} (newest: {latest}).")
    found = latest if step is None else step
    return named_leaves(checkpoints.read(found, parts=(which,))[which]), found


def replace_params(params, weights: dict[str, Any], source: str):
  """The tree of `params` with the values of `weights`, which must have its names and shapes."""
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


# What shapes do not show: (file of a run, key, what differs).
ORIGINS = (
  ("frozen/vae/config.json", ("fingerprint",), "VAE"),
  ("frozen/text/config.json", ("fingerprint",), "text encoder"),
  ("config.json", ("model", "prediction"), "prediction"),
)


def compare_origin(source: str, workdir: Path) -> list[str]:
  """Warnings, one line each: what `source` was trained with, and this run, as far as both say.

  Weights of equal shapes may still mean something else: latents of another VAE, states of another
  text encoder, or velocities instead of clean patches.
  """
  run, warnings = split_source(source)[0], []
  for file, keys, what in ORIGINS:
    theirs, ours = (_look_up(folder / file, keys) for folder in (run, workdir))
    if None not in (theirs, ours) and theirs != ours:
      warnings.append(
        f"init_from: {source} was trained with another {what} ({str(theirs)[:12]}, here "
        f"{str(ours)[:12]}). Its weights have to learn that anew."
      )
  return warnings


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

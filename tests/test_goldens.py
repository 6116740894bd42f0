"""Every experiment's settings and the model's parameters, line by line: a diff shows what changed.

After a change that is meant, write the files anew and look at the diff (the losses of the debug run
are kept by tests/sora_jax/commands/test_losses.py in the same way):

  REGENERATE=1 python -m pytest tests/test_goldens.py tests/sora_jax/commands/test_losses.py
"""

import ast
import importlib
import os
from pathlib import Path

import jax
import pytest
from flax import nnx

from sora_jax.build.dit import dit_settings
from sora_jax.models.dit import DiT
from sora_jax.models.text.encoder import describe
from sora_jax.models.text.registry import load_text_encoder
from sora_jax.models.vae import make_codec
from sora_jax.parallel.rules import named_leaves
from sora_jax.train.resume import flatten

ROOT, GOLDENS = Path(__file__).resolve().parents[1], Path(__file__).with_name("goldens")
FAMILIES = sorted(
  path.stem for path in (ROOT / "experiments").glob("*.py") if "CONFIGS = " in path.read_text()
)


def args_of(family: str) -> list[str]:
  """Keys of CONFIGS, read from the source: at collection an experiment cannot be imported."""
  tree = ast.parse((ROOT / "experiments" / f"{family}.py").read_text())
  tables = [node.value for node in tree.body if isinstance(node, ast.Assign)]
  (table,) = (value for value in tables if isinstance(value, ast.Dict))
  return [ast.literal_eval(key) for key in table.keys]


NAMES = [(family, arg) for family in FAMILIES for arg in args_of(family)]


@pytest.fixture(autouse=True)
def experiments_are_found(monkeypatch):
  monkeypatch.syspath_prepend(ROOT)


def load(family: str, arg: str):
  return importlib.import_module(f"experiments.{family}").get_config(arg)


def compare(name: str, lines: list[str]) -> None:
  path = GOLDENS / name
  if os.environ.get("REGENERATE"):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
  assert lines == path.read_text(encoding="utf-8").splitlines(), "see the docstring of this file"


@pytest.mark.parametrize("family, arg", NAMES)
def test_settings(family, arg):
  flat = flatten(load(family, arg).to_dict())
  compare(f"configs/{family}_{arg}.txt", [f"{key} = {flat[key]!r}" for key in sorted(flat)])


def test_every_config_is_kept_and_none_beside():
  found = {(family, arg) for family in FAMILIES for arg in vars_of(family)}
  assert found == set(NAMES)
  kept = {path.name for path in (GOLDENS / "configs").iterdir()}
  assert kept == {f"{family}_{arg}.txt" for family, arg in NAMES}


def vars_of(family: str) -> dict:
  return importlib.import_module(f"experiments.{family}").CONFIGS


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_the_debug_model(family):
  config = load(family, "debug")
  channels = nnx.eval_shape(lambda: make_codec(config.codec.to_dict(), seed=0)).latent_channels
  text = describe(load_text_encoder(config.codec_text, None))
  settings = dit_settings(config, latent_channels=channels, text=text)
  params = nnx.state(nnx.eval_shape(lambda: DiT(**settings, rngs=nnx.Rngs(0))))
  compare(
    f"parameters_{family}_debug.txt",
    [
      f"{name} {leaf.dtype}{list(leaf.shape)}"
      for name, leaf in sorted(named_leaves(params).items())
    ]
    + [f"total {sum(leaf.size for leaf in jax.tree.leaves(params)):,}"],
  )

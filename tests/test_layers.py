"""Holds the import rules of docs/architecture.md, read from the source without importing it."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Floors from the ground up. A module may import what stands strictly below its package.
FLOORS = [
  {"sora_jax", "sora_jax.typed"},
  {"sora_jax.nn", "sora_jax.attention", "sora_jax.diffusion", "sora_jax.parallel"},
  {"sora_jax.models"},
  {"sora_jax.train", "sora_jax.generate"},
  {"sora_jax.evals", "sora_jax.launch", "sora_jax.plan", "sora_jax.provenance"},
  {"sora_jax.build"},
  {"sora_jax.commands"},
  {"sora_jax.__main__"},
]
FLOOR = {package: number for number, packages in enumerate(FLOORS) for package in packages}

# What all of sora_jax may know of data_pipeline, what evals also may; commands may know everything.
SHARED = {
  "errors",
  "kinds",
  "records",
  "dataset",
  "tokens",
  "packing",
  "loader",
  "access",
  "paths",
  "clips",
  "hashing",
  "renditions",
  "video",
}
JUDGE = {"worlds"}

NEVER = {"clu", "sentence_transformers", "tensorflow", "torch", "transformers"}
NOT_IN_DATA = {"flax", "jax", "jaxlib", "optax", "orbax", "sora_jax", "experiments"}
ONE_FILE = {"apache_beam", "c2pa", "distributed", "gradio", "matplotlib", "orbax", "tensorboardX"}
ONE_FILE |= {"wandb"}
TOGETHER = {
  "apache_beam": {"data_pipeline/curate/pipeline.py", "data_pipeline/curate/gather.py"},
  "orbax": {"sora_jax/train/checkpoint.py", "sora_jax/train/object_store.py"},
}
DRAWERS = {"common", "helpers", "misc", "utils"}


def violations(sources: dict[str, str]) -> list[str]:
  """Lists every broken rule.

  Args:
    sources: path relative to the root -> text, e.g. {"sora_jax/nn/rope.py": "import jax"}.
  """
  trees = {path: ast.parse(text, path) for path, text in sources.items()}
  modules = {module_name(path) for path in sources}
  imports = {path: list(imported(tree, modules)) for path, tree in trees.items()}
  broken = []
  for path, tree in trees.items():
    broken += [f"{path}:{line}: {what}" for line, what in file_faults(path, tree)]
    broken += [
      f"{path}:{line}: imports {name}: {why}"
      for line, name in imports[path]
      if (why := import_fault(path, name))
    ]
  return broken + several_users(imports) + cycles(imports, modules)


def module_name(path: str) -> str:
  parts = path.removesuffix(".py").split("/")
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, modules: set[str]) -> Iterator[tuple[int, str]]:
  """Yields line and full module name of every import, inside functions too."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
      for alias in node.names:
        name = f"{node.module}.{alias.name}"
        # `from package import name`: the name is a module of ours, or something in the package.
        inside = name in modules or node.module in {"data_pipeline", "sora_jax"}
        yield node.lineno, name if inside else str(node.module)


def package_of(module: str) -> str:
  """The part of sora_jax that stands on a floor: a package, or a single file beside them."""
  return ".".join(module.split(".")[:2])


def import_fault(path: str, name: str) -> str | None:
  module, top = module_name(path), name.split(".")[0]
  if top in NEVER:
    return "never a dependency"
  if path.startswith("data_pipeline/"):
    return "data_pipeline knows neither the model nor jax" if top in NOT_IN_DATA else None
  if path.startswith("experiments/"):
    return None if top in {"ml_collections", "experiments"} else "experiments load nothing heavy"
  package = package_of(module)
  if top == "experiments":
    return "the core never imports an experiment"
  if top == "ml_collections" and package not in {"sora_jax.build", "sora_jax.commands"}:
    return "ConfigDict stops in build"
  if top == "data_pipeline":
    return data_fault(package, name)
  return floor_fault(package, name) if top == "sora_jax" else None


def data_fault(package: str, name: str) -> str | None:
  if package in {"sora_jax.commands", "sora_jax.__main__"}:
    return None
  allowed = SHARED | (JUDGE if package == "sora_jax.evals" else set())
  return None if (name.split(".") + [""])[1] in allowed else "behind the door of data_pipeline"


def floor_fault(package: str, name: str) -> str | None:
  target = package_of(name)
  # `from sora_jax import __version__`: a name of the package itself, on the ground floor.
  if target not in FLOOR and name.count(".") == 1 and name.endswith("__"):
    target = "sora_jax"
  for part in (package, target):
    if part not in FLOOR:
      return f"{part} stands on no floor"
  if package != target and FLOOR[target] >= FLOOR[package]:
    return f"floor {FLOOR[package]} looks up or sideways to floor {FLOOR[target]}"
  return None


def file_faults(path: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
  drawer = DRAWERS & set(path.removesuffix(".py").split("/"))
  if drawer and path != "experiments/common.py":
    yield 1, f"{drawer.pop()} is a drawer: name the file after what it holds"
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.level:
      yield node.lineno, "relative import"
    anywhere = path.startswith("sora_jax/build/")
    if isinstance(node, ast.Call) and second_default(node, anywhere=anywhere):
      yield node.lineno, "second default: the config already has one"


def second_default(call: ast.Call, *, anywhere: bool) -> bool:
  """Whether a call is config.get(key, default) or getattr(config, key, default)."""
  given = len(call.args) + len(call.keywords)
  if isinstance(call.func, ast.Attribute) and call.func.attr == "get" and given == 2:
    owner = call.func.value
  elif isinstance(call.func, ast.Name) and call.func.id == "getattr" and given == 3:
    owner = call.args[0]
  else:
    return False
  text = ast.unparse(owner).lower()
  return anywhere or "config" in text or "cfg" in text


def several_users(imports: dict[str, list[tuple[int, str]]]) -> list[str]:
  broken = []
  for package in sorted(ONE_FILE):
    users = [
      path
      for path, found in imports.items()
      if any(name.split(".")[0] == package for _, name in found)
      and not path.startswith("experiments/")
    ]
    if len(users) > 1 and not set(users) <= TOGETHER.get(package, set()):
      broken.append(f"{package} is imported by {len(users)} files: {', '.join(sorted(users))}")
  return broken


def cycles(imports: dict[str, list[tuple[int, str]]], modules: set[str]) -> list[str]:
  graph = {
    module_name(path): {name for _, name in found if name in modules} - {module_name(path)}
    for path, found in imports.items()
  }
  try:
    TopologicalSorter(graph).prepare()
  except CycleError as error:
    return [f"import cycle: {' -> '.join(error.args[1])}"]
  return []


def project_sources() -> dict[str, str]:
  tops = ("data_pipeline", "sora_jax", "experiments")
  paths = [path for top in tops for path in ROOT.glob(f"{top}/**/*.py")]
  names = {path: path.relative_to(ROOT).as_posix() for path in paths}
  return {
    name: path.read_text(encoding="utf-8")
    for path, name in names.items()
    if not name.startswith("experiments/benchmarks/")  # programs, not configs
  }


def test_the_project_keeps_its_rules():
  assert violations(project_sources()) == []


def test_every_package_stands_on_a_floor():
  tops = {package_of(module_name(p)) for p in project_sources() if p.startswith("sora_jax/")}
  assert "sora_jax.models" in tops  # the walk found the project
  assert tops - set(FLOOR) == set()


@pytest.mark.parametrize(
  "path, text, fault",
  [
    ("data_pipeline/a.py", "import jax.numpy as jnp", "neither the model nor jax"),
    ("data_pipeline/a.py", "from sora_jax import typed", "neither the model nor jax"),
    ("data_pipeline/a.py", "from flax import nnx", "neither the model nor jax"),
    ("data_pipeline/a.py", "def f():\n  import jax", "a.py:2: imports jax"),
    ("sora_jax/nn/a.py", "from sora_jax.models import dit", "floor 1 looks up"),
    ("sora_jax/nn/a.py", "import sora_jax.models.dit", "floor 1 looks up"),
    ("sora_jax/nn/a.py", "from sora_jax import models", "floor 1 looks up"),
    ("sora_jax/nn/a.py", "from sora_jax.attention import xla", "sideways to floor 1"),
    ("sora_jax/train/a.py", "from sora_jax.generate import media", "sideways to floor 3"),
    ("sora_jax/typed.py", "from sora_jax.nn import rope", "floor 0 looks up"),
    ("sora_jax/evals/a.py", "from sora_jax.build import dit", "floor 4 looks up"),
    ("sora_jax/new/a.py", "from sora_jax import typed", "sora_jax.new stands on no floor"),
    ("sora_jax/train/a.py", "from data_pipeline.worlds import judge", "behind the door"),
    ("sora_jax/train/a.py", "from data_pipeline import worlds", "behind the door"),
    ("sora_jax/evals/a.py", "from data_pipeline import curate", "behind the door"),
    ("sora_jax/train/a.py", "import ml_collections", "ConfigDict stops"),
    ("sora_jax/build/a.py", "from experiments import demo", "never imports an experiment"),
    ("experiments/a.py", "import jax", "nothing heavy"),
    ("experiments/a.py", "from sora_jax import build", "nothing heavy"),
    ("sora_jax/models/a.py", "import torch", "never a dependency"),
    ("sora_jax/nn/a.py", "from . import rope", "relative import"),
    ("sora_jax/nn/utils.py", "", "utils is a drawer"),
    ("data_pipeline/helpers/a.py", "", "helpers is a drawer"),
    ("sora_jax/build/a.py", "c.model.get('width', 64)", "second default"),
    ("sora_jax/train/a.py", "config.get('seed', 1024)", "second default"),
    ("sora_jax/train/a.py", "self.config.optim.get('lr', default=1)", "second default"),
    ("sora_jax/train/a.py", "getattr(config, 'seed', 0)", "second default"),
  ],
)
def test_each_rule_is_seen_broken(path, text, fault):
  found = violations({path: text})
  assert len(found) == 1 and fault in found[0], found


@pytest.mark.parametrize(
  "path, text",
  [
    ("sora_jax/nn/a.py", "from sora_jax.typed import typed\nfrom sora_jax.nn import b"),
    ("sora_jax/models/a.py", "from sora_jax.nn.rope import rotate\nimport jax"),
    ("sora_jax/evals/a.py", "from data_pipeline.worlds import judge"),
    ("sora_jax/train/a.py", "from data_pipeline.errors import BadInput"),
    ("sora_jax/commands/a.py", "from data_pipeline.curate import shots\nimport ml_collections"),
    ("sora_jax/commands/a.py", "from sora_jax import __version__, build"),
    ("sora_jax/train/a.py", "names.get('a', 0)\nconfig.get('a')"),
    ("experiments/a.py", "from ml_collections import ConfigDict\nfrom experiments import common"),
  ],
)
def test_what_is_allowed_passes(path, text):
  assert violations({path: text}) == []


def test_heavy_packages_have_one_user():
  text = "import matplotlib.pyplot"
  two = {"sora_jax/evals/a.py": text, "sora_jax/evals/b.py": text}
  assert violations(two) == [
    "matplotlib is imported by 2 files: sora_jax/evals/a.py, sora_jax/evals/b.py"
  ]


def test_cycles_are_found():
  ring = {
    "sora_jax/nn/a.py": "from sora_jax.nn import b",
    "sora_jax/nn/b.py": "from sora_jax.nn.c import f",
    "sora_jax/nn/c.py": "import sora_jax.nn.a",
  }
  (found,) = violations(ring)
  assert found.startswith("import cycle: ") and found.count("sora_jax.nn.") == 4

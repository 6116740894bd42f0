"""What is built from the project is whole, and works where there is nothing of it around."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("data_pipeline", "docs", "experiments", "sora_jax", "tests")
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.egg-info")
# What only a clone needs.
OF_A_CLONE = {".gitignore", ".pre-commit-config.yaml", ".github/workflows/pods.yml"}
HAS_WHEELS = find_spec("setuptools.command.bdist_wheel") is not None  # of setuptools 70 on


def files(folder: Path) -> set[str]:
  return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
  """A source distribution, and what a wheel installs, of a tree that was built before."""
  source = tmp_path_factory.mktemp("source") / "tree"
  source.mkdir()
  for name in FOLDERS:
    shutil.copytree(ROOT / name, source / name, ignore=NOT_SOURCE)
  for path in ROOT.iterdir():
    if path.is_file() and path.name != ".git":
      shutil.copy(path, source)
  shutil.copytree(ROOT / ".ci", source / ".ci")
  project = files(source)
  for stale in ("sora_jax/gone.py", "sora_jax/commands/gone.py", "tests/gone.py", "gone.py"):
    path = source / "build" / "lib" / stale
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  words = ["sdist", "bdist_wheel" if HAS_WHEELS else "build"]
  subprocess.run(
    [sys.executable, "-W", "ignore", "setup.py", "-q", *words], cwd=source, check=True,
    capture_output=True,
  )  # fmt: skip
  (source / "project.json").write_text(json.dumps(sorted(project)))
  (archive,) = (source / "dist").glob("sora_jax-*.tar.gz")
  with tarfile.open(archive) as tar:
    tar.extractall(source / "sdist", filter="data")
  target = source / "build" / "lib"
  if HAS_WHEELS:
    target = source / "installed"
    (wheel,) = (source / "dist").glob("sora_jax-*.whl")
    with zipfile.ZipFile(wheel) as archived:
      archived.extractall(target)
  return {"source": source, "sdist": next((source / "sdist").iterdir()), "installed": target}


def test_the_source_distribution_is_the_whole_project(built):
  project = set(json.loads((built["source"] / "project.json").read_text()))
  added = {"PKG-INFO", "setup.cfg"}
  found = {name for name in files(built["sdist"]) if ".egg-info/" not in name} - added
  assert found == project - OF_A_CLONE
  assert {"constraints.txt", "README.md", "LICENSE", "docs/data.md", "Makefile"} <= found


def test_a_wheel_has_the_packages_and_the_shipped_configs_alone(built):
  project = json.loads((built["source"] / "project.json").read_text())
  packages = {name for name in project if name.startswith(("sora_jax/", "data_pipeline/"))}
  configs = {name for name in project if name.count("/") == 1 and name.startswith("experiments/")}
  found = {name for name in files(built["installed"]) if ".dist-info/" not in name}
  assert found == (packages | configs) - {"experiments/LOG.md"}  # and nothing of an earlier build
  assert "experiments/film_captions.jsonl" in found and "sora_jax/evals/report.html" in found


PROGRAM = """
import contextlib, io, json
from pathlib import Path
from sora_jax.commands import config_files
from sora_jax.commands.entry import main
from sora_jax.commands.options import load_config
texts = {}
for name in ("", "demo", "data", "train"):
  with contextlib.redirect_stdout(io.StringIO()) as out:
    code = main([name, "--help"] if name else ["--help"])
  texts[name] = [code, out.getvalue()]
configs = {}
for name in config_files.shipped_configs():
  config = load_config([f"--config={name}"])
  configs[name] = sorted(config.to_dict())
module = load_config(["--config=experiments.demo:vae", "--config.seed=3"])
import experiments.common
print(json.dumps({
  "texts": texts, "configs": configs, "seed": module.seed, "model": module.model.name,
  "files": [config_files.__file__, experiments.common.__file__,
            config_files.shipped_file("experiments/film_captions.jsonl")],
}))
"""


def test_an_installed_package_needs_no_clone_around(built, tmp_path):
  """Help, and configs by name, from an empty folder, with nothing but the wheel on the path."""
  environment = os.environ | {"PYTHONPATH": str(built["installed"]), "HOME": str(tmp_path)}
  done = subprocess.run(
    [sys.executable, "-W", "ignore", "-c", PROGRAM], cwd=tmp_path, env=environment,
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert all(code == 0 for code, _ in found["texts"].values()), done.stderr
  assert "sora demo --out=" in found["texts"]["demo"][1]
  assert "--config=demo" in found["texts"]["train"][1]
  assert set(found["configs"]) > {"demo", "film", "physworld", "sora_14b", "curate_default"}
  assert "model" in found["configs"]["demo"] and "curate" in found["configs"]["curate_default"]
  assert (found["seed"], found["model"]) == (3, "vae")
  assert all(path.startswith(str(built["installed"])) for path in found["files"]), found["files"]
  assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]

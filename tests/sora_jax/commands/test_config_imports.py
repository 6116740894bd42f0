"""Configs outside of the project: what they import is theirs, in the order that is stated."""

import sys
from pathlib import Path

import pytest

from data_pipeline.errors import BadInput
from sora_jax.commands.config_imports import import_folders
from sora_jax.commands.options import load_config

CONFIG = """
from ml_collections import ConfigDict
{imports}

def get_config(arg=""):
  return ConfigDict(dict(said={said})).lock()
"""


def put(path: Path, text: str) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return path


def config(path: Path, imports: str, said: str) -> Path:
  return put(path, CONFIG.format(imports=imports, said=said))


def said(path) -> str:
  return load_config([f"--config={path}"]).said


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  """Commands run from a folder that has an `experiments` of its own, which no config is in."""
  put(tmp_path / "cwd" / "experiments" / "common.py", "NAME = 'of the current folder'")
  put(tmp_path / "cwd" / "only_here.py", "NAME = 'of the current folder'")
  monkeypatch.chdir(tmp_path / "cwd")
  before = dict(sys.modules), list(sys.path)
  yield
  assert sys.path == before[1]
  assert {n for n in sys.modules if n.startswith("experiments")} == {
    n for n in before[0] if n.startswith("experiments")
  }


def test_a_neighbour_of_the_config_is_found(tmp_path):
  put(tmp_path / "mine" / "my_common.py", "NAME = 'beside'")
  file = config(tmp_path / "mine" / "run.py", "import my_common", "my_common.NAME")
  assert said(file) == "beside"
  put(tmp_path / "other" / "my_common.py", "NAME = 'another'")  # not that of the config before
  file = config(tmp_path / "other" / "run.py", "import my_common", "my_common.NAME")
  assert said(file) == "another" and "my_common" not in sys.modules


@pytest.mark.parametrize("regular", [True, False])
def test_a_package_named_experiments_is_the_users_own(tmp_path, regular):
  folder = tmp_path / "user" / "experiments"
  put(folder / "common.py", "NAME = 'of the user'")
  if regular:
    put(folder / "__init__.py", "")
  file = config(folder / "run.py", "from experiments import common", "common.NAME")
  assert said(file) == "of the user"
  assert load_config(["--config=demo:vae"]).version == 2  # the shipped one has its own again
  assert said(file) == "of the user"
  if regular:
    put(folder / "sub" / "__init__.py", "")
    file = config(folder / "sub" / "run.py", "import experiments.common as c", "c.NAME")
    assert said(file) == "of the user"


def test_the_shipped_ones_are_found_from_anywhere(tmp_path):
  imports = "from experiments import common"
  assert said(config(tmp_path / "mine" / "run.py", imports, "common.base(1).version")) == 2
  assert load_config(["--config=demo:dit"]).model.name == "dit"


def test_the_current_folder_comes_last(tmp_path):
  file = config(tmp_path / "mine" / "run.py", "import only_here", "only_here.NAME")
  assert said(file) == "of the current folder"


def test_what_is_not_found_is_one_line(tmp_path):
  file = config(tmp_path / "mine" / "run.py", "import nowhere", "1")
  with pytest.raises(BadInput, match="No module named 'nowhere'.*looked for in its own folder, th"):
    said(file)


def test_folders_in_their_order(tmp_path):
  for name in ("a/__init__.py", "a/b/__init__.py", "a/b/run.py", "c/run.py"):
    put(tmp_path / name, "")
  a, c = (import_folders(tmp_path / name / "run.py") for name in ("a/b", "c"))
  assert a[:2] == [str(tmp_path / "a" / "b"), str(tmp_path)]
  assert c[:2] == [str(tmp_path / "c"), str(tmp_path)] and a[2] == c[2]

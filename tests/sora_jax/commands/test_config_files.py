"""Configs are found by the path of a file, or by the name of a shipped experiment."""

from pathlib import Path

import pytest

from data_pipeline.errors import BadInput
from sora_jax.commands import config_files
from sora_jax.commands.config_files import resolve_config, shipped_configs, shipped_file
from sora_jax.commands.options import load_config

ROOT = Path(config_files.__file__).parents[2]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_shipped_experiments_are_known_by_name():
  names = "curate_default demo film physworld sora_14b sora_1b sora_300m sora_5b"
  assert list(shipped_configs()) == names.split()  # what they share is no config


@pytest.mark.parametrize("text", ["demo", "demo:dit", "experiments.demo:vae", "sora_14b:high,v5p"])
def test_a_shipped_experiment_is_found_from_any_folder(elsewhere, text):
  name, colon, arg = text.removeprefix("experiments.").partition(":")
  assert resolve_config(text) == f"{ROOT / 'experiments' / name}.py{colon}{arg}"


def test_a_name_is_loaded_as_its_file_is(elsewhere):
  by_file = load_config([f"--config={ROOT}/experiments/demo.py:vae"])
  assert load_config(["--config=demo:vae", "--config.seed=3"]).seed == 3
  assert load_config(["--config=demo:vae"]).to_dict() == by_file.to_dict()


def test_a_file_of_the_user_comes_first(elsewhere, monkeypatch):
  monkeypatch.setenv("HOME", str(elsewhere))
  (elsewhere / "demo").touch()
  (elsewhere / "mine.py").touch()
  assert resolve_config("demo:vae") == "demo:vae"
  assert resolve_config("mine.py:a:b") == "mine.py:a:b"
  assert resolve_config("~/mine.py:a") == f"{elsewhere}/mine.py:a"


@pytest.mark.parametrize(
  "text, said",
  [
    ("demmo:dit", r"no file 'demmo'. Did you mean --config=demo:dit\?"),
    ("experiments/demo.py:dit", r"no file 'experiments/demo.py'. Did you mean --config=demo:dit\?"),
    ("experiments.nope", "no file 'experiments.nope'. Give --config=FILE.py"),
    ("common", r"no file 'common'.*one of curate_default, demo, "),
    ("a:b/c.py:dit", "'a:b/c.py:dit' has a colon in its path"),
    ("a:b/c.py", "'a:b/c.py' has a colon in its path"),
    ("", "no file ''"),
  ],
)
def test_what_is_not_found_is_said_with_what_there_is(elsewhere, text, said):
  (elsewhere / "a:b").mkdir()
  (elsewhere / "a:b" / "c.py").touch()
  with pytest.raises(BadInput, match=said):
    resolve_config(text)


def test_a_file_that_a_shipped_config_names_is_found_beside_it(elsewhere):
  name = "experiments/film_captions.jsonl"
  assert shipped_file(name) == str(ROOT / name)
  (elsewhere / "experiments").mkdir()
  (elsewhere / name).touch()
  assert shipped_file(name) == name
  for other in ("experiments/nope.jsonl", "setup.py", "../setup.py"):
    assert shipped_file(other) == other

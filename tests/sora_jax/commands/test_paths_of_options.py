"""Paths of options and settings: `~` is a home everywhere, and a comma may be part of a name."""

import importlib

import pytest

from data_pipeline.curate.lists import placed
from data_pipeline.errors import BadInput
from sora_jax.commands.options import load_config
from sora_jax.commands.paths import dataset_paths

HOME = "/home/ada"
NEEDED = {  # command -> the options that name files or folders, and what else it needs
  "data": (["out"], ["--config=demo"]),
  "curate": (["out", "input", "data"], []),
  "encode": (["workdir", "data", "out", "text-folder"], []),
  "train": (["workdir"], ["--config=demo"]),
  "sample": (["workdir", "prompts", "out"], []),
  "eval": (["workdir", "data", "out"], ["--suite=adherence"]),
  "inspect": (["workdir"], []),
  "inspect ": (["data", "html"], []),
  "inspect  ": (["data", "export"], []),
  "demo": (["out"], []),
  "launch": (["script", "output"], ["slurm", "--nodes=1"]),
  "launch ": (["out"], ["gke", "--topology=v5e:2x2", "--name=a", "--image=i"]),
}


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
  monkeypatch.setenv("HOME", HOME)


def parse(command: str, words: list[str]):
  module = importlib.import_module(f"sora_jax.commands.{command.strip()}")
  return module.parser().parse_args(words)


@pytest.mark.parametrize("command", NEEDED)
def test_a_home_is_expanded_in_every_option_that_names_a_path(command):
  options, others = NEEDED[command]
  for given, meant in (("~/a", f"{HOME}/a"), ("gs://~/a", "gs://~/a"), ("./~/a", "./~/a")):
    args = parse(command, [*others, *(f"--{name}={given}" for name in options)])
    found = [getattr(args, name.replace("-", "_")) for name in options]
    assert [one[0] if isinstance(one, list) else one for one in found] == [meant] * len(options)
  with pytest.raises(BadInput, match=f"argument --{options[0]}: it is empty, and names nothing"):
    parse(command, [*others, *(f"--{name}=" for name in options)])


def test_a_home_is_expanded_in_settings_that_name_paths():
  words = ["--config=demo:dit", "--config.data.path=~/a, ~/b,gs://~/c", "--config.init_from=~/run"]
  config = load_config(words)
  assert config.data.path == f"{HOME}/a, {HOME}/b,gs://~/c"
  assert config.init_from == f"{HOME}/run" and config.is_locked
  words = ["--config=curate_default", "--config.curate.scores.aesthetic.head=~/head.safetensors"]
  assert load_config(words).curate.scores.aesthetic.head == f"{HOME}/head.safetensors"
  assert load_config(["--config=demo:dit"]).init_from == ""  # empty stays empty


def test_a_path_in_a_list_of_videos_may_begin_at_home(tmp_path):
  assert placed("~/a.mp4", str(tmp_path)) == f"{HOME}/a.mp4"
  assert placed("~a.mp4", str(tmp_path)) == f"{tmp_path}/~a.mp4"  # a name, as editors leave them
  (tmp_path / "~").mkdir()
  (tmp_path / "~" / "a.mp4").touch()
  assert placed("~/a.mp4", str(tmp_path)) == f"{tmp_path}/~/a.mp4"  # what is there is meant


def test_a_folder_with_a_comma_in_its_name_is_one_dataset(tmp_path):
  (tmp_path / "a,b").mkdir()
  both = f"{tmp_path}/a,b"
  assert dataset_paths(both) == [both]
  assert dataset_paths(f"{tmp_path}/a, {tmp_path}/b") == [f"{tmp_path}/a", f"{tmp_path}/b"]
  assert dataset_paths("one") == ["one"]
  for given in ("a,,b", "a,", ",a", " , "):
    with pytest.raises(BadInput, match="has nothing between two commas"):
      dataset_paths(given)

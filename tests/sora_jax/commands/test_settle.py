"""Configs and runs of before are read as they were meant, aloud; what is missing is named."""

import json

import pytest
from ml_collections import ConfigDict

from data_pipeline.errors import BadInput
from experiments import demo
from sora_jax.commands.run import read_config
from sora_jax.commands.settle import settle
from sora_jax.train.migrations import OLD, VERSION


def of_before(arg="debug") -> dict:
  """A config as it was written before the settings had a version."""
  config = demo.get_config(arg).to_dict()
  del config["version"]
  for name in OLD:
    *groups, key = name.split(".")
    place = config
    for group in groups:
      place = place[group]
    del place[key]
  config["optim"]["ema_decay"] = 0.99
  return config


def test_a_config_of_before_is_filled_in_and_said(capsys):
  config = ConfigDict(of_before()).lock()
  settle(config, "mine.py", "train")
  line, otherwise = capsys.readouterr().err.splitlines()
  assert line.startswith("train: mine.py is of version 1 of the settings") and config.version == 2
  assert "means what it did" in line  # and a new run by it computes this otherwise all the same
  assert otherwise.startswith("train: mine.py: optim.name=muon orthogonalises q, k, v, gate")
  assert all(name in line for name in OLD) and config.optim.ema_decay == 0.99
  settle(config, "mine.py", "train")
  assert capsys.readouterr().err == ""


def test_each_missing_setting_of_this_version_is_named_in_one_line():
  config = of_before() | {"version": VERSION}
  del config["data"]["window_clips"], config["every"]
  with pytest.raises(BadInput) as caught:
    settle(ConfigDict(config), "mine.py", "train")
  text = str(caught.value)
  for name in (*OLD, "data.window_clips", "every.log_steps", "every.checkpoint_steps"):
    assert name in text
  assert "optim.ema_width (as before: 0.0)" in text and "are missing (mine.py)" in text
  assert "\n" not in text


def test_a_run_of_before_is_sampled_as_it_was_trained(tmp_path, capsys):
  (tmp_path / "config.json").write_text(json.dumps(of_before("dit")))
  config = read_config(tmp_path)[0]
  assert tuple(config.model.rotary_seconds) == (0.5, 128.0)
  assert config.diffusion.density.max_shift == 0.0
  assert "is of version 1 of the settings" in capsys.readouterr().err
  newer = demo.get_config("dit").to_dict() | {"version": VERSION + 1}
  (tmp_path / "config.json").write_text(json.dumps(newer))
  with pytest.raises(BadInput, match="a newer sora_jax wrote it"):
    read_config(tmp_path)
  broken = of_before("dit")
  broken["sample"]["steps"], broken["model"]["heads"] = None, 0
  (tmp_path / "config.json").write_text(json.dumps(broken))
  with pytest.raises(BadInput, match="has model.heads=0 must be .*; sample.steps=None must be"):
    read_config(tmp_path)

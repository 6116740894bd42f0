"""`sora data` chooses by the config what it builds."""

from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from data_pipeline.errors import BadInput
from sora_jax.commands import data


def ask(groups: dict, out) -> SimpleNamespace:
  return SimpleNamespace(config=ConfigDict(groups), out=str(out))


@pytest.mark.parametrize(
  "groups, found", [({}, "no dataset"), ({"world": {}, "film": {}}, "world and film")]
)
def test_a_config_describes_one_dataset(tmp_path, groups, found):
  with pytest.raises(BadInput, match=f"describes {found}. Give one with exactly one"):
    data.run(ask(groups, tmp_path / "clips"))


@pytest.mark.parametrize("group", ["world", "film"])
def test_each_group_has_its_maker(tmp_path, monkeypatch, group):
  out = tmp_path / "clips"
  monkeypatch.setitem(data.MAKERS, group, lambda config, out: {"clips": config, "path": out})
  config = {group: {"name": "x"}, "seed": 0}
  assert data.run(ask(config, out)) == {"clips": config, "path": out, "out": str(out)}

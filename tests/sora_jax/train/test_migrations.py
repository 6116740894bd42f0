"""Configs of before mean what they meant; each setting that is filled in is named."""

import contextlib
import functools
import json
from typing import Any

import pytest
from ml_collections import ConfigDict

from data_pipeline.errors import BadInput
from experiments import common, demo, film
from sora_jax.build.migrations import fill_in
from sora_jax.build.schema import check_run
from sora_jax.commands.settle import settle
from sora_jax.train.migrations import ADDED, VERSION, migrate, show
from sora_jax.train.resume import changes, check_config, flatten, no_settings, told
from sora_jax.train.weights import Origin, compare_origin

OLD = {
  "model.rotary_seconds": (0.5, 128.0),
  "diffusion.density.max_shift": 0.0,
  "optim.ema_width": 0.0,
  "optim.more_ema_widths": (),
  "init_step": -1,
}


def of_before(make=demo.dit) -> dict:
  """A config as it was written before the version had a number."""
  config = make().to_dict() | {"optim": make().optim.to_dict() | {"ema_decay": 0.99}}
  del config["version"]
  for key in OLD:
    *groups, name = key.split(".")
    group = config
    for one in groups:
      group = group.get(one, {})
    group.pop(name, None)
  return config


def test_the_shipped_configs_are_of_this_version():
  assert common.base(1).version == VERSION == max(ADDED)


def test_what_a_dit_lacks_is_filled_in_with_its_old_meaning_and_named():
  old = of_before()
  new, line = migrate(old, "mine.py")
  assert changes(old, new) == {
    key: ("absent", value) for key, value in (OLD | {"version": 2}).items()
  }
  assert line.startswith("mine.py is of version 1 of the settings (this is 2): means what it did")
  assert "\n" not in line and all(f"{key}={show(value)}" in line for key, value in OLD.items())
  assert "version" not in old
  assert migrate(new, "mine.py") == (new, "")


def test_a_value_that_is_written_otherwise_now_is_replaced_and_named():
  """None was the only way to switch clipping off; 0 is now."""
  old = of_before()
  assert "clip_norm" not in migrate(old, "mine.py")[1]
  old["optim"]["clip_norm"] = None
  new, line = migrate(old, "mine.py")
  assert new["optim"]["clip_norm"] == 0.0 and old["optim"]["clip_norm"] is None
  assert "optim.clip_norm=0.0 (0: no clipping, written None before)" in line
  config: Any = ConfigDict(old).lock()
  settle(config, "mine.py", "train")
  assert config.optim.clip_norm == 0.0
  assert check_config(old, new) == check_config(old, old) == {}  # new written, or as it was
  with pytest.raises(BadInput, match="optim.clip_norm: 0.0 in the checkpoint, 1.0 now.*=0.0"):
    check_config(old, migrate(of_before(), "mine.py")[0])
  config.optim.clip_norm = None
  with pytest.raises(BadInput, match="optim.clip_norm=None must be a number"):
    settle(config, "mine.py", "train")


def test_what_a_checkpoint_of_before_has_beside_its_settings_is_left_out():
  """Nothing read it, and a config that still has it is refused."""
  saved, now = of_before(), migrate(of_before(), "mine.py")[0]
  saved |= {"notes": {"author": "me"}}
  saved["optim"] = saved["optim"] | {"remark": 1}
  assert no_settings(saved, now) == {"notes.author": "me", "optim.remark": 1}
  assert check_config(saved, now) == {} == no_settings(now | {"notes": 1}, now)
  with pytest.raises(BadInput, match="resume: notes: 1 in the checkpoint, absent now"):
    check_config(now | {"notes": 1}, now)  # of this version: it was never let pass


def test_a_setting_that_a_config_may_lack_is_never_left_out():
  kept = set()
  for make in (demo.debug, demo.dit, demo.vae, film.vae):
    saved = of_before(make)
    saved["data"]["path"] = "x"  # then nothing is made by `codec` and `world`
    alone = [(name,) for name in (*flatten(saved), *saved.keys() - {"model"})]
    for names in (*alone, ("codec", "codec_text")):
      now = migrate(saved, "mine.py")[0]
      for *groups, key in (name.split(".") for name in names):
        functools.reduce(dict.__getitem__, groups, now).pop(key, None)
      with contextlib.suppress(BadInput):
        check_run(now)
        kept.update(names)
        assert no_settings(saved, now) == {}, names
  assert {"codec", "codec_text", "world", "loss.terms.l2"} <= kept


def test_what_is_there_stays():
  old = of_before()
  old["optim"]["ema_width"] = 0.1
  new, line = migrate(old, "mine.py")
  assert new["optim"]["ema_width"] == 0.1 and "ema_width" not in line.replace("more_ema_w", "")


def test_a_vae_has_no_rotary_periods_and_no_density():
  new, _ = migrate(of_before(demo.vae), "mine.py")
  assert {"init_step", "optim.ema_width"} <= flatten(new).keys()
  assert "rotary_seconds" not in new["model"] and "diffusion" not in new


@pytest.mark.parametrize("make", [demo.dit, demo.vae, film.dit])
def test_a_locked_config_is_filled_in_where_it_is(make):
  old = of_before(make)
  config = ConfigDict(old).lock()
  new, line = migrate(old, "mine.py")
  assert fill_in(config, "mine.py") == line != ""
  assert config.is_locked and config.to_dict() == new


@pytest.mark.parametrize(
  "version, text", [(3, "3 is above 2: a newer sora_jax"), ("x", "'x' is not a version")]
)
def test_another_version_is_refused(version, text):
  with pytest.raises(BadInput, match=f"mine.py: version={text}"):
    migrate({"version": version}, "mine.py")


def test_a_checkpoint_of_before_goes_on_where_nothing_changed_its_meaning():
  saved, now = of_before(), migrate(of_before(), "mine.py")[0]
  assert check_config(saved, now) == {}
  assert "is of version 1 of the settings" in told(saved) and told(now) == ""


def test_a_checkpoint_of_before_names_every_setting_that_means_another_thing():
  now = migrate(of_before(), "mine.py")[0]
  now["model"]["rotary_seconds"] = (2.0, 128.0)
  now["diffusion"]["density"]["max_shift"] = 12.0
  now["optim"].update(ema_width=0.05, more_ema_widths=(0.1,), ema_decay=0.0)
  with pytest.raises(BadInput) as caught:
    check_config(of_before(), now)
  assert str(caught.value).endswith(
    "Use a new --workdir, or set diffusion.density.max_shift=0.0, model.rotary_seconds=(0.5,128.0),"
    " optim.ema_decay=0.99, optim.ema_width=0.0, optim.more_ema_widths=()."
  )


def test_weights_of_other_rotary_periods_are_named(tmp_path):
  for name, model in (("a", {"name": "dit"}), ("b", {"name": "dit", "rotary_seconds": (2, 128)})):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text(json.dumps({"model": model}))
  (line,) = compare_origin(Origin(str(tmp_path / "a"), None, "ema"), tmp_path / "b")
  assert "another range of rotary periods ([0.5, 128.0], here [2, 128])" in line

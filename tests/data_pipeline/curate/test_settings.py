import copy
import math

import numpy as np
import pytest

from data_pipeline.curate.container import Limits
from data_pipeline.curate.settings import read_settings
from data_pipeline.errors import BadInput
from experiments import curate_default


def plain(arg="default"):
  return curate_default.get_config(arg).curate.to_dict()


def changed(name, value):
  config = copy.deepcopy(plain())
  *sections, last = name.split(".")
  part = config
  for section in sections:
    part = part[section]
  part[last] = value
  return config


@pytest.mark.parametrize("arg", ["default", "ask", "debug"])
def test_the_experiment_gives_settings(arg):
  settings = read_settings(plain(arg))
  assert settings.windows.max_seconds == 20.0
  assert settings.decode.limits == Limits()
  assert len(settings.captions.prompts) == (2 if arg == "ask" else 0)
  assert settings.scores.text.measure == settings.scores.nsfw.measure == (arg != "debug")
  assert settings.scores.aesthetic.measure is False and settings.write.max_side is None


def test_the_experiment_refuses_another_name_and_is_locked():
  with pytest.raises(ValueError, match="Use default, ask or debug"):
    curate_default.get_config("fast")
  config = curate_default.get_config()
  with pytest.raises(AttributeError):
    config.curate.windows.longest_seconds = 3.0
  config.curate.scores.text.min = 0.1  # None at first, and of a known type
  with pytest.raises(TypeError):
    config.curate.scores.text.min = "much"


@pytest.mark.parametrize(
  "name, value, error",
  [
    ("shots.detector", "magic", "curate.shots.detector='magic' is unknown. Use one of flow"),
    ("shots.detector", "adaptive", r"threshold \(of adaptive\)=0.3 is not in 1..255"),
    ("shots.side", 256.5, "curate.shots.side=256.5 is no int"),
    ("windows.min_seconds", "two", "curate.windows.min_seconds='two' is no float"),
    ("windows.min_seconds", math.nan, "curate.windows.min_seconds=nan is no float"),
    ("windows.max_seconds", 1.0, "curate.windows.max_seconds=1 is not in 2..3600"),
    ("windows.overlap_seconds", 11.0, "curate.windows.overlap_seconds=11 is not in 0..10"),
    ("windows", 3, "curate.windows=3 is no section"),
    ("scores.frames", 0, "curate.scores.frames=0 is not in 1..64"),
    ("scores.frames", True, "curate.scores.frames=True is no int"),
    ("scores.motion.min", 0.9, "min=0.9 is above max=0.7"),
    ("scores.nsfw.measure", 1, "curate.scores.nsfw.measure=1 is no bool"),
    ("scores.aesthetic.measure", True, "measure=True needs weights"),
    ("scores.letterbox.min_side", 0, "min_side=0 is not in 1..16384"),
    ("scores.letterbox.max_luma", 300.0, "max_luma=300 is not in 0..255"),
    ("near.max_distance", 65, "curate.near.max_distance=65 is not in 0..64"),
    ("write.codec", "gif", "curate.write.codec='gif' is unknown. Use one of h264, lossless"),
    ("write.inherit_captions", "some", "Use one of all, one_shot, none"),
    ("write.held_out_fraction", 1.5, "held_out_fraction=1.5 is not in 0..1"),
    ("write.max_side", 0, "curate.write.max_side=0 is not in 1..16384"),
    ("decode.memory_bytes", 0, "curate.decode.memory_bytes=0 is not in 1..1.1259e"),
    ("decode.memory_bytes", 2**60, r"decode.memory_bytes=1.15292e\+18 is not in 1..1.1259e\+15"),
    ("decode.timeout_seconds", 1e30, r"decode.timeout_seconds=1e\+30 is not in 1..2e\+06"),
    ("captions", None, "curate.captions=None is no section"),
    ("captions.words", (), r"curate.captions.words=\(\) is no section"),
    ("captions.words.motion", 3, "curate.captions.words.motion=3 is no tuple"),
    ("captions.camera.static", 3, "curate.captions.camera.static=3 is no str"),
    ("captions.prompts", "ab", "curate.captions.prompts='ab' is no tuple"),
    ("captions.frames", "ab", "curate.captions.frames='ab' is no int"),
    ("windows.max_seconds", 10**310, "curate.windows.max_seconds=1000.* is no .*float"),
    ("windows.longest", 3.0, "curate.windows.longest is unknown. Its settings are max_seconds"),
    ("captions.measured", "no", "captions.measured='no' is unknown"),
  ],
)
def test_a_bad_setting_is_named(name, value, error):
  with pytest.raises(BadInput, match=error):
    read_settings(changed(name, value))


def test_a_missing_setting_is_named():
  config = plain()
  del config["near"]["remove"]
  with pytest.raises(BadInput, match="curate.near.remove is missing. Its settings are max_dist"):
    read_settings(config)


def test_whole_numbers_will_do_for_fractions():
  for same in (8, np.float64(8)):
    found = read_settings(changed("windows.max_seconds", same)).windows.max_seconds
    assert found == 8.0 and type(found) is float


def test_the_digest_changes_with_what_files_of_weights_hold(tmp_path):
  files = dict(encoder=str(tmp_path / "encoder.onnx"), head=str(tmp_path / "head.safetensors"))
  config = plain()
  config["scores"]["aesthetic"] |= dict(measure=True, **files)
  with pytest.raises(BadInput, match=r"aesthetic: encoder=.*onnx cannot be read \(No such file"):
    read_settings(config).cut_digest()
  digests = set()
  for words in ("one", "one"), ("two", "one"), ("two", "two"):
    for path, word in zip(files.values(), words, strict=True):
      (tmp_path / path).write_text(word)
    digests.add(read_settings(config).cut_digest())
  assert len(digests) == 3
  config["scores"]["aesthetic"]["measure"] = False
  (tmp_path / "head.safetensors").unlink()
  read_settings(config).cut_digest()  # looks at no file


def test_the_digest_changes_with_what_decides_the_cutting_only():
  before = read_settings(plain()).cut_digest()
  decides = [
    ("shots.threshold", 0.4),
    ("windows.trim_seconds", 0.2),
    ("scores.text.max", 0.1),
    ("scores.side", 320),
    ("decode.max_frames", 9),
    ("write.quality", 20),
    ("write.held_out_fraction", 0.5),
  ]
  for name, value in decides:
    assert read_settings(changed(name, value)).cut_digest() != before, name
  later = [
    ("near.max_distance", 3.0),
    ("captions.measured", "append"),
    ("write.shard_bytes", 99),
    ("write.name", "films"),
    ("decode.timeout_seconds", 9.0),
  ]
  for name, value in later:
    assert read_settings(changed(name, value)).cut_digest() == before, name


def test_a_source_may_take_as_long_as_its_size_justifies():
  decode = read_settings(plain()).decode
  assert decode.seconds(2_300_000) == 600 + 2.3 * 120
  assert decode.seconds(20 * 10**9) == 2e6  # no process can wait for 2.4 million seconds
  assert decode.seconds(0) == 600 and decode.seconds(-1) == 4 * 3600

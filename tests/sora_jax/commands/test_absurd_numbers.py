"""Numbers that nothing can be made of are refused by the option's name, before any work."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import cast

import pytest

from data_pipeline.errors import BadInput
from sora_jax.commands.entry import report_error
from sora_jax.commands.inspect import describe_packing
from sora_jax.commands.options import whole_option
from sora_jax.generate.pipeline import Pipeline
from sora_jax.generate.sample import Sampler

SAMPLE = ("sample", "--workdir=w", "--prompt=x", "--out=x.mp4")
EVAL = ("eval", "--workdir=w", "--data=d", "--suite=adherence")
ENCODE = ("encode", "--workdir=w", "--data=d", "--out=o")
PLAN = ("plan", "--config=demo:dit", "--topology=v5e:4")
INSPECT = ("inspect", "--data=d")
TRAIN = ("train", "--config=demo:debug", "--workdir=w")
CURATE = ("curate", "--config=curate_default", "--input=i", "--out=o")
HUGE = ("1e9", "-1", "nan", "inf", "abc", "", str(10**30))


@pytest.mark.parametrize(
  "command, options",
  [
    (SAMPLE, ("seconds", "fps", "steps", "guidance", "seed", "rows", "crf", "step", "size")),
    (EVAL, ("samples", "steps", "guidance", "seed", "step")),
    (ENCODE, ("rows", "patch-side", "captions", "mesh", "shard-bytes")),
    (PLAN, ("price",)),
    (INSPECT, ("slots", "caption-slots", "segments", "ranks", "rows", "width", "limit", "step")),
    (TRAIN, ("processes",)),
    (CURATE, ("workers",)),
  ],
)
def test_every_number_of_every_command(sora, tmp_path, monkeypatch, command, options):
  monkeypatch.chdir(tmp_path)
  for option in options:
    for value in HUGE:
      if (option, value) in {("guidance", "-1"), ("price", "1e9")}:
        continue  # numbers like others
      done = sora(*command, f"--{option}={value}")
      assert done.code == 2 and done.out == "", (option, value, done)
      (line,) = done.err.splitlines()
      assert f"--{option}" in line and "must be" in line or "is not WIDTHxHEIGHT" in line, line
  assert list(tmp_path.iterdir()) == []


def test_the_type_of_an_option_keeps_its_kind():
  assert whole_option(1, 8)("8") == 8


@pytest.mark.parametrize("platform", ["cuda", "abc"])
def test_devices_that_are_not_here_are_one_line(tmp_path, platform):
  done = subprocess.run(
    [sys.executable, "-m", "sora_jax", "train", "--config=demo:debug", f"--workdir={tmp_path}"],
    env=os.environ | {"JAX_PLATFORMS": platform},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2, done
  (line,) = done.stderr.splitlines()
  assert line.startswith(f"sora train: JAX_PLATFORMS={platform} asks for devices that are not here")


def test_too_little_memory_of_the_machine_is_one_line(capsys):
  assert report_error("sample", MemoryError("Unable to allocate 9 TiB")) == 1
  text = "sora sample: the machine has too little memory (Unable to allocate 9 TiB). Ask for some"
  assert capsys.readouterr().err.startswith(text)


def test_a_video_beyond_any_machine_is_refused_before_it_is_made():
  vae = SimpleNamespace(time_factor=4, space_factor=8)
  pipeline = Pipeline(None, cast(Sampler, SimpleNamespace(patch=(1, 2, 2))), vae)
  minute = dict(width=832, height=480, fps=16.0)
  assert pipeline.shape_of(seconds=60.0, **minute).f == 241
  with pytest.raises(BadInput, match="seconds=3600 of 832x480 at fps=16 are 22465560 tokens"):
    pipeline.shape_of(seconds=3600.0, **minute)


def test_rows_that_do_not_divide_over_ranks():
  with pytest.raises(BadInput, match="--rows=3 does not divide over --ranks=2"):
    describe_packing(SimpleNamespace(rows=3, ranks=2))

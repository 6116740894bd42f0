"""Whole commands as processes: every line on their stderr is ours, and -v shows the others."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import texture

from data_pipeline.video_writer import encode_video

ROOT = Path(__file__).resolve().parents[3]
CURATE = ("-m", "sora_jax", "curate", "--config=experiments/curate_default.py:debug", "--workers=2")
NOBODY = "http://127.0.0.1:9/v1"


def python(*words, **environment):
  """Runs Python as a user does, not as these tests do: JAX may look for whatever devices."""
  own = {name: os.environ[name] for name in os.environ if name not in ("JAX_PLATFORMS", "TERM")}
  return subprocess.run(
    [sys.executable, *map(str, words)],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=own | environment,
    timeout=300,
  )


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  """Two videos, one with a caption, one of half the length that clips have, and a note."""
  folder = tmp_path_factory.mktemp("videos")
  for name, count in (("a", 24), ("b", 24), ("short", 6)):
    picture = texture(ord(name[0]), 64, 144)
    frames = (np.ascontiguousarray(picture[:, t : t + 96]) for t in range(count))
    video = encode_video(frames, width=96, height=64, fps=24, codec="h264", quality=20)
    (folder / f"{name}.mp4").write_bytes(video.data)
  (folder / "a.txt").write_text("a texture\n")
  (folder / "note").write_text("no video\n")
  return folder


def test_a_curation_of_two_processes_says_what_became_of_it(videos, tmp_path):
  out = tmp_path / "clips"
  words = (*CURATE, f"--input={videos}", f"--out={out}")
  done = python(*words)
  lines = done.stderr.splitlines()
  assert done.returncode == 0, done.stderr
  cut = [line for line in lines if line.startswith("cut: ")]
  assert len(cut) <= 8 and cut[0] == "cut: 0/4" and re.fullmatch(r"cut: 4/4, \S+/s", cut[-1])
  assert lines[len(cut) :] == [
    f"curate: 2 clips of 4 sources, see {out}/report.html",
    "curate: captions: 1 used, 0 unused; 1 clip without any",
    f"curate: rejected, by reason (2 rows of {out}/rejects.jsonl):",
    "  1  not_video  no video and no picture",
    "  1  too_short  shorter than windows.min_seconds",
  ]
  (result,) = map(json.loads, done.stdout.splitlines())
  assert result["clips"] == 2 and result["rejects"] == {"not_video": 1, "too_short": 1}
  assert result["sources_without_clips"] == 2 and result["without_captions"] == 1
  rows = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
  assert sorted(row["reason"] for row in rows) == ["not_video", "too_short"]
  told = python(*words, "-v")  # Beam is imported only: all is made
  assert told.returncode == 0 and told.stdout.splitlines()[-1].startswith('{"out"')
  assert len(told.stderr.splitlines()) > 6 and "apache_beam" in told.stderr


def test_a_fault_in_a_worker_is_one_line(videos, tmp_path):
  settings = ("captions.chat.tries=1", f"captions.chat.base_url={NOBODY}")
  settings += ("scores.text.measure=False", "scores.nsfw.measure=False", "windows.min_seconds=0.5")
  words = ["-m", "sora_jax", "curate", "--config=experiments/curate_default.py:ask", "--workers=2"]
  words += [f"--config.curate.{setting}" for setting in settings]
  done = python(*words, f"--input={videos}", f"--out={tmp_path / 'clips'}")
  lines = done.stderr.splitlines()
  assert done.returncode == 2 and not done.stdout, done.stderr
  assert [line for line in lines if not line.startswith("cut: ")] == lines[-1:]
  assert lines[-1].startswith(f"sora curate: captions: base_url={NOBODY}")


DEVICES = """
import sys
from sora_jax.commands.entry import begin_messages
begin_messages(sys.argv[1:])
import jax
import orbax.checkpoint
import sora_jax.parallel.hosts
print(jax.devices()[0].platform)
"""


def test_looking_for_devices_is_quiet():
  done = python("-c", DEVICES, "train")
  assert done.returncode == 0 and done.stdout.strip() and not done.stderr, done.stderr


def test_what_is_passed_on_is_not_asked_for_here():
  show = "; import os; print(os.environ.get('SORA_VERBOSE'), os.environ.get('TPU_HOST_BOUNDS'))"
  begin = "import sys; from sora_jax.commands.entry import begin_messages as b; b(sys.argv[1:])"
  for words, verbose in (
    (("launch", "--processes=2", "--", "sora", "train", "-v"), None),
    (("launch", "-v", "--", "sora", "train"), "1"),
    (("inspect", "--verbose"), "1"),
  ):
    found = python("-c", begin + show, *words).stdout.split()
    assert found == [str(verbose), "None"]

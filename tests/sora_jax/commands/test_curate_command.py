"""`sora curate` as a command line: what it refuses, and a take-down from beginning to end."""

import json

import numpy as np
import pytest
from pictures import texture

from data_pipeline.dataset import Dataset
from data_pipeline.video_writer import encode_video
from sora_jax.commands.entry import main

CONFIG = "--config=experiments/curate_default.py:debug"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("videos")
  for seed in range(3):
    picture = texture(seed, 64, 144)
    frames = (np.ascontiguousarray(picture[:, t : t + 96]) for t in range(24))
    video = encode_video(frames, width=96, height=64, fps=24, codec="h264", quality=20)
    (folder / f"{seed}.mp4").write_bytes(video.data)
  return folder


def run(capsys, *words):
  code = main(["curate", *map(str, words)])
  captured = capsys.readouterr()
  return code, captured.out, captured.err


def test_curate_and_take_down(videos, tmp_path, capsys):
  out = tmp_path / "clips"
  words = (CONFIG, f"--input={videos}", f"--out={out}", "--workers=1")
  code, stdout, stderr = run(capsys, *words)
  assert code == 0 and json.loads(stdout.splitlines()[-1])["clips"] == 3, stderr
  assert run(capsys, f"--out={out}", "--remove=9.mp4")[0] == 2
  assert len(Dataset.open(out, kind="clip")) == 3
  code, stdout, _ = run(capsys, f"--out={out}", "--remove=1.mp4")
  assert code == 0 and json.loads(stdout)["removed"]["clips"] == 1
  clips = Dataset.open(out, kind="clip")
  assert {clips.read(row).source for row in range(len(clips))} == {"0.mp4", "2.mp4"}
  code, stdout, _ = run(capsys, *words)  # it does not come back
  assert code == 0 and json.loads(stdout.splitlines()[-1])["clips"] == 2


@pytest.mark.parametrize(
  "words, text",
  [
    ((CONFIG, "--out=X"), "--config=FILE.py and --input are needed"),
    ((CONFIG, "--input=Y", "--out=X", "--no_such=1"), "--no_such=1 is no option of ours"),
    ((CONFIG, "--input=Y", "--out=X", "--workers=0"), "--workers: 0 must be a whole"),
    ((CONFIG, "--input=Y", "--out=X"), "Y"),
    ((CONFIG, "--input=Y", "--out=gs://b/x"), "Mount the bucket"),
    (("--config=experiments/demo.py", "--input=Y", "--out=X"), "no group `curate`"),
    (("--config.curate.near.remove=False", "--out=X", "--input=Y"), "Give --config too"),
    (("--out=X", "--remove=a", "--append"), "--append does not go with --remove"),
    (("--out=X", "--remove=a", "--runner=B"), "--runner=B does not go with --remove"),
    (("--out=X", "--remove=@nowhere"), "--remove=@nowhere cannot be read"),
    (("--out=X", "--remove=,"), "names no source"),
    ((CONFIG, "--out=X", "--input=Y", "--data=L"), "--data does not go with curation"),
  ],
)
def test_one_line_for_what_does_not_fit(words, text, tmp_path, monkeypatch, capsys):
  words = [word.replace("=X", f"={tmp_path / 'x'}") for word in words]
  words = [word.replace("=Y", f"={tmp_path / 'Y'}") for word in words]
  code, stdout, stderr = run(capsys, *words)
  assert code == 2 and not stdout and text in stderr and stderr.count("\n") == 1, stderr
  assert not list(tmp_path.iterdir())

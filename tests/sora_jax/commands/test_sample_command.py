"""`sora sample`: the options reach the video, and equal options give equal files."""

import numpy as np
import pytest
from PIL import Image

from sora_jax.generate.media import read_mp4

PROMPT = "--prompt=a red circle"


@pytest.fixture
def sample(sora, finished, tmp_path):
  """Makes a video with few steps; returns the bytes of its file."""

  def make(name, *words) -> bytes:
    out = tmp_path / name
    argv = (f"--workdir={finished}", f"--out={out}", "--steps=2", "--guidance=3", "--crf=0", PROMPT)
    result = sora("sample", *argv, "--rows=1", *words).result
    assert result["files"] == [str(out)]
    return out.read_bytes()

  return make


def test_equal_options_give_equal_files_and_others_do_not(sample):
  first = sample("a.mp4", "--seed=3")
  assert sample("b.mp4", "--seed=3") == first
  videos = {
    "another seed": sample("c.mp4", "--seed=4"),
    "a negative prompt": sample("d.mp4", "--seed=3", "--negative-prompt=b"),
    "no guidance": sample("e.mp4", "--seed=3", "--guidance=1"),
  }
  assert first not in videos.values() and len(set(videos.values())) == len(videos), videos.keys()


def test_a_file_of_prompts_makes_videos_as_asked(sora, finished, tmp_path):
  prompts, out = tmp_path / "prompts.txt", tmp_path / "new" / "videos"
  prompts.write_text("a red circle\n\na small blue square drifts left\n", encoding="utf-8")
  words = ("--size=48x32", "--seconds=1.25", "--fps=4", "--steps=1", "--rows=2", "--shift=2")
  done = sora("sample", f"--workdir={finished}", f"--prompts={prompts}", f"--out={out}", *words)
  files = [out / "0000.mp4", out / "0001.mp4"]
  assert done.result["files"] == [str(path) for path in files] and done.result["shift"] == 2.0
  videos = [read_mp4(path) for path in files]
  for video, fps in videos:
    assert video.shape == (5, 32, 48, 3) and fps == 4
  assert (videos[0][0] != videos[1][0]).any()


def test_a_line_of_a_file_is_made_again_alone(sora, finished, tmp_path):
  """Bit for bit: other lines beside it, and how long they are, change nothing."""
  short, long = "a red circle", "a small blue square drifts left " * 3
  prompts = tmp_path / "prompts.txt"
  prompts.write_bytes(f"\ufeff{long}\r\n{short}\r\n\u2028{short}\u2028b\r{long}c\n".encode())
  words = (f"--workdir={finished}", "--steps=2", "--guidance=3", "--crf=0", "--seed=7")
  many = (*words, f"--prompts={prompts}", f"--out={tmp_path}/new", "--draw=5", "--rows=3")
  made = sora("sample", *many).result
  said = [long.strip(), short, f"{short}\u2028b", f"{long}c"]
  assert [one["prompt"] for one in made["samples"]] == said
  assert [one["draw"] for one in made["samples"]] == [5, 6, 7, 8]
  assert made["shift"] == pytest.approx(np.exp(1.2))  # of experiments/demo.py's density
  assert [one["file"] for one in made["samples"]] == made["files"]
  for one in made["samples"][1:3]:
    out = tmp_path / "alone.mp4"
    alone = (f"--prompt={one['prompt']}", f"--draw={one['draw']}", f"--out={out}")
    again = sora("sample", *words, f"--rows={made['rows']}", *alone).result
    assert out.read_bytes() == (tmp_path / "new" / one["file"]).read_bytes(), one
    assert again["samples"] == [one | {"file": str(out)}]
    same = made.keys() - {"files", "samples"}
    assert {key: again[key] for key in same} == {key: made[key] for key in same}
  assert (made["seed"], made["guidance"], made["solver"]) == (7, 3.0, "euler")
  videos = [read_mp4(path)[0] for path in made["files"]]
  assert all((videos[0] != other).any() for other in videos[1:])


def test_an_image_may_be_a_picture(sora, finished, tmp_path):
  words = (f"--workdir={finished}", PROMPT, "--steps=1", "--rows=1")
  assert sora("sample", *words, f"--out={tmp_path}/x.PNG", "--seconds=0").code == 0
  assert np.asarray(Image.open(tmp_path / "x.PNG")).shape == (32, 32, 3)
  done = sora("sample", *words, f"--out={tmp_path}/y.png")
  assert done.code == 2 and "y.png is a picture. Give x.mp4, or --seconds=0" in done.err
  for name in ("x.gif", "x", "x.mp4.webm"):
    done = sora("sample", *words, f"--out={tmp_path}/{name}")
    assert done.code == 2 and f"{name} is no file of .mp4 or .png. Name one" in done.err
  assert [path.name for path in tmp_path.iterdir()] == ["x.PNG"]


def test_no_seconds_make_an_image(sample, tmp_path):
  sample("image.mp4", "--seconds=0", "--guidance=1")
  assert read_mp4(tmp_path / "image.mp4")[0].shape == (1, 32, 32, 3)

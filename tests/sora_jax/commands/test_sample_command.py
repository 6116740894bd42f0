"""`sora sample`: the options reach the video, and equal options give equal files."""

import pytest

from sora_jax.generate.media import read_mp4

PROMPT = "--prompt=a red circle"


@pytest.fixture
def sample(sora, finished, tmp_path):
  """Makes a video with few steps; returns the bytes of its file."""

  def make(name, *words) -> bytes:
    out = tmp_path / name
    argv = (f"--workdir={finished}", f"--out={out}", "--steps=2", "--guidance=3", "--crf=0", PROMPT)
    result = sora("sample", *argv, *words).result
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
  words = ("--size=48x32", "--seconds=1.25", "--fps=4", "--steps=1")
  done = sora("sample", f"--workdir={finished}", f"--prompts={prompts}", f"--out={out}", *words)
  files = [out / "0000.mp4", out / "0001.mp4"]
  assert done.result["files"] == [str(path) for path in files]
  videos = [read_mp4(path) for path in files]
  for video, fps in videos:
    assert video.shape == (5, 32, 48, 3) and fps == 4
  assert (videos[0][0] != videos[1][0]).any()


def test_no_seconds_make_an_image(sample, tmp_path):
  sample("image.mp4", "--seconds=0", "--guidance=1")
  assert read_mp4(tmp_path / "image.mp4")[0].shape == (1, 32, 32, 3)

"""`sora inspect --clips`, `--export` and `--html`: what a dataset holds, clip by clip."""

import json
import re
import subprocess
import sys

import imageio_ffmpeg
import numpy as np
import pytest

from data_pipeline.dataset import Dataset
from data_pipeline.records import ClipRecord
from data_pipeline.video_writer import encode_video
from data_pipeline.writer import DatasetWriter
from sora_jax.commands.inspect_clips import file_name

FIELDS = {"id", "source", "split", "licence", "start_frame", "frames", "fps", "width", "height"}
FIELDS |= {"captions", "scores"}
NAMES = ["../../etc/passwd", "a b:0-5", "-rf", "ü/\n<script>", ".hidden", "x" * 300, "a b:0-5 "]


def clip_of(number, **fields):
  rng = np.random.default_rng(number)
  video = rng.integers(0, 256, (1 + number % 4, 7, 13, 3), np.uint8)
  base = dict(
    id=NAMES[number],
    source=f"videos/{number // 2}.mp4",
    licence="CC-BY-3.0",
    split="held_out" if number == 5 else "train",
    start_frame=10 * number,
    fps=30000 / 1001,
    video=video,
    captions=(f"</b><script>{number}</script>", "two")[: number % 3],
    attributes="",
    truth=b"",
    scores=json.dumps({"motion": number / 10}) if number else "",
  )
  return ClipRecord(**(base | fields))


def write(path, records):
  with DatasetWriter(path, "clip", name="t", shard_bytes=10**6, meta={}) as out:
    for record in records:
      out.add(record)
  return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  """Clips as arrays."""
  records = [clip_of(number) for number in range(len(NAMES))]
  return write(tmp_path_factory.mktemp("data") / "clips", records)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
  """The same clips, compressed."""
  records = []
  for number in range(len(NAMES)):
    video = clip_of(number).video
    video = encode_video(video, width=13, height=7, fps=8, codec="h264", quality=20)
    records.append(clip_of(number, video=video))
  return write(tmp_path_factory.mktemp("data") / "encoded", records)


def lines_of(text):
  return [json.loads(line) for line in text.splitlines()]


def test_a_line_a_clip(sora, clips):
  done = sora("inspect", f"--data={clips}", "--clips")
  lines = lines_of(done.out)
  assert done.code == 0 and done.err == "" and len(lines) == len(NAMES)
  dataset = Dataset.open(clips, kind="clip")
  for row, line in enumerate(lines):
    record = dataset.read(row)
    assert set(line) == FIELDS and line["id"] == record.id and line["split"] == record.split
    assert (line["frames"], line["height"], line["width"], 3) == record.video.shape
    assert line["captions"] == list(record.captions) and line["source"] == record.source
    assert line["start_frame"] == record.start_frame and line["fps"] == 29.97003
    assert line["scores"] == json.loads(record.scores or "{}") and line["licence"] == "CC-BY-3.0"
  assert lines[3]["scores"] == {"motion": 0.3}


def test_split_and_limit(sora, clips, encoded):
  (line,) = lines_of(sora("inspect", f"--data={clips}", "--clips", "--split=held_out").out)
  assert line["id"] == NAMES[5]
  lines = lines_of(sora("inspect", f"--data={encoded}", "--clips", "--limit=3").out)
  assert [line["id"] for line in lines] == NAMES[:3]


def test_of_latents(sora, finished):
  latents = finished / "data" / "latents"
  lines = lines_of(sora("inspect", f"--data={latents}", "--clips", "--limit=2").out)
  record = Dataset.open(latents, kind="latent").read(1)
  assert len(lines) == 2 and set(lines[1]) == FIELDS and lines[1]["frames"] == record.frames
  assert lines[1]["captions"] == list(record.captions) and lines[1]["width"] == record.width


def test_a_reader_may_leave_early(clips, tmp_path):
  many = write(tmp_path / "many", [clip_of(0, id=str(i)) for i in range(3000)])
  words = [sys.executable, "-m", "sora_jax", "inspect", f"--data={many}", "--clips"]
  with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
    assert json.loads(job.stdout.readline())["id"] == "0"
    job.stdout.close()
    assert job.stderr.read() == b"" and job.wait() == 0


def decode(path, frames):
  """Every pixel, by another program than the one that wrote it."""
  words = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path)]
  words += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
  data = subprocess.run(words, capture_output=True, check=True).stdout
  return np.frombuffer(data, np.uint8).reshape(frames, 7, 13, 3)


@pytest.mark.parametrize("which", ["clips", "encoded"])
def test_exports_every_pixel(sora, request, which, tmp_path):
  data, out = request.getfixturevalue(which), tmp_path / "new" / "look"
  result = sora("inspect", f"--data={data}", f"--export={out}").result
  assert result == {"exported": len(NAMES), "export": str(out)}
  manifest = lines_of((out / "manifest.jsonl").read_text())
  assert [line["id"] for line in manifest] == NAMES
  files = {path.name for path in out.iterdir()}
  assert files == {line["path"] for line in manifest} | {"manifest.jsonl"}
  assert len(files) == len(NAMES) + 1  # ids that differ by what a name cannot hold
  assert all(re.fullmatch(r"\d_[A-Za-z0-9-]{0,80}\.mp4", line["path"]) for line in manifest)
  dataset = Dataset.open(data, kind="clip")
  for row, line in enumerate(manifest):
    assert set(line) == FIELDS | {"path"}
    video = dataset.read(row).video
    video = video if isinstance(video, np.ndarray) else video.decode()
    np.testing.assert_array_equal(decode(out / line["path"], line["frames"]), video)
  assert [path.name for path in out.parent.iterdir()] == ["look"]


def test_exports_keep_their_rate(sora, clips, tmp_path):
  sora("inspect", f"--data={clips}", f"--export={tmp_path / 'x'}", "--limit=4")
  (path,) = (tmp_path / "x").glob("3_*.mp4")
  words = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)]
  assert "29.97 fps" in subprocess.run(words, capture_output=True, text=True).stderr
  assert len(list((tmp_path / "x").glob("*.mp4"))) == 4


def test_exports_what_latents_stand_for(sora, finished, tmp_path):
  from sora_jax.models.frozen_vae import load_frozen_vae

  latents = finished / "data" / "latents"
  sora("inspect", f"--data={latents}", f"--export={tmp_path / 'x'}", "--limit=1")
  (line,) = lines_of((tmp_path / "x" / "manifest.jsonl").read_text())
  record = Dataset.open(latents, kind="latent").read(0)
  vae = load_frozen_vae(latents / "vae")
  video = np.asarray(vae.decode(record.latent[None].astype(np.float32))[0])
  words = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(tmp_path / "x" / line["path"])]
  words += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
  data = subprocess.run(words, capture_output=True, check=True).stdout
  found = np.frombuffer(data, np.uint8).reshape(video.shape).astype(int)
  assert len(found) == line["frames"] > 4 and np.abs(found - video).max() <= 1  # in chunks


def test_a_failed_export_leaves_nothing(sora, clips, tmp_path, monkeypatch):
  def fail(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("sora_jax.commands.inspect_clips.encode_video", fail)
  done = sora("inspect", f"--data={clips}", f"--export={tmp_path / 'x'}")
  assert done.code == 1 and "No space left" in done.err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", ["clips", "encoded"])
def test_a_page(sora, request, which, tmp_path):
  data = request.getfixturevalue(which)
  done = sora("inspect", f"--data={data}", f"--html={tmp_path / 'p.html'}", "--json")
  assert done.result["html"] == str(tmp_path / "p.html") and done.result["clips"] == len(NAMES)
  text = (tmp_path / "p.html").read_text(encoding="utf-8")
  assert text.count("<img src=") == len(NAMES) and "http" not in text
  assert "<script>" not in text and "&lt;script&gt;1" in text
  for part in ("Seconds", "Captions", "Shapes", "motion", "CC-BY-3.0", "(no caption)"):
    assert part in text


def test_a_page_of_a_split(sora, clips, tmp_path):
  words = (f"--html={tmp_path / 'p.html'}", "--split=train", "--limit=2", "--json")
  assert sora("inspect", f"--data={clips}", *words).code == 0
  text = (tmp_path / "p.html").read_text(encoding="utf-8")
  assert text.count("<img src=") == 2 and "Scores of 6 clips" in text


def test_a_page_of_latents_decodes_a_few(sora, finished, tmp_path):
  latents = finished / "data" / "latents"
  words = (f"--html={tmp_path / 'p.html'}", "--slots=128", "--rows=4", "--ranks=2", "--limit=3")
  facts = sora("inspect", f"--data={latents}", *words).result
  text = (tmp_path / "p.html").read_text(encoding="utf-8")
  assert text.count("<img src=") == 3 and "Tokens" in text and "imbalance" in text
  assert facts["seconds"] == pytest.approx(
    sora("inspect", f"--data={finished / 'data' / 'clips'}", "--json").result["seconds"]
  )
  counted = facts["histograms"]["seconds"]
  assert sum(counted["counts"]) == facts["clips"]


@pytest.mark.parametrize(
  "words, match",
  [
    (("--clips", "--split=held_out_combination"), "holds no clips. It has train, held_out"),
    (("--clips", "--split=test"), "split='test' is unknown"),
    (("--clips", "--limit=-1"), "--limit: -1 must be a whole number of 0"),
    (("--clips", "--export=x"), "not allowed with argument"),
    (("--export={tmp}",), "exists. Remove it, or name another"),
    (("--html={tmp}/none/p.html",), "is no file in a folder that exists"),
    (("--html={tmp}",), "is no file in a folder that exists"),
  ],
)
def test_refuses(sora, clips, tmp_path, words, match):
  done = sora("inspect", f"--data={clips}", *(word.format(tmp=tmp_path) for word in words))
  assert done.code == 2 and match in done.err and done.out == "" and done.err.count("\n") == 1


def test_a_run_has_no_clips(sora, tmp_path):
  done = sora("inspect", f"--workdir={tmp_path}", "--clips")
  assert done.code == 2 and "ask for --data" in done.err


def test_file_names():
  assert file_name(7, 4, "a/b c.mp4:0-9") == "0007_a-b-c-mp4-0-9.mp4"
  assert file_name(0, 1, "…") == "0_.mp4"

"""Hostile files: each becomes frames or a reason; none opens anything, nor outlives its child."""

import os
import random
import struct

import pytest
from PIL import Image

from data_pipeline.curate.child import ChildFailed, run_in_child
from data_pipeline.curate.container import Limits
from data_pipeline.curate.media import frames, probe
from data_pipeline.curate.sources import find_sources
from data_pipeline.curate.types import Refused, Reject


def outcome(path, limits=None) -> str:
  """The reason for which a file is refused, or "frames" and how many there are."""
  limits = limits or Limits()
  with open(path, "rb") as file:
    try:
      info = probe(file, limits)
      return f"frames {sum(1 for _ in frames(file, info, limits=limits))}"
    except Refused as refused:
      return refused.reason
    except MemoryError:  # a length that is damaged, asked for at once
      return "memory"


@pytest.fixture
def whole(media, make):
  """Good files of four seconds, by name."""
  names = ("index_first.mp4", "index_last.mp4", "a.mkv", "a.ts", "a.avi", "a.flv", "a.gif")
  codecs = {"a.avi": ("-c:v", "mpeg4"), "a.gif": ("-r", "10")}
  index = {"index_first.mp4": ("-movflags", "+faststart")}
  h264 = (*make.X264, "-g", "25")
  return {
    name: media(name, *make.pattern(seconds=4), *codecs.get(name, h264), *index.get(name, ()))
    for name in names
  }


def test_truncated_files_give_what_they_have(whole, tmp_path):
  kept = {}
  for name, path in whole.items():
    data = path.read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 6 // 10])
    with open(tmp_path / name, "rb") as file, open(path, "rb") as good:
      try:
        info = probe(file)
        kept[name] = (len(list(frames(file, info))), info.damage, info.declared_frames)
        count = kept[name][0] - 6  # B-frames and the packet that was cut come last
        pairs = zip(frames(file, info, stop=count), frames(good), strict=False)
        assert all((one == other).all() for one, other in pairs), name
      except Refused as refused:
        kept[name] = refused.reason
  assert kept.pop("index_last.mp4") == "damaged"  # nothing can be found without the index
  assert all(20 <= frames <= 90 for name, (frames, _, _) in kept.items() if name != "a.gif")
  told = {name for name, (_, damage, _) in kept.items() if damage == "truncated"}
  assert told == {"index_first.mp4", "a.mkv", "a.avi", "a.flv"}  # the others say no length
  assert all(98 <= kept[name][2] <= 103 for name in told - {"a.avi"})


@pytest.mark.parametrize("seed", range(3))
def test_noise_never_escapes(functions, whole, tmp_path, seed):
  """Bytes changed at random, in the index too: frames or a reason, whatever the file."""
  rng = random.Random(seed)
  for name, path in whole.items():
    data = bytearray(path.read_bytes())
    for _ in range(30):
      data[rng.randrange(len(data))] = rng.randrange(256)
    (tmp_path / name).write_bytes(data)
    result = outcome(tmp_path / name)
    assert result.startswith("frames") or result in (
      *("damaged", "not_video", "no_video", "no_decoder", "broken_timestamps", "too_large"),
      *("too_long", "too_many_frames", "colours", "memory", "size_change"),
    ), (name, result)


def test_files_that_are_no_video(make, tmp_path):
  for name in ("audio.m4a", "audio.mp3", "audio.wav"):
    make.ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", tmp_path / name)
  Image.new("RGB", (64, 64)).save(tmp_path / "cover.png")
  cover = ("-i", tmp_path / "audio.m4a", "-i", tmp_path / "cover.png", "-map", "0", "-map", "1")
  make.ffmpeg(*cover, "-c", "copy", "-disposition:v", "attached_pic", tmp_path / "cover.m4a")
  (tmp_path / "text.mp4").write_text("only text\n" * 100)
  (tmp_path / "empty.mp4").write_bytes(b"")
  (tmp_path / "random.mp4").write_bytes(random.Random(0).randbytes(100_000))
  (tmp_path / "zip.mp4").write_bytes(b"PK\x03\x04" + bytes(1000))
  make.ffmpeg(*make.pattern(seconds=0.4), *make.X264, "-f", "matroska", tmp_path / "matroska.mp4")
  (tmp_path / "picture.mp4").write_bytes((tmp_path / "cover.png").read_bytes())
  assert {path.name: outcome(path) for path in tmp_path.iterdir()} == {
    "audio.m4a": "no_video",
    "audio.mp3": "not_video",
    "audio.wav": "not_video",
    "cover.m4a": "no_video",
    "cover.png": "frames 1",
    "empty.mp4": "empty",
    "matroska.mp4": "frames 10",
    "picture.mp4": "frames 1",
    "random.mp4": "not_video",
    "text.mp4": "not_video",
    "zip.mp4": "not_video",
  }


def png_header(width, height) -> bytes:
  import zlib

  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))


def test_sides_beyond_the_limit_are_refused_before_they_are_decoded(make, tmp_path):
  (tmp_path / "a.png").write_bytes(png_header(16384, 16384))
  side = struct.pack("<HH", 65535, 65535)
  gif = b"GIF89a" + side + b"\0\0\0,\0\0\0\0" + side + b"\0\2\2\x4c\1\0;"
  (tmp_path / "a.gif").write_bytes(gif)  # its decoder only says that it cannot
  wide = ("-f", "lavfi", "-i", "color=s=16384x32:d=0.1", "-c:v", "ffv1", "-pix_fmt", "gray")
  make.ffmpeg(*wide, tmp_path / "a.mkv")
  results = {path.name: outcome(path) for path in tmp_path.iterdir()}
  assert results == {"a.png": "too_large", "a.mkv": "too_large", "a.gif": "damaged"}


def test_times_that_no_video_has(make, tmp_path):
  day = 86_400_000
  for name, stamps in {
    "ten_hours.mkv": [number * 40_000 for number in range(900)],
    "few_frames.mkv": [number * 12_000_000 for number in range(4)],
    "jump.mkv": [*range(0, 1000, 40), *range(10**12, 10**12 + 1000, 40)],
    "all_at_once.mkv": [0] * 50,
    "slides.mkv": [0, 20_000, 45_000],
  }.items():
    make.write(tmp_path / name, make.greys(len(stamps)), stamps)
  results = {path.stem: outcome(path) for path in tmp_path.iterdir()}
  assert results["ten_hours"] == "too_long"
  assert results["few_frames"] == "broken_timestamps"
  assert results["jump"] == "frames 50"  # two recordings in one file
  assert results["all_at_once"] == "broken_timestamps"
  assert results["slides"].startswith("frames")
  wide = Limits(max_seconds=10 * day, max_gap_seconds=day)
  assert outcome(tmp_path / "few_frames.mkv", wide) == "frames 4"
  assert outcome(tmp_path / "jump.mkv", Limits(max_seconds=1e12, max_gap_seconds=1e12)) == (
    "too_many_frames"
  )


# ---- a folder of all of it, each file in its child


def test_every_file_of_a_hostile_folder_has_an_outcome(functions, whole, tmp_path, marked):
  folder = os.fsencode(tmp_path) + b"/in"
  os.mkdir(folder)
  data = whole["a.mkv"].read_bytes()
  for name in (b"good.mkv", b"new\nline\xff.mkv"):
    with open(folder + b"/" + name, "wb") as file:
      file.write(data)
  with open(folder + b"/text.mp4", "w") as file:
    file.write("text")
  os.symlink(folder, folder + b"/loop")
  results = {}
  for source in find_sources(os.fsdecode(folder)):
    if isinstance(source, Reject):
      results[source.source] = source.reason
      continue
    try:
      results[source.name] = run_in_child(
        functions.outcome, source, seconds=20, memory_bytes=1 << 30
      )
    except (Refused, ChildFailed) as failed:
      results[source.name] = failed.reason
  assert results == {
    "good.mkv": (100, 100, 64, 48),
    "loop": "symlink",
    "new\\x0aline\\xff.mkv": (100, 100, 64, 48),
    "text.mp4": "not_video",
  }
  assert marked() == [] and sorted(os.listdir(tmp_path)) == ["in"]

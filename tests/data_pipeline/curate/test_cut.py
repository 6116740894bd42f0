import dataclasses
import errno
import json
import os
import re
import resource
import subprocess

import av
import numpy as np
import pytest
from array_record.python import array_record_module
from pictures import shifted, texture

from data_pipeline import records, stored
from data_pipeline.curate import cut, placing, spool_writer
from data_pipeline.curate.child import run_in_child
from data_pipeline.curate.settings import read_settings
from data_pipeline.curate.spool import Work
from data_pipeline.curate.types import Reject, Source, Span
from experiments import curate_default

FPS = 24
SHAPE = (96, 160)


def make_settings(**changes):
  """The experiment's for tests; changes as windows__min_seconds=1.0."""
  config = curate_default.get_config("debug").curate
  config.scores.sharpness.min = 0.5
  config.write.codec = "lossless"
  for name, value in changes.items():
    *sections, last = name.split("__")
    part = config
    for section in sections:
      part = part[section]
    part[last] = value
  return read_settings(config.to_dict())


def shot(seed, count, speed=2.0):
  picture = texture(seed, 160, 600)
  return [shifted(picture, speed * i, 0, SHAPE) for i in range(count)]


def store(path, frames, fps=FPS):
  """An H.264 file of high quality."""
  with av.open(str(path), "w") as container:
    options = {"crf": "4", "g": "30", "preset": "veryfast"}
    stream = container.add_stream("libx264", rate=fps, options=options)
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = "yuv444p"
    stream.thread_count = 1
    for frame in frames:
      image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
      container.mux(stream.encode(image))
    container.mux(stream.encode())
  return str(path)


def source_of(path, **fields):
  name = os.path.basename(path)
  return Source(name=name, path=str(path), stamp=f"{os.path.getsize(path)}", **fields)


def read_records(folder, summary):
  if not summary["file"]:
    return []
  reader = array_record_module.ArrayRecordReader(str(folder / summary["file"]))
  return [stored.deserialize("clip", data) for data in reader.read_all()]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
  """Three shots: 30 frames that move, 20 that stand still, 40 that move."""
  frames = shot(0, 30) + shot(1, 20, speed=0.0) + shot(2, 40, speed=-2.0)
  return store(tmp_path_factory.mktemp("film") / "film.mp4", frames), frames


def test_clips_are_the_frames_of_the_shots_and_the_rest_is_rejected(film, tmp_path):
  path, frames = film
  summary = cut.cut_source(source_of(path), make_settings(), tmp_path)
  assert [(c["start_frame"], c["frames"]) for c in summary["clips"]] == [(0, 28), (52, 38)]
  assert [c["camera"] for c in summary["clips"]] == ["pan left", "pan right"]
  ranges = [(row["start_frame"], row["end_frame"], row["reason"]) for row in summary["rejects"]]
  assert sorted(ranges) == [(28, 32, "trimmed"), (32, 48, "static"), (48, 52, "trimmed")]
  (reject,) = [row for row in summary["rejects"] if row["reason"] == "static"]
  assert reject == dict(
    source="film.mp4", start_frame=32, end_frame=48, reason="static", detail=reject["detail"]
  )
  assert re.match(r"motion \S+ is below 0.002 \(scores.motion.min\)", reject["detail"])
  assert summary["shots"] == 3 and summary["media"]["frames"] == 90
  first, second = read_records(tmp_path, summary)
  for record, clip in ((first, summary["clips"][0]), (second, summary["clips"][1])):
    start, count = record.start_frame, clip["frames"]
    wanted = np.stack(frames[start : start + count]).astype(int)
    assert np.abs(record.video.decode() - wanted).mean() < 3
    assert record.id == clip["id"] == f"film.mp4:{start}-{start + count}"
    assert record.fps == clip["fps"] == FPS and record.source == clip["source"] == "film.mp4"
    assert json.loads(record.scores) == clip["scores"]
    assert clip["bytes"] == record.video.nbytes and len(clip["phash"]) == 5
    assert (clip["width"], clip["height"]) == SHAPE[::-1]
    speed = 2.0 * FPS / np.hypot(*SHAPE)
    assert clip["scores"]["motion"] == pytest.approx(speed, rel=0.1)


def test_the_same_source_leaves_the_same_bytes(film, tmp_path):
  settings, source = make_settings(write__codec="h264"), source_of(film[0])
  made = [cut.cut_source(source, settings, tmp_path / name) for name in "ab"]
  assert made[0] == made[1]
  for name in os.listdir(tmp_path / "a"):
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
  key = made[0]["file"].partition("-")[0]
  assert sorted(os.listdir(tmp_path / "a")) == [made[0]["file"], f"{key}.json"]


def test_what_is_there_is_not_made_again_until_it_is_another(film, tmp_path, monkeypatch):
  settings, source = make_settings(), source_of(film[0])
  made = cut.cut_source(source, settings, tmp_path)
  calls = []
  monkeypatch.setattr(cut, "open_source", lambda source: calls.append(source) or 1 / 0)
  later = make_settings(near__max_distance=1.0, decode__timeout_seconds=5.0)
  assert cut.cut_source(source, settings, tmp_path) == made
  assert cut.cut_source(source, later, tmp_path) == made and not calls
  others = [
    (dataclasses.replace(source, stamp="new"), settings),
    (source, make_settings(windows__min_seconds=1.0)),
  ]
  for other in others:
    with pytest.raises(ZeroDivisionError):
      cut.cut_source(*other, tmp_path)
  os.truncate(tmp_path / made["file"], 100)
  with pytest.raises(ZeroDivisionError):
    cut.cut_source(source, settings, tmp_path)


def test_a_summary_never_meets_the_records_of_another(film, tmp_path, monkeypatch):
  source, work = source_of(film[0]), Work(tmp_path)
  first, other = make_settings(), make_settings(write__max_side=80)
  made = cut.cut_source(source, first, work.spools)
  with monkeypatch.context() as patch:
    keep = spool_writer._keep
    patch.setattr(
      spool_writer, "_keep", lambda part, path: path.suffix == ".json" and 1 / 0 or keep(part, path)
    )
    with pytest.raises(ZeroDivisionError):  # between the records and their summary
      cut.cut_source(source, other, work.spools)
  assert spool_writer.read_summary(source, first, work.spools) == made
  assert [record.video.shape[1] for record in read_records(work.spools, made)] == [SHAPE[0]] * 2
  assert len(list(work.spools.glob("*.array_record"))) == 2
  work.prepare()
  assert [path.name for path in work.spools.glob("*.array_record")] == [made["file"]]
  again = cut.cut_source(source, other, work.spools)
  assert [path.name for path in work.spools.glob("*.array_record")] == [again["file"]]
  cut.cut_source(source, make_settings(windows__min_seconds=9.0), work.spools)
  assert not list(work.spools.glob("*.array_record"))


@pytest.mark.parametrize(
  "reason, start_frame, stands",
  [
    ("timeout", None, False),
    ("crashed", None, False),
    ("unreadable", 50, False),
    ("not_found", None, False),
    ("memory", None, True),
    ("damaged", 50, True),
  ],
)
def test_what_may_have_passed_stands_for_one_run(tmp_path, reason, start_frame, stands):
  settings, source, work = make_settings(), Source(name="a", path="a"), Work(tmp_path)
  spool = spool_writer.Spool(source, settings, work.spools)
  spool.add(make_record(), {})
  spool.reject(Reject("a", start_frame, reason))
  made = spool.finish()
  assert spool_writer.read_summary(source, settings, work.spools) == made
  work.prepare()
  assert spool_writer.read_summary(source, settings, work.spools) == (made if stands else None)
  assert (work.spools / made["file"]).exists() == stands


def _cut_on_a_full_disk(argument):
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
  return cut.cut_source(*argument)


def test_a_full_disk_is_told_as_such_and_leaves_nothing(film, tmp_path):
  argument = source_of(film[0]), make_settings(), tmp_path
  with pytest.raises(OSError, match="File too large") as caught:
    run_in_child(_cut_on_a_full_disk, argument, seconds=60, memory_bytes=2 << 30)
  assert caught.value.errno == errno.EFBIG and not os.listdir(tmp_path)


def make_record():
  fields = dict(id="a", source="a", licence="", split="train", start_frame=0, fps=1.0)
  video = np.zeros((1, 2, 2, 3), np.uint8)
  return records.ClipRecord(**fields, video=video, captions=(), attributes="", truth=b"")


def test_a_source_that_is_given_up_stands_until_its_bounds_change(film, tmp_path):
  settings, source = make_settings(), source_of(film[0])
  killed = spool_writer.Spool(source, settings, tmp_path)
  killed.add(make_record(), {})
  assert len(os.listdir(tmp_path)) == 1
  made = spool_writer.refuse_source(source, settings, tmp_path, "timeout", "after 5 s")
  assert [name[-5:] for name in os.listdir(tmp_path)] == [".json"]
  row = dict(source="film.mp4", start_frame=None, end_frame=None, reason="timeout")
  assert made["rejects"] == [row | dict(detail="after 5 s")] and made["clips"] == []
  assert cut.cut_source(source, settings, tmp_path) == made
  patient = make_settings(decode__timeout_seconds=9999.0)
  assert len(cut.cut_source(source, patient, tmp_path)["clips"]) == 2


def test_a_source_that_cannot_be_opened_or_read_is_one_reject(tmp_path):
  settings = make_settings()
  (tmp_path / "empty.mp4").touch()
  (tmp_path / "text.mp4").write_text("not a video at all, only text\n" * 9)
  for name, reason in (("empty.mp4", "empty"), ("text.mp4", "not_video")):
    summary = cut.cut_source(source_of(tmp_path / name), settings, tmp_path / "spools")
    (row,) = summary["rejects"]
    assert row["reason"] == reason and row["start_frame"] is None and not summary["clips"]
    assert summary["file"] == "" and summary["media"] is None
  gone = Source(name="gone.mp4", path=str(tmp_path / "gone.mp4"))
  assert cut.cut_source(gone, settings, tmp_path / "spools")["rejects"][0]["reason"] == "not_found"


def test_of_a_truncated_file_the_good_part_stays(tmp_path):
  path = tmp_path / "cut.mkv"
  store(path, shot(0, 60))
  data = path.read_bytes()
  path.write_bytes(data[: int(0.7 * len(data))])
  summary = cut.cut_source(source_of(path), make_settings(), tmp_path / "spools")
  (clip,), (row,) = summary["clips"], summary["rejects"]
  assert clip["start_frame"] == 0 and 20 < clip["frames"] < 55
  assert row["start_frame"] == clip["frames"] and row["reason"] in ("truncated", "damaged")


def test_bars_are_cut_off_and_copies_look_alike(tmp_path):
  plain = shot(3, 30)
  barred = [np.pad(frame, ((11, 13), (0, 0), (0, 0))) for frame in plain]
  settings = make_settings()
  made = []
  for name, frames in (("plain.mp4", plain), ("barred.mp4", barred)):
    source = source_of(store(tmp_path / name, frames))
    made.append(cut.cut_source(source, settings, tmp_path / "spools")["clips"][0])
  assert made[1]["bars"] == [11, 0, 13, 0] and made[0]["bars"] == [0, 0, 0, 0]
  assert made[1]["height"] == made[0]["height"] == SHAPE[0]
  assert made[1]["scores"]["letterbox"] == pytest.approx(24 / 120, abs=1e-6)
  pairs = zip(made[0]["phash"], made[1]["phash"], strict=True)
  assert all((int(a, 16) ^ int(b, 16)).bit_count() <= 4 for a, b in pairs)
  kept = make_settings(scores__letterbox__crop=False)
  source = source_of(str(tmp_path / "barred.mp4"))
  assert cut.cut_source(source, kept, tmp_path / "kept")["clips"][0]["height"] == 120


@pytest.mark.parametrize(
  "frame, picture, share",
  [
    ((320, 180), (102, 180), 0.68125),  # 9:16 in 16:9
    ((320, 180), (240, 180), 0.25),  # 4:3 in 16:9
    ((180, 320), (180, 102), 0.68125),  # 16:9 in 9:16
    ((320, 180), (106, 60), 1 - 106 * 60 / (320 * 180)),  # 89 %: a window of a third of each side
  ],
)
def test_a_picture_between_bars_is_kept_however_wide(frame, picture, share, tmp_path, make):
  (width, height), (w, h) = frame, picture
  path = tmp_path / "barred.mkv"
  pad = f"pad={width}:{height}:{(width - w) // 2}:{(height - h) // 2}"
  moving = f"mandelbrot=s={w}x{h}:rate=24:start_scale=2"
  make.ffmpeg("-f", "lavfi", "-i", moving, "-vf", pad, "-t", 1, "-c:v", "ffv1", path)
  summary = cut.cut_source(source_of(path), make_settings(), tmp_path / "spools")
  (clip,) = summary["clips"]
  assert not summary["rejects"] and (clip["width"], clip["height"]) == picture
  assert clip["frames"] == 24 and clip["scores"]["letterbox"] == pytest.approx(share, abs=1e-5)
  (record,) = read_records(tmp_path / "spools", summary)
  left = (width - w) // 2, (height - h) // 2
  wanted = make.reference(path, width, height)[:, left[1] : left[1] + h, left[0] : left[0] + w]
  shown = np.stack(list(record.video.frames()))
  assert np.abs(shown.astype(int) - wanted).mean() < 1.5


@pytest.mark.parametrize("speed", [0.1, 3.0])
def test_bars_do_not_change_how_much_a_picture_moves(speed, tmp_path):
  picture = texture(3, 200, 800)
  plain = [shifted(picture, speed * t, 0, (60, 106)) for t in range(24)]
  barred = [np.pad(frame, ((60, 60), (107, 107), (0, 0))) for frame in plain]
  found = []
  for name, frames in (("plain.mkv", plain), ("barred.mkv", barred)):
    source = source_of(store(tmp_path / name, frames))
    (clip,) = cut.cut_source(source, make_settings(), tmp_path / "spools")["clips"]
    found.append((clip["scores"]["motion"], clip["scores"]["pan_x"], clip["camera"]))
  assert found[1][:2] == pytest.approx(found[0][:2], rel=0.15) and found[1][2] == found[0][2]
  assert found[0][0] == pytest.approx(speed * 24 / np.hypot(60, 106), rel=0.15)


def test_a_logo_on_black_and_a_picture_that_is_too_small_are_told_apart(tmp_path):
  frames = [np.pad(frame[:40, :60], ((70, 70), (130, 130), (0, 0))) for frame in shot(3, 24)]
  source = source_of(store(tmp_path / "small.mp4", frames))  # 60x40 of 320x180: 95.8 % are bars

  def refused(folder, **changes):
    (row,) = cut.cut_source(source, make_settings(**changes), tmp_path / folder)["rejects"]
    return row["reason"], row["detail"]

  logo = "letterboxed", "letterbox 0.9583 is above 0.95 (scores.letterbox.max)"
  assert refused("default") == logo
  either = dict(scores__letterbox__max=None, scores__brightness__measure=False)
  reason, detail = refused("small", scores__letterbox__min_side=41, **either)
  assert reason == "small_picture" and detail == (
    "60x40 of 320x180 pixels are picture, a side is below 41 (scores.letterbox.min_side)"
  )
  kept = make_settings(scores__letterbox__min_side=40, **either)
  (clip,) = cut.cut_source(source, kept, tmp_path / "kept")["clips"]
  assert (clip["width"], clip["height"]) == (60, 40)
  still = dict(scores__motion__measure=False, scores__sharpness__measure=False)
  apart = dict(scores__letterbox__min_side=41, scores__letterbox__crop=False)
  whole = make_settings(**apart, **still, **either)
  (clip,) = cut.cut_source(source, whole, tmp_path / "whole")["clips"]  # nothing is cut off
  assert (clip["width"], clip["height"]) == (320, 180)


def test_clips_are_reduced_when_asked_and_images_are_clips_of_one_frame(tmp_path):
  from PIL import Image

  path = tmp_path / "photo.png"
  Image.fromarray(texture(4, 90, 301)).save(path)
  source = source_of(path, captions=("A photo.",), licence="CC0-1.0")
  summary = cut.cut_source(source, make_settings(write__max_side=100), tmp_path / "spools")
  (record,) = read_records(tmp_path / "spools", summary)
  assert record.video.shape == (1, 30, 100, 3)
  assert record.captions == ("A photo.",) and record.licence == "CC0-1.0"
  assert "motion" not in summary["clips"][0]["scores"] and summary["clips"][0]["camera"] == ""


def test_both_sides_of_a_change_of_size_are_clips(tmp_path):
  """Two programmes in one stream, then one frame of a third: nothing is squeezed or lost."""
  sides = [shot(0, 30), [frame[:, :120] for frame in shot(1, 31)], [shot(2, 1)[0][:64, :64]]]
  stream = b""
  for number, frames in enumerate(sides):
    path = tmp_path / f"{number}.h264"
    with av.open(str(path), "w") as container:
      out = container.add_stream("libx264", rate=FPS, options={"crf": "4", "preset": "veryfast"})
      out.height, out.width = frames[0].shape[:2]
      out.pix_fmt, out.thread_count = "yuv444p", 1
      for frame in frames:
        image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        container.mux(out.encode(image))
      container.mux(out.encode())
    stream += path.read_bytes()
  (tmp_path / "all.h264").write_bytes(stream)
  source = source_of(tmp_path / "all.h264", captions=("Whole.",))
  summary = cut.cut_source(source, make_settings(), tmp_path / "spools")
  clips = [(c["start_frame"], c["frames"], c["width"], c["height"]) for c in summary["clips"]]
  assert clips == [(0, 30, 160, 96), (30, 31, 120, 96)]
  assert summary["media"]["sizes"] == [[0, 160, 96], [30, 120, 96], [61, 64, 64]]
  (row,) = summary["rejects"]
  assert (row["reason"], row["start_frame"], row["end_frame"]) == ("too_short", 61, 62)
  assert [c["captions"] for c in summary["clips"]] == [0, 0] and summary["shots"] == 3
  for record, frames in zip(read_records(tmp_path / "spools", summary), sides, strict=False):
    assert np.abs(record.video.decode() - np.stack(frames).astype(int)).mean() < 3


def test_what_has_no_place_among_the_frames_is_told(tmp_path):
  import imageio_ffmpeg
  from PIL import Image

  pages = [Image.fromarray(texture(number, 90, 120)) for number in range(3)]
  pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
  summary = cut.cut_source(source_of(tmp_path / "pages.tif"), make_settings(), tmp_path / "spools")
  (clip,), (row,) = summary["clips"], summary["rejects"]
  assert clip["frames"] == 1 and summary["media"]["pictures"] == 3
  assert (row["reason"], row["start_frame"], row["end_frame"]) == ("more_pictures", 1, None)

  command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i"]
  source = "testsrc2=s=160x96:r=50:d=3,setpts='(N+0.4*mod(N,2))/50/TB'"  # 28 and 12 ms in turn
  options = ["-c:v", "ffv1", "-fps_mode", "passthrough", "-enc_time_base", "1/1000"]
  subprocess.run([*command, source, *options, tmp_path / "a.mkv"], check=True)
  settings = make_settings(decode__max_fps=25.0)
  summary = cut.cut_source(source_of(tmp_path / "a.mkv"), settings, tmp_path / "spools")
  rows = [row for row in summary["rejects"] if row["reason"] == "dropped_frames"]
  (row,) = rows
  assert summary["media"]["dropped"] == 75
  assert (row["start_frame"], row["end_frame"]) == (0, summary["media"]["frames"])
  assert row["detail"] == "75 of 150 frames have no place of their own at 25 fps"


def test_captions_follow_their_time_and_the_whole_source_only_when_it_is_true():
  spans = (Span(0.0, 2.0, ("first", "both")), Span(2.0, 9.0, ("second", "both")))
  source = Source(name="a", path="a", captions=("whole",), spans=spans)

  def choose(start, stop, is_whole=False):
    return placing.choose_captions(source, start / 10, stop / 10, is_whole=is_whole)

  assert choose(0, 20) == ("first", "both")
  assert choose(15, 25) == ("first", "both", "second")
  assert choose(16, 36) == ("second", "both")
  assert choose(30, 50, is_whole=True) == ("second", "both", "whole")
  assert choose(200, 220) == ()


@pytest.mark.parametrize("inherit, wanted", [("one_shot", 0), ("all", 2), ("none", 0)])
def test_captions_of_a_source_of_several_shots_are_not_all_its_clips(
  film, tmp_path, inherit, wanted
):
  source = source_of(film[0], captions=("A film.",))
  summary = cut.cut_source(source, make_settings(write__inherit_captions=inherit), tmp_path)
  assert sum(clip["captions"] for clip in summary["clips"]) == wanted


def test_the_split_is_the_sources_own_or_drawn_by_its_name():
  names = [f"video {i}" for i in range(4000)]
  drawn = [spool_writer.choose_split(Source(name=n, path="x"), 0.1) for n in names]
  held_out = drawn.count("held_out")
  assert 320 < held_out < 480 and drawn.count("train") == 4000 - held_out
  assert drawn == [spool_writer.choose_split(Source(name=n, path="y"), 0.1) for n in names]
  own = Source(name="video 0", path="x", split="held_out_combination")
  assert spool_writer.choose_split(own, 0.1) == "held_out_combination"
  assert spool_writer.choose_split(Source(name="a", path="a"), 0.0) == "train"
  assert spool_writer.choose_split(Source(name="a", path="a"), 1.0) == "held_out"


def _call(argument):
  source, settings, folder = argument
  summary = cut.cut_source(source, settings, folder)
  return summary, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_memory_does_not_grow_with_the_length(tmp_path):
  settings = make_settings(windows__max_seconds=60.0, write__codec="h264", scores__frames=2)
  picture, (height, width) = texture(0, 400, 700), (270, 480)
  peaks = []
  for count in (80, 240):  # the encoder holds about 60 frames at a time
    places = [abs(i % 200 - 100) for i in range(count)]
    path = store(tmp_path / f"{count}.mkv", [picture[i : i + height, :width] for i in places])
    argument = source_of(path), settings, tmp_path / "spools"
    summary, peak = run_in_child(_call, argument, seconds=120, memory_bytes=4 << 30)
    assert [clip["frames"] for clip in summary["clips"]] == [count], summary["rejects"]
    peaks.append(peak)
  assert peaks[1] - peaks[0] < 0.2 * 160 * height * width * 3

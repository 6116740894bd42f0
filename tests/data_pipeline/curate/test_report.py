"""Reports count every clip once, in bounded memory, and show what cannot harm."""

import json
import re

import numpy as np
import pytest

from data_pipeline.curate import report as report_module
from data_pipeline.curate.report import write_report
from data_pipeline.errors import BadInput
from data_pipeline.records import ClipRecord
from data_pipeline.video import EncodedVideo
from data_pipeline.video_writer import encode_video

FACTS = {"sources": 3, "usage": {"answers": 7, "cost": 0.25}}


def clip(i, **fields):
  base = dict(
    id=f"video/{i}.mp4:0-48",
    source=f"video/{i}.mp4",
    split="train",
    start_frame=0,
    frames=48,
    fps=24.0,
    width=160,
    height=90,
    bytes=1000,
    captions=1,
    scores={"motion": 0.01 * i},
    camera="static",
    phash=[],
  )
  return base | fields


def record(i, frames=9, sides=(16, 24), is_encoded=True, **fields):
  height, width = sides
  video = np.random.default_rng(i).integers(0, 256, (frames, height, width, 3), np.uint8)
  if is_encoded:
    video = encode_video(video, width=width, height=height, fps=24, codec="lossless")
  base = dict(
    id=f"c{i}",
    source="s",
    licence="",
    split="train",
    start_frame=0,
    fps=24.0,
    video=video,
    captions=("a caption",),
    attributes="",
    truth=b"",
    scores='{"motion": 0.125}',
  )
  return ClipRecord(**(base | fields))


def reject(reason, source="bad.mp4"):
  return dict(source=source, start_frame=None, end_frame=None, reason=reason, detail="")


def test_counts_all_of_it(tmp_path):
  clips = [
    clip(1),
    clip(2, frames=96, captions=0, camera="pan left", scores={"motion": 0.5, "nsfw": 0.25}),
    clip(3, split="held_out", fps=48.0, width=320, captions=3, camera="", scores={}),
  ]
  rejects = [reject("static"), reject("not_video"), reject("static")]
  report = write_report(tmp_path, iter(clips), iter(rejects), FACTS, [])
  assert report == json.loads((tmp_path / "report.json").read_text())
  hours = round((2 + 4 + 1) / 3600, 6)
  sums = dict(clips=3, frames=192, hours=hours, bytes=3000, captions=4, rejects=3)
  assert report["totals"] == sums and report["facts"] == FACTS
  assert report["splits"]["held_out"] == dict(clips=1, hours=round(1 / 3600, 6), bytes=1000)
  assert report["splits"]["train"]["clips"] == 2
  assert report["camera"] == {"pan left": 1, "static": 1}
  assert report["captions"] == {"0": 1, "1": 1, "3": 1}
  assert list(report["rejects"].items()) == [("static", 2), ("not_video", 1)]
  assert report["scores"] == {
    "motion": dict(clips=2, min=0.01, max=0.5, mean=0.255),
    "nsfw": dict(clips=1, min=0.25, max=0.25, mean=0.25),
  }
  counted = report["histograms"]
  assert {name: sum(c["counts"]) for name, c in counted.items()} == dict(
    seconds=3, pixels=3, fps=3, motion=2, nsfw=1
  )
  assert counted["seconds"]["edges"][0] == 1 and counted["seconds"]["edges"][-1] == 4
  assert counted["pixels"]["edges"][0] <= 160 * 90 and counted["pixels"]["edges"][-1] > 320 * 90
  html = (tmp_path / "report.html").read_text()
  for text in ("3 clips of 3 sources", "not_video", "held_out", "pan left", "nsfw", "usage cost"):
    assert text in html
  assert "drawn by their ids" not in html
  assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_the_sample_is_bounded_and_needs_no_order(tmp_path, monkeypatch):
  monkeypatch.setattr(report_module, "SAMPLE", 50)
  clips = [clip(i, frames=1 + i) for i in range(400)]
  there, back = tmp_path / "there", tmp_path / "back"
  for folder, order in ((there, clips), (back, clips[::-1])):
    folder.mkdir()
    write_report(folder, iter(order), [], FACTS, [])
  report = json.loads((there / "report.json").read_text())
  assert report["totals"]["clips"] == 400 and report["scores"]["motion"]["clips"] == 400
  assert report["scores"]["motion"]["max"] == pytest.approx(3.99)
  assert report["sampled"] == 50 == sum(report["histograms"]["seconds"]["counts"])
  spread = np.array(report["histograms"]["seconds"]["counts"])
  assert (spread > 0).sum() >= 10 and spread.max() < 15  # all over the clips, not the first ones
  assert "those of 50 clips, drawn by their ids" in (there / "report.html").read_text()
  assert (there / "report.json").read_bytes() == (back / "report.json").read_bytes()


def test_the_same_clips_give_the_same_bytes(tmp_path):
  pages = []
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    write_report(tmp_path / name, map(clip, range(9)), [reject("x")], FACTS, [record(0)])
    pages.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
  assert pages[0] == pages[1]


def test_nothing_at_all(tmp_path):
  report = write_report(tmp_path, [], [], {}, [])
  assert report["totals"]["clips"] == 0 and report["scores"] == {} and report["sampled"] == 0
  assert "0 clips: 0.00 hours" in (tmp_path / "report.html").read_text()


def test_hostile_text_is_text(tmp_path):
  evil = '<script>alert("x")</script>'
  facts = {"sources": 1, evil: evil}
  clips = [clip(1, camera=evil, scores={evil: 1.0})]
  sheet = [record(0, id=evil, captions=(evil,))]
  write_report(tmp_path, clips, [reject(evil)], facts, sheet)
  html = (tmp_path / "report.html").read_text()
  assert "<script" not in html and "&lt;script&gt;" in html
  assert re.findall(r'(?:src|href)="(?!data:image/jpeg)', html) == []


def test_the_sheet_shows_clips_of_every_kind(tmp_path):
  sheet = [
    record(0),
    record(1, is_encoded=False),
    record(2, frames=1, captions=(), scores=""),
    record(3, sides=(4, 1000), frames=4),
    record(4, sides=(300, 2), frames=2, is_encoded=False),
    record(5, sides=(2, 16_000), frames=4, is_encoded=False),
  ]
  write_report(tmp_path, [], [], {}, sheet)
  html = (tmp_path / "report.html").read_text()
  assert html.count("<img") == 6 and html.count("no caption") == 1
  assert "c0, train, 0.38 s, 24x16, motion 0.125" in html


def test_shows_the_middle_frames_of_equal_parts_and_decodes_no_more(monkeypatch):
  decoded = []
  window = EncodedVideo.window
  monkeypatch.setattr(
    EncodedVideo, "window", lambda v, a, b, area: decoded.append((a, b)) or window(v, a, b, area)
  )
  one = record(0, frames=80)
  shown = report_module._pick(one)
  assert decoded == [(10, 11), (30, 31), (50, 51), (70, 71)]
  np.testing.assert_array_equal(shown, window(one.video, 0, 80)[[10, 30, 50, 70]])


def test_a_failure_leaves_the_old_report(tmp_path):
  write_report(tmp_path, [clip(1)], [], FACTS, [])
  before = {path: path.read_bytes() for path in tmp_path.iterdir()}
  broken = record(0)
  broken = ClipRecord(**(vars(broken) | {"video": EncodedVideo(b"x", broken.video.shape)}))
  with pytest.raises(BadInput, match="is not 9 frames of 24x16"):
    write_report(tmp_path, [clip(1), clip(2)], [], FACTS, [broken])
  assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

"""What is made of every clip: sizes, rates, windows; the pixels; who is told of the result."""

import json
import logging
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline import derived
from data_pipeline.errors import BadInput
from data_pipeline.rendering import render
from data_pipeline.renditions import (
  Rule,
  centre_crop,
  choose_frames,
  choose_rate,
  name_rendition,
  plan_renditions,
  read_rules,
  snap_length,
)
from data_pipeline.video_writer import encode_video

SIDE = 16


def columns(*clips):
  """Index columns of clips of (frames, height, width, fps)."""
  table = np.array(clips, np.float64)
  kinds = dict(frames=np.int32, height=np.int32, width=np.int32, fps=np.float32)
  return {name: table[:, i].astype(kind) for i, (name, kind) in enumerate(kinds.items())}


def plan(clips, *rules, **settings):
  named = {str(i): rule for i, rule in enumerate(rules)} if rules else None
  return plan_renditions(columns(*clips), named, **(dict(time_factor=4, side=SIDE) | settings))


CLIP = st.tuples(
  st.integers(1, 200),
  st.integers(SIDE, 700),
  st.integers(SIDE, 700),
  st.sampled_from([8.0, 23.976, 25.0, 30.0, 59.94]),
)
RULE = st.builds(
  Rule,
  pixels=st.sampled_from([0, 64**2, 256**2]),
  fps=st.sampled_from([0.0, 8.0, 12.0, 24.0]),
  max_seconds=st.sampled_from([0.0, 0.01, 1.0, 3.0]),
  min_seconds=st.sampled_from([0.0, 0.5]),
  images=st.sampled_from([0, 0, 3]),
  upsample=st.booleans(),
)


def test_without_rules_a_clip_stays_as_it_is():
  table = plan([(11, 19, 40, 23.976), (1, 16, 16, 8.0)])
  assert table["row"].tolist() == [0, 1] and table["frames"].tolist() == [9, 1]
  assert table["start"].tolist() == [0, 0] and table["step"].tolist() == [1, 1]
  assert table["resized"].tolist() == [[19, 40], [16, 16]]
  assert table["crop"].tolist() == [[1, 4, 2, 4], [0, 0, 0, 0]]
  assert table["fps"].tolist() == [np.float32(23.976), 8.0]


@settings(deadline=None, max_examples=150)
@given(clip=CLIP, rule=RULE)
def test_every_rendition_is_one_the_vae_takes_and_the_clip_has(clip, rule):
  frames, height, width, fps = clip
  try:
    table = plan([clip], rule)
  except BadInput as error:
    assert "no rendition" in str(error) and rule.min_seconds
    return
  for one in table:
    rows = choose_frames(one["first"], one["frames"], one["step"])
    assert one["frames"] % 4 == 1 and 0 <= rows[0] and rows[-1] < frames
    assert one["height"] % SIDE == one["width"] % SIDE == 0
    (h, w), (top, left, bottom, right) = one["resized"].tolist(), one["crop"].tolist()
    assert (h - top - bottom, w - left - right) == (one["height"], one["width"])
    assert 0 <= top + bottom < SIDE and 0 <= left + right < SIDE
    assert min(h, w) * max(height, width) == pytest.approx(
      max(h, w) * min(height, width), abs=max(height, width)
    )  # the aspect ratio, to a pixel
    assert rule.upsample or (h <= height and w <= width)
    assert one["fps"] <= np.float32(fps)
    if one["frames"] > 1:
      seconds = one["frames"] / one["fps"]
      assert not rule.fps or one["fps"] <= 1.011 * rule.fps
      assert not rule.max_seconds or seconds <= rule.max_seconds + 1e-5
      assert seconds >= rule.min_seconds - 1e-5


@settings(deadline=None, max_examples=100)
@given(clip=CLIP, fps=st.sampled_from([0.0, 8.0, 24.0]), seconds=st.sampled_from([0.7, 2.0]))
def test_windows_lose_nothing_but_the_end(clip, fps, seconds):
  """Put together they are the clip at its rate, but for what no latent of four frames takes."""
  table = plan([clip], Rule(fps=fps, max_seconds=seconds))
  step, _, count = choose_rate(clip[0], float(np.float32(clip[3])), fps)
  whole = choose_frames(0, count, step)
  shown = [choose_frames(one["first"], one["frames"], one["step"]) for one in table]
  assert len(whole) - sum(map(len, shown)) <= 4
  if step == round(step):
    np.testing.assert_array_equal(np.concatenate(shown), whole[: sum(map(len, shown))])
  starts = np.cumsum([0, *(len(rows) for rows in shown[:-1])])
  assert [rows[0] for rows in shown] == whole[starts].tolist()


@pytest.mark.parametrize(
  "native, fps, frames, rate, expected",
  [
    (24.0, 12.0, 7, 12.0, [0, 2, 4, 6]),
    (23.976, 12.0, 8, 11.988, [0, 2, 4, 6]),  # a whole multiple to 1 %: no frame is shown too long
    (59.94, 30.0, 5, 29.97, [0, 2, 4]),
    (30.0, 24.0, 11, 24.0, [0, 1, 3, 4, 5, 6, 8, 9, 10]),  # 1.25, 2.5 (later), 3.75, 5 ...
    (25.0, 10.0, 10, 10.0, [0, 3, 5, 8]),
    (8.0, 24.0, 3, 8.0, [0, 1, 2]),  # never more than there are
    (8.0, 0.0, 3, 8.0, [0, 1, 2]),
  ],
)
def test_rates(native, fps, frames, rate, expected):
  step, found, count = choose_rate(frames, native, fps)
  assert found == pytest.approx(rate) and choose_frames(0, count, step).tolist() == expected


@settings(deadline=None)
@given(frames=st.integers(1, 500), native=st.integers(9, 60), fps=st.integers(1, 60))
def test_frames_by_time_are_the_nearest(frames, native, fps):
  """Against exact fractions."""
  step, rate, count = choose_rate(frames, float(native), float(fps))
  if step == round(step):
    return
  rows = choose_frames(0, count, step).tolist()
  times = [Fraction(i, fps) * native for i in range(count + 1)]
  assert rows == [int(time + Fraction(1, 2)) for time in times[:-1]]
  assert int(times[-1] + Fraction(1, 2)) >= frames  # one more would need a frame that is not there


@pytest.mark.parametrize(
  "size, rule, resized, crop",
  [
    ((1080, 1920), Rule(pixels=256 * 256), (192, 341), (0, 2, 0, 3)),
    ((1920, 1080), Rule(pixels=256 * 256), (341, 192), (2, 0, 3, 0)),
    ((100, 100), Rule(pixels=256 * 256), (100, 100), (2, 2, 2, 2)),  # never upsampled
    ((100, 100), Rule(pixels=256 * 256, upsample=True), (256, 256), (0, 0, 0, 0)),
    ((100, 110), Rule(pixels=105 * 104), (96, 106), (0, 5, 0, 5)),  # 104 would be nearer to 112
    ((20, 700), Rule(pixels=64), (16, 560), (0, 0, 0, 0)),  # a patch at least
  ],
)
def test_sizes(size, rule, resized, crop):
  (one,) = plan([(1, *size, 8.0)], rule)
  assert tuple(one["resized"]) == resized and tuple(one["crop"]) == crop


def test_images_are_spread_over_the_clip_and_made_once():
  table = plan([(9, 32, 32, 8.0), (2, 32, 32, 8.0), (1, 32, 32, 8.0)], Rule(images=3), Rule())
  found = [(one["row"], one["start"], one["frames"]) for one in table]
  assert found == [
    *[(0, 1, 1), (0, 4, 1), (0, 7, 1), (0, 0, 9)],
    *[(1, 0, 1), (1, 1, 1)],  # of the two frames; the clip itself gives the first one again
    (2, 0, 1),
  ]
  names = [name_rendition(f"c{one['row']}", one) for one in table]
  assert names[3] == "c0@32x32x9@8+0" and len(set(names)) == len(names)


def test_several_rules_in_order_of_the_clips():
  rules = Rule(pixels=32 * 32), Rule(pixels=64 * 64, fps=4.0), Rule(pixels=64 * 64, fps=4.0)
  table = plan([(9, 64, 64, 8.0), (9, 32, 32, 8.0)], *rules)
  found = table[["row", "frames", "width"]].tolist()
  assert found == [(0, 9, 32), (0, 5, 64), (1, 9, 32), (1, 5, 32)]


def test_short_and_small_clips_can_be_left_out():
  clips = [(9, 32, 32, 8.0), (25, 32, 32, 8.0), (1, 32, 32, 8.0), (25, 16, 16, 8.0)]
  table = plan(clips, Rule(min_seconds=2.0, min_pixels=1000))
  assert table["row"].tolist() == [1, 2]  # an image has no length
  with pytest.raises(BadInput, match="no rendition of the 1 clips is left. Lower min_seconds or"):
    plan(clips[:1], Rule(min_seconds=2.0))


@pytest.mark.parametrize("small", [(9, 15, 40), (9, 40, 15), (0, 16, 16)])
def test_refuses_clips_that_are_too_small(small):
  frames, height, width = small
  text = (
    rf"2 of 5 clips are smaller than one patch \(16x16 pixels; one is {width}x{height}, {frames} "
    r"frames\). Leave them out, or use a smaller patch"
  )
  clips = [(9, 16, 16, 8.0), (*small, 8.0), (1, 40, 40, 8.0), (*small, 8.0), (9, 16, 16, 8.0)]
  with pytest.raises(BadInput, match=text):
    plan(clips)


def test_a_plan_of_many_clips_takes_no_time():
  rng = np.random.default_rng(0)
  n = 200_000
  index = columns(*np.stack([rng.integers(1, 50, n), *[rng.integers(16, 20, n)] * 3], 1).tolist())
  table = plan_renditions(index, {"a": Rule(max_seconds=1.0)}, time_factor=4, side=SIDE)
  assert np.array_equal(np.unique(table["row"]), np.arange(n))


@pytest.mark.parametrize(
  "settings, text",
  [
    ({}, r"names no rendition. Give one, such as"),
    ({"a": {"pixel": 3}}, r"renditions.a.pixel=3 is not a setting. Use pixels, fps"),
    ({"a": {"pixels": 3.5}}, r"renditions.a.pixels=3.5 is not a whole number, 0 or more"),
    ({"a": {"fps": -1.0}}, r"renditions.a.fps=-1.0 is not a number, 0 or more"),
    ({"a": {"fps": float("nan")}}, r"fps=nan is not"),
    ({"a": {"upsample": 1}}, r"upsample=1 is not a True or False"),
  ],
)
def test_refuses_rules(settings, text):
  with pytest.raises(BadInput, match=text):
    read_rules(settings)


def test_reads_rules():
  assert read_rules({"a": dict(fps=8)}) == {"a": Rule(fps=8)}


VIDEO = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
RULES = [Rule(), Rule(fps=7.0, max_seconds=2.0), Rule(pixels=32 * 40), Rule(images=2)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["raw", "encoded"])
def test_pixels_are_those_of_the_frames_named(rule, kind):
  video: Any = VIDEO
  if kind == "encoded":
    video = encode_video(VIDEO, width=64, height=48, fps=Fraction(24), codec="lossless", quality=0)
  for one in plan([(40, 48, 64, 24.0)], rule):
    frames = int(one["frames"])
    rows = choose_frames(one["start"], frames, one["step"])
    (h, w), (top, left, _, _) = one["resized"].tolist(), one["crop"].tolist()
    images = [Image.fromarray(VIDEO[row]) for row in rows]
    resized = [np.asarray(image.resize((w, h), Image.Resampling.BICUBIC)) for image in images]
    expected = np.stack(resized)[:, top : top + one["height"], left : left + one["width"]]
    if (h, w) == (48, 64):
      np.testing.assert_array_equal(expected, VIDEO[rows, top : top + h, left : left + w][:, :48])
    sizes = [1, *[4] * ((frames - 1) // 4), 4]  # and four that are not there
    chunks = list(render(video, one, sizes))
    assert [len(chunk) for chunk in chunks] == sizes
    np.testing.assert_array_equal(np.concatenate(chunks[:-1]), expected)
    np.testing.assert_array_equal(chunks[-1], np.stack([expected[-1]] * 4))


def test_long_videos_are_never_whole_in_memory():
  held = []

  def frames(start, stop):
    for i in range(start, stop):
      held.append(i)
      yield np.full((16, 16, 3), i % 256, np.uint8)

  (one,) = plan([(4001, 16, 16, 24.0)])
  stream = render(SimpleNamespace(frames=frames), one, [1, *[4] * 1000])
  next(stream)
  assert len(held) <= 2
  assert sum(len(chunk) for chunk in stream) == 4000


@given(frames=st.integers(1, 999), factor=st.integers(1, 8))
def test_lengths(frames, factor):
  found = snap_length(frames, factor)
  assert found % factor == 1 % factor and 0 <= frames - found < factor


def test_crops_at_the_centre():
  assert centre_crop(19, 24, 16, 16) == (1, 4, 2, 4)


def test_what_was_made_of_a_dataset_is_found_from_it(tmp_path, monkeypatch):
  clips, latents = tmp_path / "a" / "clips", tmp_path / "b" / "latents"
  clips.mkdir(parents=True)
  assert derived.read_derived(clips) == []
  for path in (latents, tmp_path / "a" / "more", latents):
    derived.register_derived(clips, path)
  assert derived.read_derived(clips) == [latents, tmp_path / "a" / "more"]
  assert json.loads((clips / "derived.json").read_text()) == ["../../b/latents", "../more"]
  (tmp_path / "a").rename(tmp_path / "c")  # one of them moves along
  assert derived.read_derived(tmp_path / "c" / "clips")[1] == tmp_path / "c" / "more"
  assert [path.name for path in (tmp_path / "c" / "clips").iterdir()] == ["derived.json"]


def test_a_folder_that_is_only_read_is_left_alone_with_a_warning(tmp_path, monkeypatch, caplog):
  def refuse(*_):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(derived.os, "replace", refuse)
  with caplog.at_level(logging.WARNING):
    derived.register_derived(tmp_path, tmp_path / "latents")
  assert "derived.json cannot be written (Permission denied): take-downs" in caplog.text
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{", "{}", "[1]"])
def test_a_damaged_list_is_refused(tmp_path, text):
  (tmp_path / "derived.json").write_text(text)
  with pytest.raises(BadInput, match=r"derived.json is damaged \(.*\). Remove it"):
    derived.read_derived(tmp_path)


RATES = (24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 48.0, 50.0, 60.0)


@pytest.mark.parametrize("fps", (5.0, 8.0, 10.0, 12.0, 15.0, 20.0, 24.0, 25.0, 30.0))
def test_windows_at_any_rate_show_frames_that_are_there_and_nearest_in_time(fps):
  rule = Rule(fps=fps, max_seconds=1.0)
  for native in RATES:
    table = plan([(frames, 16, 16, native) for frames in range(1, 120)], rule)
    for one in table:
      rows = choose_frames(one["first"], one["frames"], one["step"])
      assert rows[0] == one["start"] and rows[-1] <= one["row"], one  # of row + 1
      assert np.all(np.diff(rows) >= 1)
      if one["step"] % 1:
        seconds = (one["first"] + np.arange(one["frames"])) / fps
        assert np.all(abs(rows / native - seconds) <= 0.5 / native + 1e-9)


def test_a_picture_that_is_cropped_and_one_that_is_resized_are_two():
  rules = {"cropped": Rule(), "resized": Rule(pixels=96 * 96)}
  index = dict(frames=[1], height=[100], width=[100], fps=[8.0])
  table = plan_renditions({k: np.array(v) for k, v in index.items()}, rules, time_factor=4, side=16)
  assert table["resized"].tolist() == [[100, 100], [96, 96]]
  assert [name_rendition("a", one) for one in table] == ["a@96x96x1@8+0~100x100", "a@96x96x1@8+0"]

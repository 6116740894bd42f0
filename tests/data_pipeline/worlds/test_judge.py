"""The judge on real clips, through compression and blur, and on what is not as the caption says."""

import io

import av
import numpy as np
import pytest
from scipy import ndimage

from data_pipeline.errors import BadInput
from data_pipeline.worlds import palette
from data_pipeline.worlds.agreement import chance, looks_of, uniform_chance
from data_pipeline.worlds.judge import first_direction, judge, nearest_colour, track
from data_pipeline.worlds.physworld import FAMILIES, make_clip

FILM = dict(frames=9, height=32, width=32, fps=8.0, held_out_fraction=0.1)


def compress(video, crf):
  """H.264 with halved chroma and back."""
  file = io.BytesIO()
  with av.open(file, "w", format="mp4") as out:
    stream = out.add_stream("libx264", rate=8, options={"crf": str(crf)})
    stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
    for frame in video:
      out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    out.mux(stream.encode())
  file.seek(0)
  with av.open(file) as back:
    return np.stack([frame.to_ndarray(format="rgb24") for frame in back.decode(video=0)])


def blur(video, sigma):
  soft = ndimage.gaussian_filter(video.astype(np.float32), (0, sigma, sigma, 0))
  return soft.round().astype(np.uint8)


def smear(video):
  """As a VAE does: blurred in place and time, with noise."""
  soft = ndimage.gaussian_filter(video.astype(np.float32), (0.25, 1.0, 1.0, 0))
  noise = np.random.default_rng(0).normal(0, 6, video.shape)
  return np.clip(soft + noise, 0, 255).round().astype(np.uint8)


def pale(video):
  grey = video.mean(-1, keepdims=True)
  return (grey + 0.5 * (video - grey)).round().astype(np.uint8)


def scores(verdicts):
  names = ("colour", "shape", "direction")
  return {k: np.mean([v[k] for v in verdicts if v[k] is not None]) for k in names}


@pytest.mark.parametrize(
  "damage",
  [
    lambda video: compress(video, 18),
    lambda video: compress(blur(video, 0.7), 18),
    lambda video: compress(smear(video), 12),
    lambda video: compress(video, 30),  # which leaves marks where objects were
    lambda video: pale(compress(video, 18)),
  ],
  ids=["crf18", "blur", "smear", "crf30", "pale"],
)
def test_ceiling_on_real_clips(damage, capsys):
  clips = [make_clip(11, i, families=FAMILIES, **FILM) for i in range(64)]
  found = scores([judge(damage(clip.video), clip.attributes).agrees for clip in clips])
  with capsys.disabled():
    print(f"\njudge ceiling {found}")
  assert found["colour"] >= 0.97 and found["shape"] >= 0.93 and found["direction"] >= 0.97


@pytest.mark.parametrize("film", [dict(frames=33), dict(height=96, width=150), dict(frames=1)])
def test_other_lengths_and_sizes(film):
  clips = [make_clip(12, i, families=FAMILIES, **FILM | film) for i in range(24)]
  verdicts = [judge(clip.video, clip.attributes).agrees for clip in clips]
  if film == dict(frames=1):
    assert all(verdict.pop("direction") is None for verdict in verdicts)
  for name in verdicts[0]:
    assert np.mean([verdict[name] for verdict in verdicts]) >= 0.93, name


@pytest.mark.parametrize("film", [dict(frames=5, height=48), dict(frames=4, fps=2.0)])
def test_too_short_a_clip_claims_no_direction(film):
  """In half a second a crossfade looks like motion, in four frames any order does."""
  for family in ("drift", "fall", "collide", "occlude"):
    clip = make_clip(12, 1, families=(family,), **FILM | film)
    assert any(one["direction"] for one in clip.attributes["objects"])
    for video in (clip.video, clip.video[::-1]):
      verdict = judge(video, clip.attributes)
      assert verdict.agrees["direction"] is None and verdict.agrees["colour"] is True
      assert verdict.reasons["direction"] == "too short to tell"
  image = make_clip(12, 1, families=("drift",), **FILM | dict(frames=1))
  assert judge(image.video, image.attributes).reasons == {}


def test_attributes_of_another_clip_agree_by_chance_only():
  clips = [make_clip(13, i, families=("drift", "occlude"), **FILM) for i in range(160)]
  others = clips[1:] + clips[:1]
  found = scores([judge(a.video, b.attributes).agrees for a, b in zip(clips, others, strict=True)])
  expected = uniform_chance(looks_of(clips[0].attributes))
  assert expected == {"colour": 1 / 8, "shape": 1 / 3, "direction": 1 / 4}
  for name, value in found.items():  # four standard errors
    error = (expected[name] * (1 - expected[name]) / len(clips)) ** 0.5
    assert value == pytest.approx(expected[name], abs=4 * error), name


def test_colliding_clips_judged_by_another_caption_stay_below_chance():
  """A model that draws valid clips and ignores captions: it agrees more often than by uniform."""
  clips = [make_clip(13, i, families=("collide",), **FILM) for i in range(240)]
  clips = [clip for clip in clips if all(one["direction"] for one in clip.attributes["objects"])]
  others = clips[1:] + clips[:1]
  found = scores([judge(a.video, b.attributes).agrees for a, b in zip(clips, others, strict=True)])
  chances = chance([clip.attributes for clip in others])
  assert len(clips) > 80 and found["direction"] > 3 / 16  # uniform: 1 / 16
  for name, value in found.items():
    expected = np.mean([one[name] for one in chances])
    assert value <= expected + 3 * (expected * (1 - expected) / len(clips)) ** 0.5, name


def test_time_run_backwards_and_channels_swapped_are_seen():
  for index in range(20):
    clip = make_clip(14, index, families=("drift",), **FILM)
    assert all(judge(clip.video, clip.attributes).agrees.values())
    assert judge(clip.video[::-1], clip.attributes).agrees["direction"] is False
    assert judge(clip.video[:1].repeat(9, 0), clip.attributes).agrees["direction"] is False
    assert judge(clip.video[..., [1, 2, 0]], clip.attributes).agrees["colour"] is False


def test_direction_is_that_of_the_first_leg():
  """An object that bounces comes back further than it went."""
  x = np.concatenate([np.linspace(0.6, 0.8, 4), np.linspace(0.75, 0.2, 9)])
  there_and_back = np.stack([x, np.full(len(x), 0.5)], axis=-1)
  assert first_direction(there_and_back) == "right"
  assert first_direction(there_and_back[3:]) == "left"
  assert first_direction(there_and_back[:, ::-1]) == "down"
  assert first_direction(there_and_back * 0.1) is None


def test_both_objects_must_match():
  both_move = 0
  for index in range(20):
    clip = make_clip(15, index, families=("collide",), **FILM)
    assert judge(clip.video, clip.attributes).agrees["colour"] is True
    lone = np.where((clip.truth["masks"] == 2)[..., None], 128, clip.video).astype(np.uint8)
    assert judge(blur(lone, 0.5), clip.attributes).agrees["colour"] is False
    first, second = clip.attributes["objects"]
    if None in (first["direction"], second["direction"]):
      continue
    both_move += 1
    swapped = [first | {"colour": second["colour"]}, second | {"colour": first["colour"]}]
    verdict = judge(clip.video, clip.attributes | {"objects": swapped})
    assert verdict.agrees["direction"] is False
    assert verdict.reasons["direction"].startswith("shows ")
  assert both_move >= 8


@pytest.mark.parametrize("frames", [1, 9])
@pytest.mark.parametrize("family", ["drift", "collide"])
def test_videos_without_an_object(frames, family):
  attributes = make_clip(0, 0, families=(family,), **FILM).attributes
  nothing = dict(colour=False, shape=False, direction=False)
  rng = np.random.default_rng(0)
  for value in (0, 128, 255):
    assert judge(np.full((frames, 32, 32, 3), value, np.uint8), attributes).agrees == nothing
  speck = np.full((frames, 32, 32, 3), 128, np.uint8)
  speck[:, 3:5, 3:5] = (255, 0, 0)
  assert judge(speck, attributes).agrees == nothing
  noise = rng.integers(0, 256, (frames, 32, 32, 3), dtype=np.uint8)
  assert judge(noise, attributes).agrees == nothing
  flood = np.broadcast_to(np.array([255, 0, 0], np.uint8), (frames, 32, 32, 3))
  assert judge(flood, attributes).agrees == nothing


def test_other_colours_count_as_the_nearest():
  clip = make_clip(16, 0, families=("drift",), **FILM)
  colours = {
    "red": (150, 30, 40),
    "green": (90, 200, 90),
    "blue": (60, 90, 200),
    "yellow": (200, 190, 60),
  }
  for name, rgb in colours.items():
    video = np.where((clip.truth["masks"] == 1)[..., None], rgb, 120).astype(np.uint8)
    (found,) = track(compress(video, 18))
    assert found.colour == name
    assert found.shape == clip.attributes["objects"][0]["shape"]
    assert found.direction == clip.attributes["objects"][0]["direction"]


def test_tracks_follow_the_truth():
  for index in range(10):
    clip = make_clip(17, index, families=("fall", "drift"), **FILM)
    (found,) = track(compress(clip.video, 18))
    np.testing.assert_allclose(found.centroid, clip.truth["positions"][:, 0], atol=0.02)
    one = clip.attributes["objects"][0]
    size = palette.area(one["shape"], palette.SIZES[one["size"]])
    assert found.area.mean() == pytest.approx(size, rel=0.25)


def test_every_palette_colour_is_nearest_to_itself():
  for name, (red, green, blue) in palette.COLOURS.items():
    hue = np.arctan2(3**0.5 / 2 * (green - blue), red - (green + blue) / 2)
    assert nearest_colour(hue) == name


def test_a_video_of_another_type_is_refused():
  attributes = make_clip(0, 0, families=("drift",), **FILM).attributes
  with pytest.raises(BadInput, match=r"float32\[9, 32, 32, 3\] is not uint8"):
    judge(np.zeros((9, 32, 32, 3), np.float32), attributes)

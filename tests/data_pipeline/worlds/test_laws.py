"""Tracks that break one law each, and impossible copies of whole clips."""

import dataclasses
import itertools

import numpy as np
import pytest

from data_pipeline.errors import BadInput
from data_pipeline.worlds import judge as judge_module
from data_pipeline.worlds.agreement import looks_of
from data_pipeline.worlds.impossible import IMPOSSIBLE, clear, reverse, spoil
from data_pipeline.worlds.judge import judge
from data_pipeline.worlds.laws import Track, find_fault, is_too_short
from data_pipeline.worlds.physworld import FAMILIES, describe, make_clip
from sora_jax.generate.media import read_mp4, write_mp4

FILMS = {
  "small": dict(frames=9, height=32, width=32, fps=8.0),
  "large": dict(frames=33, height=64, width=64, fps=16.0),
  "short": dict(frames=7, height=32, width=32, fps=8.0),
  "brief": dict(frames=9, height=32, width=32, fps=12.0),
  "dense": dict(frames=25, height=32, width=48, fps=24.0),
}
CLIPS = {"small": 12, "large": 4, "short": 8, "brief": 8, "dense": 6}  # of each family
SQUARE = (1.0, 1.0)
STEADY = 0.2 + 0.3 * np.linspace(0, 1, 9)  # 0.3 a second
FALLING = 0.2 + 0.5 * np.linspace(0, 1, 9) ** 2


def track(x, y=0.5, **changes):
  x = np.asarray(x, float)
  even = np.ones(len(x))
  place = np.stack([x, even * y], axis=-1)
  one = Track("red", "circle", "right", place, 0.08 * even, even / 6, 0.9 * even, 1.0)
  return dataclasses.replace(one, **changes)


def fault(*tracks, family="drift", seconds=1.0, bounces=0, emerged=1, hidden=1):
  events = dict(bounces=bounces, hidden=hidden, emerged=emerged)
  return find_fault(tracks, family, seconds, SQUARE, events)


def put(values, frames, value):
  values = np.array(values, float)
  values[frames] = value
  return values


def gone(one, frames):
  area, centroid = put(one.area, frames, 0), put(one.centroid, frames, np.nan)
  return dataclasses.replace(one, area=area, centroid=centroid)


def test_motions_that_can_be_have_no_fault():
  assert fault(track(STEADY)) is None
  for family in ("fall", "ramp"):
    assert fault(track(FALLING), family=family) is None
  since = np.linspace(-0.8, 1.2, 17) % 1.6 - 0.8  # from the nearest top of an elastic fall
  assert fault(track(0.2 + 0.5 * (since / 0.8) ** 2), family="fall", seconds=2.0) is None
  assert fault(track(STEADY), track(STEADY[::-1], y=0.4), family="collide") is None
  assert fault(track(STEADY), track(np.full(9, 0.9)), family="collide") is None  # one rests
  assert fault(gone(track(STEADY * 1.5), [3, 4, 5]), family="occlude") is None
  assert fault(track([0.2, 0.3, 0.4]), seconds=0.25) is None


def test_an_object_out_of_sight_vanishes():
  assert fault(gone(track(STEADY), [4])) == "vanishes"
  assert fault(gone(track(STEADY), [7, 8]), family="fall") == "vanishes"
  assert fault(gone(track(STEADY), slice(4, 9)), family="occlude") == "vanishes"
  assert fault(gone(track(STEADY), slice(1, 6)), family="occlude") == "vanishes"
  pair = track(STEADY), gone(track(STEADY[::-1]), [7, 8])
  assert fault(*pair, family="collide") == "vanishes"


def test_what_came_out_from_behind_a_bar_is_in_sight():
  crossing = track(STEADY * 1.5)
  assert fault(gone(crossing, [8]), family="occlude") == "vanishes"
  sliver = dataclasses.replace(crossing, area=put(crossing.area, [8], 0.02))
  assert fault(sliver, family="occlude") == "vanishes"
  for late in (dict(bounces=1), dict(emerged=0)):  # it went back behind it, or did not come out
    assert fault(gone(crossing, [8]), family="occlude", **late) is None
    assert fault(gone(crossing, slice(3, 9)), family="occlude", **late) == "vanishes"
  unhidden = dict(family="occlude", hidden=0, emerged=0)
  assert fault(gone(crossing, [8]), **unhidden) is None
  assert fault(gone(crossing, [6, 7, 8]), **unhidden) == "vanishes"


def test_what_met_no_wall_does_not_come_back():
  back = track([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.72])
  assert fault(back, family="occlude") == "goes to and fro"
  assert fault(back, family="occlude", bounces=1) is None
  assert fault(track(put(STEADY, [8], 0.44)), family="occlude") is None  # noise of a codec


def test_too_short_is_what_is_brief_or_ends_hidden():
  def short(family, seconds=1.0, **events):
    return is_too_short(dict(family=family, seconds=seconds, events=events))

  assert not short("drift", 0.6) and short("drift", 0.59) and short("fall", 0.5)
  assert short("occlude", hidden=1, emerged=0)
  assert not short("occlude", hidden=1, emerged=1) and not short("occlude", hidden=0, emerged=0)


def test_a_body_that_smears_and_fades_is_not_one():
  for frames, family in (([4, 5], "drift"), ([4, 5], "occlude")):
    spread, solid = put(np.ones(9) / 6, frames, 0.3), put(np.ones(9) * 0.9, frames, 0.6)
    assert fault(track(STEADY, spread=spread, solid=solid), family=family) == "is not one body"
  assert fault(track(STEADY, spread=spread)) is None  # marks of the codec, far from it
  assert fault(track(STEADY, solid=solid)) is None
  assert fault(track(STEADY, spread=spread), family="occlude") is None  # a strip beside a bar
  spread, solid = put(np.ones(9) / 6, [4], 0.3), put(np.ones(9) * 0.9, [4], 0.6)
  for family in ("drift", "occlude"):  # marks in one frame
    assert fault(track(STEADY, spread=spread, solid=solid), family=family) is None


def test_a_step_that_is_too_long_is_a_jump():
  assert fault(track(STEADY + put(np.zeros(9), slice(4, 9), 0.2))) == "jumps"
  assert fault(track(put(STEADY, slice(5, 9), 0.9)), family="occlude") == "jumps"
  assert fault(track(FALLING + put(np.zeros(9), slice(2, 9), 0.3)), family="fall") == "jumps"


def test_what_stands_in_mid_air_stands_still():
  for family in ("drift", "occlude"):
    assert fault(track(np.minimum(STEADY, STEADY[4])), family=family) == "stands still"
    assert fault(track(np.maximum(STEADY, STEADY[4])), family=family) == "stands still"
  assert fault(track(np.minimum(FALLING, FALLING[4])), family="fall") == "stands still"
  stop = track(np.minimum(STEADY, STEADY[4]))
  assert fault(stop, track(np.full(9, 0.9)), family="collide") == "stands still"
  assert fault(stop, track(np.maximum(STEADY, STEADY[4])), family="collide") is None  # hands it on


def test_speed_is_as_the_family_has_it():
  slower = 0.2 + np.cumsum([0, *[0.07] * 4, *[0.025] * 4])
  assert fault(track(slower)) == "changes speed"
  assert fault(track(slower), track(np.full(9, 0.9)), family="collide") is None
  assert fault(track(0.2 + 0.3 * np.linspace(0, 1, 9) ** 1.6)) == "changes speed"


def test_frames_out_of_order_go_to_and_fro():
  order = [0, 2, 1, 4, 3, 5, 7, 6, 8]
  slow = 0.2 + 0.2 * np.linspace(0, 1, 9)
  assert fault(track(slow[order])) == "goes to and fro"
  pair = track(STEADY[order]), track(STEADY[::-1][order])
  assert fault(*pair, family="collide") == "goes to and fro"


@pytest.fixture(scope="module")
def clips():
  """For each film, clips of all families whose direction can be told; of a family, if any."""
  found = {}
  for name, film in FILMS.items():
    made = {family: [] for family in FAMILIES}
    for family, index in itertools.product(FAMILIES, range(30)):
      asked = film | dict(families=(family,), held_out_fraction=0.1)
      claims = any(one.direction for one in looks_of(describe(31, index, **asked).attributes))
      if claims and len(made[family]) < CLIPS[name]:
        made[family].append(make_clip(31, index, **asked))
    found[name] = [clip for row in itertools.zip_longest(*made.values()) for clip in row if clip]
  return found


@pytest.fixture
def any_shape(monkeypatch):
  """Spares the fit of shapes, which directions do not read."""
  monkeypatch.setattr(judge_module, "classify_shape", lambda *_: "circle")


def through_mp4(video, path):
  write_mp4(path, video, 8.0)
  return np.asarray(read_mp4(path)[0])


def shares_right(videos, clips):
  """Of each family, the share whose direction is right."""
  right = {clip.attributes["family"]: [] for clip in clips}
  for video, clip in zip(videos, clips, strict=True):
    right[clip.attributes["family"]].append(judge(video, clip.attributes).agrees["direction"])
  assert None not in itertools.chain(*right.values())
  return {family: np.mean(some) for family, some in right.items()}


@pytest.mark.parametrize("film", FILMS)
def test_real_clips_move_as_they_should(film, clips, any_shape, tmp_path):
  videos = [through_mp4(clip.video, tmp_path / "a.mp4") for clip in clips[film]]
  shares = shares_right(videos, clips[film])
  assert min(shares.values()) >= 0.98, shares
  assert set(shares) >= set(FAMILIES) - ({"occlude"} if film in ("short", "brief") else set())


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_copies_are_below_chance(name, clips, any_shape, tmp_path):
  """Chance is a quarter and more; displacement alone would give most of them full marks."""
  for film, some in clips.items():
    videos = [spoil(name, clip, seed) for seed, clip in enumerate(some)]
    assert all(v.shape == c.video.shape for v, c in zip(videos, some, strict=True))
    coded = 10 if film in ("small", "large") else 0
    videos[:coded] = [through_mp4(video, tmp_path / "a.mp4") for video in videos[:coded]]
    shares = shares_right(videos, some)
    assert max(shares.values()) <= 0.25, (film, shares)
    assert np.mean(list(shares.values())) <= 0.1, (film, shares)


def test_time_backwards_is_another_direction(clips, any_shape):
  """Unless it bounced: elastic motion that turns is as good in either order."""
  some = [c for c in clips["small"] if not any(c.attributes["events"].values())]
  assert len(some) >= 12
  shares = shares_right([reverse(c, np.random.default_rng(0)) for c in some], some)
  assert not any(shares.values())


def test_the_cleared_scene_has_no_objects(clips):
  for clip in clips["small"][:10]:
    scene = clear(clip).astype(int)
    assert (scene.max(-1) - scene.min(-1)).max() < 40 < np.ptp(clip.video, axis=-1).max()


def test_copies_that_cannot_be_made_are_refused(clips):
  clip = clips["small"][0]
  with pytest.raises(BadInput, match="name='melt' is not one of teleport, dissolve"):
    spoil("melt", clip, 0)
  short = make_clip(
    31, 0, **FILMS["small"] | dict(frames=4), families=("fall",), held_out_fraction=0.1
  )
  with pytest.raises(BadInput, match="frames=4, fewer than 5"):
    spoil("freeze", short, 0)

"""The generated clips: physics, masks, visibility, determinism, splits, speed."""

import json
import time

import numpy as np
import pytest
from scipy import ndimage

from data_pipeline.errors import BadInput
from data_pipeline.worlds import palette, splits
from data_pipeline.worlds.physworld import (
  FAMILIES,
  WORLD_VERSION,
  choose_specs,
  describe,
  make_clip,
  world_clips,
)

FILM = dict(frames=16, height=64, width=64, fps=8.0, held_out_fraction=0.1)
GOLDEN = [
  ("drift", "pink square drifts down, then bounces off the bottom edge", "held_out_combination"),
  ("ramp", "purple circle rolls right down a ramp and bounces back", "held_out_combination"),
  ("ramp", "pink square slides left down a ramp and bounces back", "train"),
  ("collide", "green square moving up hits a resting pink circle", "train"),
  ("fall", "blue triangle falls down and bounces once", "held_out"),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("film", [{}, dict(frames=1), dict(height=40, width=101), dict(height=90)])
def test_shapes_and_types(family, film):
  film = FILM | film
  clip = make_clip(1, 3, families=(family,), **film)
  shape, objects = (film["frames"], film["height"], film["width"]), 2 if family == "collide" else 1
  assert clip.video.dtype == np.uint8 and clip.video.shape == (*shape, 3)
  assert clip.truth["masks"].dtype == np.uint8 and clip.truth["masks"].shape == shape
  assert clip.truth["positions"].shape == clip.truth["velocities"].shape == (shape[0], objects, 2)
  assert clip.truth["visibility"].shape == (shape[0], objects)
  assert clip.fps == 8.0 and clip.source == "physworld/seed1/000003"
  assert json.loads(json.dumps(clip.attributes)) == clip.attributes
  label = describe(1, 3, families=(family,), **film)
  assert (label.captions, label.attributes) == (clip.captions, clip.attributes)
  assert (label.split, label.source) == (clip.split, clip.source)


def test_same_index_same_bytes_in_any_order():
  def digest(index):
    clip = make_clip(7, index, families=FAMILIES, **FILM)
    return clip.video.tobytes(), clip.truth["masks"].tobytes(), clip.captions

  forwards = [digest(i) for i in range(12)]
  assert [digest(i) for i in reversed(range(12))] == forwards[::-1]
  assert len({video for video, _, _ in forwards}) == 12
  other = make_clip(8, 0, families=FAMILIES, **FILM)
  assert other.video.tobytes() != forwards[0][0]


def test_worlds_are_those_of_the_first_release():
  """A golden. Where it changes, raise WORLD_VERSION: clips made before are then not used."""
  assert WORLD_VERSION == 1
  words = []
  for index in range(5):
    label = describe(0, index, families=FAMILIES, **FILM)
    words.append((label.attributes["family"], label.captions[0], label.split))
  assert words == GOLDEN


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_world_at_another_rate_and_size(family):
  for index in range(8):
    coarse = make_clip(2, index, families=(family,), **FILM)
    film = FILM | dict(frames=46, fps=24.0, height=96, width=96)
    fine = make_clip(2, index, families=(family,), **film)
    for name in ("positions", "velocities"):
      np.testing.assert_allclose(fine.truth[name][::3], coarse.truth[name], atol=1e-9)
    np.testing.assert_allclose(fine.truth["visibility"][::3], coarse.truth["visibility"], atol=0.03)
    small = fine.video[::3].reshape(16, 32, 3, 32, 3, 3).mean((2, 4))
    apart = abs(small - coarse.video.reshape(16, 32, 2, 32, 2, 3).mean((2, 4)))
    assert apart.mean() < 3.0


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_lie_where_the_truth_says(family):
  for index in range(10):
    clip = make_clip(3, index, families=(family,), **FILM | dict(height=96, width=128))
    for i, one in enumerate(clip.attributes["objects"]):
      for frame in np.flatnonzero(clip.truth["visibility"][:, i] > 0.999):
        y, x = np.nonzero(clip.truth["masks"][frame] == i + 1)
        place = np.array([x.mean() + 0.5, y.mean() + 0.5]) / 96
        np.testing.assert_allclose(place, clip.truth["positions"][frame, i], atol=0.6 / 96)
        size = palette.area(one["shape"], palette.SIZES[one["size"]])
        assert len(x) / 96**2 == pytest.approx(size, rel=0.06)
        inside = clip.video[frame, int(y.mean()), int(x.mean())]
        np.testing.assert_array_equal(inside, palette.COLOURS[one["colour"]])


def test_everything_but_the_objects_is_grey():
  for index in range(60):
    clip = make_clip(3, index, families=FAMILIES, **FILM)
    near = ndimage.maximum_filter(clip.truth["masks"], (1, 5, 5))  # antialiased edges have colour
    alone = near == 0
    alone &= (clip.truth["visibility"] > 0.999).all(1)[:, None, None]  # no slivers beside a bar
    saturation = np.ptp(clip.video.astype(int), axis=-1)
    assert saturation[alone].max(initial=0) <= 16


def test_fall_conserves_energy():
  for index in range(20):
    clip = make_clip(0, index, families=("fall",), **FILM | dict(frames=200, height=16, width=16))
    assert clip.attributes["events"]["bounces"] > 5
    y, speed = clip.truth["positions"][:, 0, 1], clip.truth["velocities"][:, 0, 1]
    gravity, start = np.polyfit(y, speed**2 / 2, 1)
    np.testing.assert_allclose(speed**2 / 2 - gravity * y, start, atol=1e-9)
    np.testing.assert_allclose(np.diff(speed[:5]) * 8, gravity, atol=1e-9)


def test_ramp_conserves_energy_along_the_incline():
  """Height above the bottom and speed make up for each other, through every bounce."""
  for index in range(20):
    clip = make_clip(0, index, families=("ramp",), **FILM | dict(frames=200, height=16, width=24))
    assert clip.attributes["events"]["bounces"] > 5
    place, velocity = clip.truth["positions"][:, 0], clip.truth["velocities"][:, 0]
    speed = np.hypot(*velocity.T)
    gravity, start = np.polyfit(place[:, 1], speed**2 / 2, 1)
    np.testing.assert_allclose(speed**2 / 2 - gravity * place[:, 1], start, atol=1e-9)
    assert start == pytest.approx(-gravity * place[0, 1]) and speed[0] == 0  # dropped at rest
    slope, level = np.polyfit(*place.T, 1)
    np.testing.assert_allclose(place[:, 1], slope * place[:, 0] + level, atol=1e-9)
    np.testing.assert_allclose(velocity[:, 1], slope * velocity[:, 0], atol=1e-9)
    sine = abs(slope) / np.hypot(1, slope)
    np.testing.assert_allclose(np.diff(speed[:5]) * 8, gravity * sine, atol=1e-9)


@pytest.mark.parametrize("family", ["drift", "occlude"])
def test_speed_is_constant_and_only_walls_turn_it(family):
  for index in range(20):
    clip = make_clip(0, index, families=(family,), **FILM | dict(frames=200, height=16, width=24))
    events, velocity = clip.attributes["events"], clip.truth["velocities"][:, 0]
    np.testing.assert_allclose(abs(velocity), abs(velocity[:1]).repeat(200, 0), atol=1e-12)
    assert np.hypot(*velocity[0]) > 0.2 and events["bounces"] > 5
    turns = (np.diff(np.sign(velocity), axis=0) != 0).sum()
    assert turns == events["bounces"]
    straight = (np.diff(velocity, axis=0) == 0).all(1)
    step = np.diff(clip.truth["positions"][:, 0], axis=0)[straight]
    np.testing.assert_allclose(step * 8, velocity[:-1][straight], atol=1e-9)


def test_collide_conserves_energy_and_momentum():
  for index in range(20):
    clip = make_clip(0, index, families=("collide",), **FILM | dict(frames=200, width=128))
    one = clip.attributes["objects"]
    mass = np.array([palette.area(k["shape"], palette.SIZES[k["size"]]) for k in one])
    speed = clip.truth["velocities"]
    energy = (mass[:, None] * speed**2).sum((1, 2))
    np.testing.assert_allclose(energy, energy[0], rtol=1e-9)
    momentum = (mass[:, None] * speed).sum(1)
    first = int(np.flatnonzero(abs(np.diff(speed, axis=0)).sum((1, 2)))[0])
    short = make_clip(0, index, families=("collide",), **FILM | dict(frames=first + 2, width=128))
    if short.attributes["events"] == {"bounces": 0, "collisions": 1}:
      np.testing.assert_allclose(momentum[first + 1], momentum[0], atol=1e-9)


def test_colliding_bodies_touch_but_do_not_overlap():
  for index in range(12):
    film = FILM | dict(frames=200, fps=200.0, height=64, width=64)
    clip = make_clip(5, index, families=("collide",), **film)
    assert clip.attributes["events"]["collisions"] >= 1
    place = clip.truth["positions"]
    near = int(np.linalg.norm(place[:, 1] - place[:, 0], axis=-1).argmin())
    sizes = [(clip.truth["masks"] == i).sum((1, 2)) for i in (1, 2)]
    for size in sizes:  # nothing is covered by the other, however near
      assert abs(size / size.mean() - 1).max() < 0.12
    first, second = (np.argwhere(clip.truth["masks"][near] == i) for i in (1, 2))
    gap = np.abs(first[:, None] - second[None]).max(-1).min()
    assert gap <= 2


def test_occluder_hides_the_object_and_it_comes_back():
  for index in range(20):
    clip = make_clip(0, index, families=("occlude",), **FILM | dict(frames=40, fps=20.0))
    visible = clip.truth["visibility"][:, 0]
    hidden = visible < 1e-6
    assert visible[0] > 0.9 and hidden.any()
    first = int(hidden.argmax())
    assert visible[first : first + 20].max() > 0.9
    assert not clip.truth["masks"][hidden].any()
    assert np.ptp(clip.video[hidden].astype(int), axis=-1).max() <= 16
    steps = np.diff(clip.truth["positions"][:, 0][: first + 3], axis=0)
    np.testing.assert_allclose(steps, steps[:1].repeat(len(steps), 0), atol=1e-9)


def test_held_out_rule_takes_an_eighth_and_leaves_every_pair():
  grid = [(c, s, d) for c in palette.COLOURS for s in palette.SHAPES for d in palette.DIRECTIONS]
  held = {combination for combination in grid if splits.is_held_out(*combination)}
  assert len(held) == len(grid) // 8
  left = set(grid) - held
  for keep in ((0, 1), (0, 2), (1, 2)):  # each pair is trained on, so each single word too
    assert {tuple(k[i] for i in keep) for k in left} == {tuple(k[i] for i in keep) for k in grid}
  for shape in palette.SHAPES:
    assert all(sum(k[1] == shape and k[2] == d for k in held) == 1 for d in palette.DIRECTIONS)


def test_splits_follow_the_rule_and_the_fraction():
  labels = [describe(0, i, families=FAMILIES, **FILM | dict(frames=1)) for i in range(1000)]
  for label in labels:
    looks = [(o["colour"], o["shape"], o["heading"]) for o in label.attributes["objects"]]
    held = any(splits.is_held_out(*look) for look in looks)
    assert held == (label.split == "held_out_combination")
  counts = {s: sum(x.split == s for x in labels) for s in ("train", "held_out")}
  assert counts["held_out"] / sum(counts.values()) == pytest.approx(0.1, abs=0.035)
  nothing = describe(0, 0, families=FAMILIES, **FILM | dict(held_out_fraction=0.0)).split
  assert nothing != "held_out"


def test_families_follow_their_weights():
  weights = {"drift": 3.0, "ramp": 1.0, "fall": 0.0}
  drawn = [describe(0, i, families=weights, **FILM).attributes["family"] for i in range(1000)]
  assert drawn.count("drift") / 1000 == pytest.approx(0.75, abs=0.05)
  assert set(drawn) == {"drift", "ramp"}


def test_sizes_are_those_asked_for():
  def sizes(family, asked):
    labels = [describe(0, i, families=(family,), sizes=asked, **FILM) for i in range(40)]
    return {one["size"] for label in labels for one in label.attributes["objects"]}

  for family in ("drift", "fall", "ramp"):
    assert sizes(family, ("large",)) == {"large"} and sizes(family, ("small",)) == {"small"}
    assert sizes(family, tuple(palette.SIZES)) == {"small", "large"}
  assert sizes("collide", ("large",)) == {"small"}  # a square frame has no room for large ones
  both = describe(0, 3, families=FAMILIES, sizes=("small", "large"), **FILM)
  assert both == describe(0, 3, families=FAMILIES, **FILM)
  clip = make_clip(0, 3, families=("drift",), sizes=("large",), **FILM)
  seen = (clip.truth["masks"][0] == 1).sum() / 64**2
  shape = clip.attributes["objects"][0]["shape"]
  assert seen == pytest.approx(palette.area(shape, palette.SIZES["large"]), rel=0.06)


def test_world_clips_mix_formats_by_weight():
  specs = [
    dict(frames=1, height=16, width=16, fps=1.0, weight=1.0),
    dict(frames=5, height=16, width=24, fps=8.0, weight=3.0),
  ]
  clips = list(world_clips(3, 200, specs=specs, families=("drift",), held_out_fraction=0.1))
  assert sum(len(clip.video) == 5 for clip in clips) == pytest.approx(150, abs=25)
  spec = {k: v for k, v in specs[len(clips[7].video) == 5].items() if k != "weight"}
  alone = make_clip(3, 7, families=("drift",), held_out_fraction=0.1, **spec)
  np.testing.assert_array_equal(alone.video, clips[7].video)
  few = choose_specs(3, np.array([7, 199]), [1.0, 3.0])
  assert [len(clips[7].video) == 5, len(clips[199].video) == 5] == [bool(k) for k in few]


@pytest.mark.parametrize(
  "wrong, text",
  [
    (dict(families=("drfit",)), r"families=.*drfit.*drift, fall"),
    (dict(families={"drift": 0.0}), "positive weights"),
    (dict(frames=0), "frames=0"),
    (dict(fps=0.0), "fps=0"),
    (dict(height=4), "width x height=64x4"),
    (dict(frames=9.0), r"frames, height, width=\(9.0, 64, 64\) are not all whole numbers"),
    (dict(held_out_fraction=7), "held_out_fraction=7 is no share"),
    (dict(sizes=("large", "huge")), r"sizes=\['large', 'huge'\] must be some of small, large"),
    (dict(styles=()), r"styles=\[\] must be some of solid"),
  ],
)
def test_bad_input(wrong, text):
  settings = FILM | dict(families=FAMILIES) | wrong
  with pytest.raises(BadInput, match=text):
    make_clip(0, 0, **settings)
  with pytest.raises(BadInput, match=text):
    describe(0, 0, **settings)


def test_speed(capsys):
  """The specification asks for 300 clips/s on one core; alone on it, 700 to 1,100 were measured."""
  specs = [dict(frames=16, height=64, width=64, fps=8.0, weight=1.0)]
  rates = []
  for _ in range(6):  # processor time, and the best of six: other programs share the machine
    start = time.process_time()
    list(world_clips(0, 50, specs=specs, families=FAMILIES, held_out_fraction=0.1))
    rates.append(50 / (time.process_time() - start))
  with capsys.disabled():
    print(f"\nphysworld: {max(rates):.0f} clips/s at 16x64x64 on one core")
  assert max(rates) >= 300, rates

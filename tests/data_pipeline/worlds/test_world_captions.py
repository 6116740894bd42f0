"""Captions and attributes say what the truth shows, and no more."""

import re

import numpy as np
import pytest

from data_pipeline.worlds import palette
from data_pipeline.worlds.physworld import FAMILIES, describe, make_clip

FILM = dict(frames=9, height=32, width=32, fps=8.0, held_out_fraction=0.1)
WAYS = {"left": "left", "right": "right", "up": "up(wards)?", "down": "down(wards)?|from above"}
MOTION = r"\b(drift|mov|glid|fall|drop|roll|slid|pass|hit|bounc|approach|toward|collid|disappear)"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frames", [1, 9, 49])
def test_wordings(family, frames):
  for index in range(40):
    label = describe(2, index, **FILM | dict(families=(family,), frames=frames))
    assert len(set(label.captions)) == len(label.captions) >= 4
    for caption in label.captions:
      assert caption == caption.lower() and 2 <= len(caption.split()) <= 20, caption
      assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |none", caption), caption
      for one in label.attributes["objects"]:
        assert f"{one['colour']} {one['shape']}" in caption
        if one["direction"] is not None:
          assert re.search(rf"\b({WAYS[one['direction']]})\b", caption), caption
    lengths = [len(c.split()) for c in label.captions]
    assert min(lengths) <= 12


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("film", [dict(frames=1), dict(frames=3, fps=60.0)])
def test_images_and_moments_claim_no_motion(family, film):
  for index in range(40):
    label = describe(2, index, **FILM | dict(families=(family,)) | film)
    assert all(one["direction"] is None for one in label.attributes["objects"])
    assert not any(re.search(MOTION, caption) for caption in label.captions), label.captions


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(32, 32), (32, 57), (57, 32)])
def test_named_directions_are_the_truth_of_the_first_leg(family, size):
  for index in range(40):
    film = FILM | dict(height=size[0], width=size[1])
    clip = make_clip(4, index, families=(family,), **film)
    moving = 0
    for i, one in enumerate(clip.attributes["objects"]):
      if one["direction"] is None:
        continue
      moving += 1
      velocity = clip.truth["velocities"][:, i]
      axis = np.abs(palette.DIRECTIONS[one["direction"]]).argmax()
      sign = sum(palette.DIRECTIONS[one["direction"]])
      before_turn = np.cumprod(sign * velocity[:, axis] >= 0).astype(bool)
      leg = velocity[before_turn]
      assert abs(leg[:, axis]).sum() > 1.5 * abs(leg[:, 1 - axis]).sum()
      place = clip.truth["positions"][:, i, axis]
      assert (sign * (place - place[0])).max() >= 0.1
    assert moving


def test_drift_crosses_a_quarter_of_the_frame_in_a_second_without_turning():
  for index in range(100):
    clip = make_clip(4, index, families=("drift",), **FILM)
    way = np.array(palette.DIRECTIONS[clip.attributes["objects"][0]["direction"]])
    steps = np.diff(clip.truth["positions"][:, 0], axis=0) @ way
    assert (steps > 0).all() and steps.sum() >= 0.25
    assert clip.attributes["events"]["bounces_ahead"] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_bounces_are_the_turns_of_the_truth(family):
  film = FILM | dict(frames=4001, fps=1000.0)  # four seconds, looked at closely
  for index in range(6):
    clip_film = film | dict(height=8, width=8)
    clip = make_clip(6, index, families=(family,), **clip_film)
    velocity = clip.truth["velocities"]
    turns = (np.diff(np.sign(np.where(abs(velocity) < 1e-6, 0, velocity)), axis=0) != 0).sum((0, 1))
    events = clip.attributes["events"]
    if family in ("drift", "occlude"):
      assert turns.sum() == events["bounces"] > 0
    elif family in ("fall", "ramp"):  # also turns in the air, half of the time
      drops = (np.diff(velocity[:, 0, 1]) < -0.1).sum()
      assert drops == events["bounces"] > 0
    else:
      assert events["collisions"] >= 1
    assert any("bounc" in c for c in clip.captions) or family == "collide"

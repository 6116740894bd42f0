"""Worlds as configs say them: written once, found again, and refused in one line where they err."""

import json

import pytest

from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.worlds import physworld
from data_pipeline.worlds.write import world_records
from sora_jax.commands import data

FAMILIES = dict(drift=1.0, fall=0.0, collide=0.0, occlude=0.0, ramp=0.0)
WORLD = dict(
  name="physworld",
  seed=0,
  clips=6,
  formats=((3, 16, 16, 8.0, 0.5), (1, 24, 16, 8.0, 0.5)),
  held_out_fraction=0.1,
  backgrounds=("solid",),
  sizes=("small", "large"),
  families=FAMILIES,
)


def test_formats_sizes_and_backgrounds_reach_the_clips():
  records = list(world_records(WORLD | dict(clips=40, sizes=("large",))))
  assert {record.video.shape for record in records} == {(3, 16, 16, 3), (1, 16, 24, 3)}
  facts = [json.loads(record.attributes) for record in records]
  assert {one["objects"][0]["size"] for one in facts} == {"large"}
  assert {one["background"]["style"] for one in facts} == {"solid"}


@pytest.mark.parametrize(
  "wrong, text",
  [
    (dict(name="moon"), "data: world.name='moon' is not one of"),
    (dict(formats=((9, 32, 32, 8.0),)), r"has \[9, 32, 32, 8.0\], which is not five numbers. Giv"),
    (dict(formats=(9, 32, 32, 8.0, 1.0)), r"has 9, which is not five numbers. Give each as \(fr"),
    (dict(formats=((9, 32, 32, "8", 1.0),)), "which is not five numbers"),
    (dict(formats=()), r"world.formats=\[\] is no list of formats"),
    (dict(formats="wide"), "world.formats=wide is no list of formats"),
    (dict(formats=((9.0, 32, 32, 8.0, 1.0),)), r"width=\(9.0, 32, 32\) are not all whole numbers"),
    (dict(formats=((9, 32, 32.5, 8.0, 1.0),)), r"\(9, 32.5, 32\) are not all whole numbers"),
    (dict(formats=((9, 32, 32, float("inf"), 1.0),)), "fps=inf must be positive"),
    (dict(formats=((9, 4, 32, 8.0, 1.0),)), "width x height=4x32 is under 8 pixels"),
    (dict(formats=((1, 16, 16, 8.0, -1.0), (9, 16, 16, 8.0, 2.0))), r"weights=\[-1.0, 2.0\] of"),
    (dict(formats=((1, 16, 16, 8.0, 0.0),)), "Give none below 0, and one above"),
    (dict(formats=((1, 16, 16, 8.0, float("nan")),)), "are not shares"),
    (dict(held_out_fraction=7), r"held_out_fraction=7 is no share .* Set it in \[0, 1\]"),
    (dict(held_out_fraction=-0.1), "held_out_fraction=-0.1 is no share"),
    (dict(sizes=("huge",)), r"sizes=\['huge'\] must be some of small, large"),
    (dict(sizes=()), r"sizes=\[\] must be some of small, large"),
    (dict(families=FAMILIES | dict(fall=-1.0)), "must give positive weights"),
  ],
)
def test_what_cannot_be_is_one_line(tmp_path, wrong, text):
  with pytest.raises(BadInput, match=text) as error:
    data.make_world(WORLD | wrong, tmp_path / "clips")
  assert "\n" not in str(error.value)
  assert list(tmp_path.iterdir()) == []


def test_formats_and_share_are_refused_before_a_clip_is_made():
  for wrong in (dict(formats=((9.0, 32, 32, 8.0, 1.0),)), dict(held_out_fraction=7)):
    with pytest.raises(BadInput):
      world_records(WORLD | wrong)


def test_finds_its_clips_again_but_not_those_of_another_world(tmp_path, monkeypatch):
  made = data.make_world(WORLD, tmp_path / "clips")
  assert made.meta["world_version"] == physworld.WORLD_VERSION and len(made) == 6
  monkeypatch.setattr(data, "world_records", None)  # so that nothing is made again
  assert data.make_world(WORLD, tmp_path / "clips").fingerprint == made.fingerprint
  with pytest.raises(BadInput, match="holds a dataset of another config"):
    data.make_world(WORLD | dict(seed=1), tmp_path / "clips")


@pytest.mark.parametrize("older", [None, 0])
def test_does_not_use_clips_of_another_generator(tmp_path, monkeypatch, older):
  monkeypatch.setattr(data, "WORLD_VERSION", older)
  data.make_world(WORLD, tmp_path / "clips")
  monkeypatch.undo()
  with pytest.raises(BadInput, match=f"data: world_version={older} of .*clips is not 1: another"):
    data.make_world(WORLD, tmp_path / "clips")
  assert Dataset.open(tmp_path / "clips", kind="clip").meta["world_version"] == older

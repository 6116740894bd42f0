"""What an answer blind to its caption gets: counted out, and against blind answers of all sorts."""

import itertools
from collections import Counter

import numpy as np
import pytest

from data_pipeline.worlds import palette
from data_pipeline.worlds.agreement import (
  ATTRIBUTES,
  Look,
  chance,
  compare,
  looks_of,
  uniform_chance,
)
from data_pipeline.worlds.physworld import FAMILIES, describe

FILM = dict(frames=9, height=32, width=32, fps=8.0, held_out_fraction=0.1)
PAIR = (Look("red", "circle", "right"), Look("blue", "square", "left"))


def world(families, count, **film):
  film = FILM | film
  return [describe(21, i, families=families, **film).attributes for i in range(count)]


def attributes_of(*looks):
  shown = [look._asdict() for look in looks]
  return {"family": "collide", "objects": shown, "events": {}, "seconds": 1.0}


def mean(chances, name):
  return np.mean([one[name] for one in chances])


def agreement(shown, asked, name):
  """Mean agreement of an answer a caption, over the captions."""
  return np.mean([bool(compare(s, a)[name]) for s, a in zip(shown, asked, strict=True)])


@pytest.mark.parametrize("asked", [PAIR[:1], PAIR])
def test_uniform_chance_is_what_all_answers_count_up_to(asked):
  words = (tuple(palette.COLOURS), palette.SHAPES, tuple(palette.DIRECTIONS))
  for name, options in zip(ATTRIBUTES, words, strict=True):
    answers = list(itertools.product(options, repeat=len(asked)))
    shown = [
      tuple(look._replace(**{name: word}) for look, word in zip(asked, answer, strict=True))
      for answer in answers
    ]
    hits = sum(bool(compare(each, asked)[name]) for each in shown)
    assert uniform_chance(asked)[name] == pytest.approx(hits / len(answers)), name
  assert uniform_chance(PAIR) == {"colour": 2 / 64, "shape": 1 / 9, "direction": 1 / 16}
  assert uniform_chance(PAIR[:1]) == {"colour": 1 / 8, "shape": 1 / 3, "direction": 1 / 4}
  resting = (PAIR[0], PAIR[1]._replace(direction=None))
  assert uniform_chance(resting)["direction"] == 1 / 4


def test_nothing_is_asked_of_an_image():
  (image,) = chance(world(("collide",), 1, frames=1))
  assert image["direction"] is None and image["colour"] > 0


def test_the_best_of_even_looks_is_uniform():
  words = (palette.COLOURS, palette.SHAPES, palette.DIRECTIONS)
  captions = [attributes_of(Look(*look)) for look in itertools.product(*words)]
  assert chance(captions) == [{"colour": 1 / 8, "shape": 1 / 3, "direction": 1 / 4}] * 96


def test_a_model_that_always_draws_down_is_chance():
  """Half of these clips fall; so many hits that a quarter would not explain."""
  captions = world(("fall", "ramp"), 400)
  asked = [looks_of(one) for one in captions]
  down = [(Look("red", "circle", "down"),)] * len(asked)
  always = agreement(down, asked, "direction")
  assert always > 0.4
  assert mean(chance(captions), "direction") == pytest.approx(always)


@pytest.mark.parametrize("families", [("drift",), ("collide",), ("fall", "ramp"), FAMILIES])
def test_no_blind_model_beats_chance(families):
  """Valid clips of the same world in other orders: their mean is below, by more than its error."""
  captions = world(families, 240)
  asked, chances = [looks_of(one) for one in captions], chance(captions)
  rng = np.random.default_rng(0)
  shuffles = [rng.permutation(len(asked)) for _ in range(20)]
  for name in ATTRIBUTES:
    claimed = [one for one in chances if one[name] is not None]
    blind = [agreement([asked[i] for i in order], asked, name) for order in shuffles]
    error = np.std(blind) / len(blind) ** 0.5
    assert np.mean(blind) <= np.mean([one[name] for one in claimed]) + 3 * error, name
  if families == ("collide",):
    moving = [i for i, looks in enumerate(asked) if None not in (k.direction for k in looks)]
    both = [asked[i] for i in moving]
    assert agreement(both[1:] + both[:1], both, "direction") > 0.3  # far above 1/16
    assert mean([chances[i] for i in moving], "direction") == pytest.approx(0.5, abs=0.1)
    assert mean(chances, "colour") > 2 / 64


def test_groups_do_not_share_their_answers():
  lone = [attributes_of(Look("red", "circle", "left"))] * 3
  lone.append(attributes_of(Look("blue", "circle", "left")))
  both = [attributes_of(*PAIR), attributes_of(*PAIR[::-1])]
  found = chance(lone + both)
  assert found[:4] == [{"colour": 0.75, "shape": 1.0, "direction": 1.0}] * 4
  assert found[4:] == [dict.fromkeys(ATTRIBUTES, 1.0)] * 2  # the same two objects


def test_is_never_below_uniform():
  captions = world(("collide",), 60) + world(("drift",), 60)
  for one, found in zip(captions, chance(captions), strict=True):
    for name, least in uniform_chance(looks_of(one)).items():
      assert least is None or least <= found[name] <= 1


def test_pairs_by_colour_before_it_compares():
  swapped = tuple(
    b._replace(colour=a.colour) for a, b in zip(PAIR, PAIR[::-1], strict=True)
  )  # each colour with the other's shape and direction
  assert compare(PAIR[::-1], PAIR) == dict.fromkeys(ATTRIBUTES, True)
  assert compare(swapped, PAIR) == dict(colour=True, shape=False, direction=False)
  assert compare(PAIR[:1], PAIR) == dict.fromkeys(ATTRIBUTES, False)
  assert compare(PAIR, PAIR[:1]) == dict.fromkeys(ATTRIBUTES, True)
  assert Counter(compare((), PAIR[:1]).values()) == {False: 3}


def test_what_is_too_short_to_tell_claims_no_direction():
  long = world(("drift", "collide"), 12)
  brief = [one | {"seconds": 0.5} for one in long]
  assert all(look.direction is None for one in brief for look in looks_of(one))
  assert [one["direction"] for one in chance(brief)] == [None] * 12
  assert chance(long + brief)[:12] == chance(long)

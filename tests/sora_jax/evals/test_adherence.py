"""Scores of verdicts made by hand, and of videos that the generated world drew itself."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from data_pipeline.worlds import palette
from sora_jax.evals.adherence import ATTRIBUTES, merge, score


def caption(*objects):
  shown = [dict(zip(ATTRIBUTES, one, strict=True)) for one in objects]
  return {"family": "collide", "objects": shown, "events": {}, "seconds": 1.0}


ONE, STILL = caption(("red", "circle", "left")), caption(("red", "circle", None))
EVEN = [caption(one) for one in product(palette.COLOURS, palette.SHAPES, palette.DIRECTIONS)]
PAIRS = [
  caption((first, a, way), (second, b, back))
  for first, second in permutations(("red", "yellow", "green", "blue"), 2)
  for a, b in product(palette.SHAPES, repeat=2)
  for way, back in (("right", "left"), ("down", "up"))
]


def verdicts(colour, shape, direction):
  return [
    dict(zip(ATTRIBUTES, verdict, strict=True))
    for verdict in zip(colour, shape, direction, strict=True)
  ]


def test_counts_what_the_captions_claim():
  said = verdicts([True, True, False, True], [False] * 4, [True, None, True, None])
  scores = score(said, [ONE, STILL, ONE, STILL])
  colour, direction = scores["colour"], scores["direction"]
  assert (colour["hits"], colour["samples"], colour["score"]) == (3, 4, 0.75)
  assert (direction["hits"], direction["samples"], direction["score"]) == (2, 2, 1.0)
  assert scores["shape"]["hits"] == 0 and scores["shape"]["p_value"] == 1.0
  low, high = binomtest(3, 4).proportion_ci(method="wilson")
  assert colour["interval"] == pytest.approx([low, high])


def test_chance_of_even_captions_is_uniform():
  hits = [i % 4 == 0 for i in range(len(EVEN))]
  scores = score(verdicts(hits, hits, hits), EVEN)
  expected = {"colour": 1 / 8, "shape": 1 / 3, "direction": 1 / 4}
  for name, chance in expected.items():
    assert scores[name]["chance"] == pytest.approx(chance)
    assert scores[name]["p_value"] == pytest.approx(binom.sf(sum(hits) - 1, len(hits), chance))


def test_one_answer_to_every_caption_is_chance():
  """A model that always draws a red circle moving left, asked for little else."""
  asked = [ONE] * 8 + EVEN[:2]
  hits = [True] * 8 + [one == ONE for one in EVEN[:2]]
  for facts in score(verdicts(hits, hits, hits), asked).values():
    assert facts["p_value"] > 0.3


def test_two_objects_are_harder_by_chance():
  """Of chances that differ, some pairs among lone objects."""
  every = [True] * (len(EVEN) + len(PAIRS))
  scores = score(verdicts(every, every, every), EVEN + PAIRS)
  lone, pairs = (score(verdicts(*[[True] * len(k)] * 3), k) for k in (EVEN, PAIRS))
  assert pairs["colour"]["chance"] == pytest.approx(1 / 6)  # of so many pairs of colours
  assert pairs["shape"]["chance"] == pytest.approx(1 / 9, abs=0.05)
  assert 1 / 4 < pairs["direction"]["chance"] < 1 / 2  # uniform would be 1 / 16
  for name in ATTRIBUTES:
    total = len(EVEN) * lone[name]["chance"] + len(PAIRS) * pairs[name]["chance"]
    assert scores[name]["chance"] == pytest.approx(total / len(every))
  product_of_both = lone["shape"]["p_value"] * pairs["shape"]["p_value"]  # all hit, in either
  assert scores["shape"]["p_value"] / product_of_both == pytest.approx(1)


def test_leaves_out_what_nobody_claims():
  scores = score(verdicts([True], [True], [None]), [STILL])
  assert set(scores) == {"colour", "shape"}


def test_an_undetected_object_is_a_miss():
  said = verdicts([False] * 8, [True] * 8, [False] * 8)
  scores = score(said, [ONE] * 8)
  assert scores["colour"]["score"] == 0.0 and scores["colour"]["p_value"] == 1.0
  assert np.isfinite(scores["colour"]["interval"]).all()


def test_merges_four_groups():
  ours = score(verdicts([True, False], [True, True], [None, None]), [STILL] * 2)
  unseen = score(verdicts([False], [True], [None]), [STILL])
  real = score(verdicts([True], [True], [None]), [STILL])
  colour = merge(ours, unseen, real, unseen)["colour"]
  assert colour["held_out_ceiling"] == 0.0
  assert (colour["score"], colour["held_out"], colour["ceiling"]) == (0.5, 0.0, 1.0)
  assert colour["held_out_samples"] == 1 and colour["held_out_p_value"] == 1.0

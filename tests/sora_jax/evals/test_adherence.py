"""Scores of verdicts made by hand, and of videos that the generated world drew itself."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from data_pipeline.worlds import palette
from sora_jax.evals.adherence import ATTRIBUTES, merge, score

ONE = {"objects": [{"direction": "left"}]}
STILL = {"objects": [{"direction": None}]}
TWO = {"objects": [{"direction": "left"}, {"direction": None}]}


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
  chance = 1 / len(palette.COLOURS)
  assert colour["chance"] == pytest.approx(chance)
  assert colour["p_value"] == pytest.approx(binom.sf(2, 4, chance))
  low, high = binomtest(3, 4).proportion_ci(method="wilson")
  assert colour["interval"] == pytest.approx([low, high])


def test_two_objects_are_harder_by_chance():
  scores = score(verdicts([True, True], [True, True], [True, True]), [ONE, TWO])
  one = 1 / len(palette.SHAPES)
  assert scores["shape"]["chance"] == pytest.approx((one + one**2) / 2)
  assert scores["shape"]["p_value"] == pytest.approx(one**3)  # both right, of unequal chance
  assert scores["direction"]["chance"] == pytest.approx(1 / len(palette.DIRECTIONS))


def test_leaves_out_what_nobody_claims():
  scores = score(verdicts([True], [True], [None]), [STILL])
  assert set(scores) == {"colour", "shape"}


def test_an_undetected_object_is_a_miss():
  said = verdicts([False] * 8, [True] * 8, [False] * 8)
  scores = score(said, [ONE] * 8)
  assert scores["colour"]["score"] == 0.0 and scores["shape"]["p_value"] < 1e-3
  assert np.isfinite(scores["colour"]["interval"]).all()


def test_merges_four_groups():
  ours = score(verdicts([True, False], [True, True], [None, None]), [STILL] * 2)
  unseen = score(verdicts([False], [True], [None]), [STILL])
  real = score(verdicts([True], [True], [None]), [STILL])
  colour = merge(ours, unseen, real, unseen)["colour"]
  assert colour["held_out_ceiling"] == 0.0
  assert (colour["score"], colour["held_out"], colour["ceiling"]) == (0.5, 0.0, 1.0)
  assert colour["held_out_samples"] == 1 and colour["held_out_p_value"] == 1.0

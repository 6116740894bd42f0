"""Does a generated video show what its caption says? Judged on decoded files, against true words.

An attribute (colour, shape, direction) of a sample is right when the judge of the generated world
finds in the video exactly what the caption named, a direction only in a motion that can be. Beside
each score stand its 95 % interval, the chance of the best answer that is blind to its caption
(`worlds.agreement.chance`), the probability of so many hits by such chance, and the judge's score
on real clips, the ceiling.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline.errors import BadInput
from data_pipeline.worlds.agreement import ATTRIBUTES, chance
from data_pipeline.worlds.judge import Verdict, judge
from sora_jax.evals.statistics import poisson_binomial_p_value, wilson_interval


def judge_all(videos: Sequence[np.ndarray], attributes: Sequence[Mapping]) -> list[Verdict]:
  """The verdict on every video."""
  return [judge(video, facts) for video, facts in zip(videos, attributes, strict=True)]


def score(verdicts: Sequence[Mapping], attributes: Sequence[Mapping]) -> dict[str, dict]:
  """Scores verdicts per attribute.

  Args:
    verdicts: of each sample, attribute -> True, False, or None where no claim is made.
    attributes: of each sample, by which it was judged.
  Returns:
    attribute -> `score`, `hits`, `samples`, `interval` (95 %, Wilson), `chance`, `p_value`
    (one-sided, of at least that many hits by chance). An attribute that no sample claims is left
    out. Few samples have a high chance: one answer may suit several of them.
  Raises:
    BadInput: a verdict on an attribute that its caption does not claim.
  """
  scores, chances = {}, chance(attributes)
  for name in ATTRIBUTES:
    claimed = [i for i, verdict in enumerate(verdicts) if verdict[name] is not None]
    if not claimed:
      continue
    hits = sum(bool(verdicts[i][name]) for i in claimed)
    luck = [_claimed_chance(chances[i], name) for i in claimed]
    scores[name] = {
      "score": hits / len(claimed),
      "hits": hits,
      "samples": len(claimed),
      "interval": list(wilson_interval(hits, len(claimed))),
      "chance": float(np.mean(luck)),
      "p_value": poisson_binomial_p_value(hits, luck),
    }
  return scores


def _claimed_chance(chances: Mapping[str, float | None], name: str) -> float:
  probability = chances[name]
  if probability is None:
    raise BadInput(
      f"adherence: a verdict on {name}, of which the caption claims nothing. "
      "Score verdicts with the attributes that they were judged by."
    )
  return probability


def merge(samples: dict, held_out: dict, ceiling: dict, held_out_ceiling: dict) -> dict[str, dict]:
  """Puts the scores of trained and held-out combinations and of their real clips side by side."""
  return {
    name: {
      **facts,
      "ceiling": ceiling[name]["score"],
      "held_out": held_out[name]["score"],
      "held_out_samples": held_out[name]["samples"],
      "held_out_interval": held_out[name]["interval"],
      "held_out_chance": held_out[name]["chance"],
      "held_out_p_value": held_out[name]["p_value"],
      "held_out_ceiling": held_out_ceiling[name]["score"],
    }
    for name, facts in samples.items()
  }

"""What is shown against what was asked, word by word, and how far an answer gets that never asked.

A colour, shape or direction agrees when it does so for all objects asked for. Two objects are first
paired so that the most colours agree; shapes and directions are compared along that pairing.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data_pipeline.worlds import palette
from data_pipeline.worlds.laws import is_too_short

ATTRIBUTES = ("colour", "shape", "direction")


class Look(NamedTuple):
  """Words of `palette` for one object; no direction: at rest, or nothing is claimed."""

  colour: str | None
  shape: str | None
  direction: str | None


Looks = tuple[Look, ...]


def looks_of(attributes: Mapping) -> Looks:
  """The objects of `WorldClip.attributes` or `Description.attributes`.

  They have no direction where clips of such attributes are too short to tell (`laws`).
  """
  looks = tuple(Look(*map(one.get, Look._fields)) for one in attributes["objects"])
  if is_too_short(attributes):
    return tuple(one._replace(direction=None) for one in looks)
  return looks


def _pair_up(shown: Sequence[Look], asked: Sequence[Look]) -> list[tuple[Look, Look]]:
  """Gives each that is asked one that is shown; none if too few are shown."""
  if len(shown) < len(asked):
    return []
  orders = (zip(o, asked, strict=True) for o in itertools.permutations(shown, len(asked)))
  return max(map(list, orders), key=lambda pairs: sum(s.colour == a.colour for s, a in pairs))


def compare(shown: Sequence[Look], asked: Sequence[Look]) -> dict[str, bool | None]:
  """Says which attributes agree.

  Returns:
    colour, shape and direction: True if all objects agree, None if nothing is asked (the direction
    of an image). Where objects are missing, all that is asked is False.
  """
  pairs = _pair_up(shown, asked)
  moving = [(s, a) for s, a in pairs if a.direction is not None]
  return {
    "colour": bool(pairs) and all(s.colour == a.colour for s, a in pairs),
    "shape": bool(pairs) and all(s.shape == a.shape for s, a in pairs),
    "direction": bool(moving) and all(s.direction == a.direction for s, a in moving)
    if _count_moving(asked)
    else None,
  }


def _count_moving(looks: Sequence[Look]) -> int:
  return sum(one.direction is not None for one in looks)


def uniform_chance(asked: Looks) -> dict[str, float | None]:
  """Probability that words drawn uniformly for every object agree; None where nothing is asked."""
  colours = [one.colour for one in asked]
  orders = len(set(itertools.permutations(colours)))  # two colours agree in either order
  moving = _count_moving(asked)
  return {
    "colour": orders / len(palette.COLOURS) ** len(asked),
    "shape": 1 / len(palette.SHAPES) ** len(asked),
    "direction": 1 / len(palette.DIRECTIONS) ** moving if moving else None,
  }


def chance(attributes: Sequence[Mapping]) -> list[dict[str, float | None]]:
  """How often the best answer agrees that is given without knowing which caption is asked.

  Captions are grouped by their number of objects, and of moving ones. The answers tried are the
  group's own looks, because a model may know its world: what falls moves down, what collides comes
  from opposite sides. Every caption of a group has the mean agreement of the answer that suits the
  group best, or of uniform answers where that is more. A model that shows such looks without regard
  to its caption has no higher expected score, be it the same look always or one drawn anew; and its
  hits within a group reach any number beyond the mean by one or more no more often than those of
  independent trials with this probability (Hoeffding 1956, Annals of Mathematical Statistics 27).

  Args:
    attributes: of all samples that are scored together.
  Returns:
    Of each, colour, shape and direction: a probability, or None where nothing is asked.
  """
  asked = [looks_of(one) for one in attributes]
  groups: dict[tuple[int, int], Counter[Looks]] = {}
  for looks in asked:
    groups.setdefault(_kind(looks), Counter())[looks] += 1
  best = {kind: _best_agreement(group) for kind, group in groups.items()}
  return [_at_least(best[_kind(looks)], uniform_chance(looks)) for looks in asked]


def _kind(looks: Looks) -> tuple[int, int]:
  return len(looks), _count_moving(looks)


def _best_agreement(group: Counter[Looks]) -> dict[str, float]:
  """The highest share of a group, by attribute, that one of its looks agrees with."""
  best = dict.fromkeys(ATTRIBUTES, 0)
  for shown in group:
    hits: dict[str, int] = dict.fromkeys(ATTRIBUTES, 0)
    for asked, count in group.items():
      for name, agrees in compare(shown, asked).items():
        hits[name] += count * bool(agrees)
    best = {name: max(best[name], hits[name]) for name in ATTRIBUTES}
  return {name: hits / group.total() for name, hits in best.items()}


def _at_least(
  found: Mapping[str, float], least: Mapping[str, float | None]
) -> dict[str, float | None]:
  return {
    name: None if bound is None else max(found[name], bound) for name, bound in least.items()
  }

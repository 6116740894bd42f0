"""Devices that are not there, as far as the planner looks at them."""

import itertools
from typing import NamedTuple

from sora_jax.plan.pods import Pod


class Tpu(NamedTuple):
  coords: tuple[int, ...]
  slice_index: int


class Gpu(NamedTuple):
  id: int


def tpus(pod: Pod) -> list[Tpu]:
  """Those of a pod, the last axis fastest."""
  sides = (*pod.shape, 1)[:3]
  places = list(itertools.product(*map(range, sides)))
  return [Tpu(place, number) for number in range(pod.slices) for place in places]

"""Every number out of its range is refused by name; those of the experiments are inside."""

import math

import pytest

from data_pipeline.errors import BadInput
from experiments import demo, physworld
from sora_jax.train.ranges import RANGES, check_ranges
from sora_jax.train.resume import flatten


@pytest.mark.parametrize("experiment", [demo, physworld])
def test_the_experiments_are_inside_and_know_every_setting(experiment):
  configs = [experiment.get_config(arg).to_dict() for arg in experiment.CONFIGS]
  for config in configs:
    check_ranges(config)
  assert RANGES.keys() <= set().union(*map(flatten, configs))


def nest(name, value):
  for key in reversed(name.split(".")):
    value = {key: value}
  return value


@pytest.mark.parametrize("name", RANGES)
def test_outside_is_refused(name):
  least, most = RANGES[name]
  for value in (least, *([] if most == math.inf else [most])):
    check_ranges(nest(name, value))
  for value in (least - 1, most * 2 + 1 if most < math.inf else math.nan):
    with pytest.raises(BadInput, match=rf"{name}=.* must be .*{least:g}"):
      check_ranges(nest(name, value))

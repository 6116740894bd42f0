"""Fewer, larger tasks, for Beam's DaskRunner. Imported by `pipeline` alone, when that runs.

Dask runs a transform in as many tasks as its input has, and a group by key in many times more: what
is right for cutting is far too many for names and numbers. Beam has no transform that changes it.
`TRANSLATIONS` is the table by which the DaskRunner knows transforms.
"""

from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.runners.dask.dask_runner import DaskOptions as DaskOptions
from apache_beam.runners.dask.transform_evaluator import TRANSLATIONS, DaskBagOp


class Gather(beam.PTransform):
  """The same elements in at most so many tasks."""

  def __init__(self, tasks: int):
    super().__init__()
    self.tasks = tasks

  def expand(self, input_or_inputs):
    return PCollection.from_(input_or_inputs)


class _Gather(DaskBagOp):
  def apply(self, input_bag: Any, side_inputs=None):
    transform: Any = self.transform
    tasks = min(transform.tasks, input_bag.npartitions)
    return input_bag.repartition(npartitions=tasks)


TRANSLATIONS[Gather] = _Gather

"""The batches that a run is evaluated on."""

from collections.abc import Callable, Sequence
from typing import Any

from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from sora_jax.train.loop import Hook


def check_held_out(config, datasets: Sequence[Dataset]) -> list[Dataset]:
  """The datasets that have clips to evaluate on. Raises BadInput when none has."""
  some = [dataset for dataset in datasets if dataset.splits.get("held_out")]
  if not some:
    paths = ", ".join(str(dataset.path) for dataset in datasets)
    raise BadInput(
      f"config: every.evaluate_steps={config.every.evaluate_steps} needs clips of the split"
      f" held_out, and {paths} has none. Set every.evaluate_steps=0, or make data with some."
    )
  if config.evaluate.batches < 1:
    raise BadInput(
      f"config: evaluate.batches={config.evaluate.batches} is below 1. Raise it, or set"
      " every.evaluate_steps=0."
    )
  return some


def first_batches(loader, count: int, put) -> list:
  """At most `count` batches of a loader's first epoch, on the devices; closes the loader."""
  kept = []
  try:
    while len(kept) < count and loader.cursor["epoch"] == 0:
      kept.append(put(next(loader)))
  finally:
    loader.close()
  return kept


def held_out_hook(config, score: Callable[[Any], dict]) -> Hook:
  """Scores what is sampled and exported, the average of the parameters, as often as is asked."""
  return Hook(
    "held_out", config.every.evaluate_steps, lambda step, state: score(state.averaged)
  )

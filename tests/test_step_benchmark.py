"""The benchmark of the train step: its batches, and what it calls waste."""

import numpy as np
import pytest

from experiments.benchmarks import batches
from experiments.benchmarks.step import BLOCKS, parse, waste

SETTINGS = dict(slots=1024, caption_slots=512, rows=4, patch=(1, 2, 2))
SETTINGS |= dict(patch_width=8, state_width=6, vocabulary=9)


def test_one_video_a_row_fills_it():
  batch = batches.fixed(SETTINGS)
  assert batch["segment"].max() == 1 and np.mean(batch["segment"] > 0) > 0.75
  assert batch["latents"].shape == (4, 1024, 8) and batch["text_states"].shape == (4, 60, 6)


def test_a_mixture_is_packed_as_the_planner_does():
  batch = batches.mixed(SETTINGS, "small_pieces", width=128)
  assert batch["segment"].max(axis=1).min() > 1 and np.mean(batch["segment"] > 0) > 0.9
  assert len(np.unique(batch["draw"].reshape(-1, 2), axis=0)) >= 8


@pytest.mark.parametrize("looking, seen", [pair for pair in BLOCKS.values() if pair[0]])
def test_waste_is_counted_pair_by_pair(looking, seen):
  backend = next(name for name, pair in BLOCKS.items() if pair == (looking, seen))
  segment = np.zeros((2, 3000), np.int32)
  for row, lengths in zip(segment, ([700, 20, 1500], [2999]), strict=True):
    row[: sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
  useful = computed = 0
  for row in segment:
    size = -(-len(row) // max(looking, seen)) * max(looking, seen)
    ids = np.concatenate([row, np.zeros(size - len(row), np.int32)])
    same = (ids[:, None] == ids) & (ids > 0)
    useful += same.sum()
    run = same | np.eye(size, dtype=bool)  # a padding slot sees itself
    blocks = run.reshape(size // looking, looking, size // seen, seen).any(axis=(1, 3))
    computed += blocks.sum() * looking * seen
  found = waste({"segment": segment})
  assert found[backend] == pytest.approx(1 - useful / computed)
  assert found["xla"] == pytest.approx(1 - useful / (2 * 3000**2))
  assert found["padding"] == np.mean(segment == 0)


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
def test_the_twin_needs_torch(monkeypatch):
  monkeypatch.setattr("experiments.benchmarks.step.find_spec", lambda name: None)
  with pytest.raises(Exception, match="--twin needs torch, .* Install sora_jax"):
    parse(["--config=experiments/demo.py:dit", "--twin"])

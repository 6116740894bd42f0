"""Latent datasets in memory, and what the tests of the loader do with their batches."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np

from data_pipeline import loader, packing

SMALL = packing.PackSettings(
  slots=96, caption_slots=24, segments=6, rows=4, patch=(1, 2, 2), caption_dropout=0.3,
  cost=(1.0, 1 / 4608),
)


def make_columns(clips, seed=0, *, sides=(2, 4, 6), frames=(1, 2, 3), captions=3):
  rng = np.random.default_rng(seed)
  counts = rng.integers(0, captions + 1, clips)
  return dict(
    f=rng.choice(frames, clips).astype(np.int32),
    h=rng.choice(sides, clips).astype(np.int32),
    w=rng.choice(sides, clips).astype(np.int32),
    caption_offsets=np.concatenate([[0], np.cumsum(counts)]),
    caption_tokens=rng.integers(0, 9, counts.sum()).astype(np.int32),
  )


PATCH = (1, 2, 2)
SETTINGS = dict(
  split="train",
  seed=3,
  slots=64,
  caption_slots=24,
  segments=5,
  rows=4,
  patch=PATCH,
  caption_dropout=0.3,
  given_first_frame=0.5,
  cost=(1.0, 1 / 4608),
)
CLIPS = 70


class Clips:
  """A latent dataset in memory: the attributes of `Dataset` that the loader uses."""

  def __init__(self, clips=CLIPS, seed=0, *, states=True, time_factor=4):
    rng = np.random.default_rng(seed)
    self.fingerprint = f"clips {clips} {seed}"
    self.meta = {"time_factor": time_factor}
    self.time_factor = time_factor
    self.latent_channels, self.tokenizers = 2, ("words",)
    self.state_widths = {"words": 3 if states else None}
    self.records = [self._record(rng, states) for _ in range(clips)]
    shapes = np.array([record.latent.shape[:3] for record in self.records])
    counts = [[len(ids) for ids in record.text_ids["words"]] for record in self.records]
    self.index = dict(
      zip("fhw", shapes.T, strict=True),
      caption_offsets=np.concatenate([[0], np.cumsum([len(each) for each in counts])]),
    )
    tokens = [one for each in counts for one in each]
    self.index["caption_tokens/words"] = np.array(tokens, np.int32)

  def _record(self, rng, states):
    shape = rng.choice([1, 2, 3]), 2 * rng.integers(1, 4), 2 * rng.integers(1, 4), 2
    lengths = rng.integers(1, 8, rng.integers(0, 3))
    text_states = [rng.standard_normal((m, 3)).astype(ml_dtypes.bfloat16) for m in lengths]
    return SimpleNamespace(
      latent=rng.standard_normal(shape).astype(ml_dtypes.bfloat16),
      frames=1 + self.time_factor * (int(shape[0]) - 1),
      fps=float(rng.choice([8, 24])),
      captions=["a caption"] * len(lengths),
      text_ids={"words": [rng.integers(1, 10**6, m).astype(np.int32) for m in lengths]},
      text_states={"words": text_states} if states and text_states else {},
    )

  def state_width(self, tokenizer):
    return self.state_widths[tokenizer]

  def caption_tokens(self, tokenizer):
    return self.index[f"caption_tokens/{tokenizer}"]

  def __len__(self):
    return len(self.records)

  @property
  def splits(self):
    return {split: len(self.indices(split)) for split in ("train", "held_out")}

  def indices(self, split):
    return np.arange(5, len(self.records)) if split == "train" else np.arange(5)

  def read(self, row):
    return self.records[row]


DATA = Clips()
N = len(DATA.indices("train"))


def open_batches(dataset=DATA, **changed):
  return loader.latent_batches([dataset], **(SETTINGS | changed))


def take(batches, steps):
  try:
    return [(next(batches), batches.cursor) for _ in range(steps)]
  finally:
    batches.close()


def segments_of(batch):
  """Yields (b, i, slots, draw) of every segment present."""
  for b, row in enumerate(batch["segment"]):
    for i in range(row.max()):
      high, low = (int(word) for word in batch["draw"][b, i])
      yield b, i, np.flatnonzero(row == i + 1), high * 2**32 + low


def assert_same(one, other):
  assert one.keys() == other.keys()
  for key in one:
    np.testing.assert_array_equal(one[key], other[key], err_msg=key)

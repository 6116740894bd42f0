"""Packed batches to time a train step on: of one shape, and of a mixture as it is planned."""

import numpy as np

from data_pipeline.packing import Bin, PackSettings, cost_of, plan_window
from data_pipeline.stream import Mixture, Pool
from data_pipeline.tokens import Segment, pack_row, stack_rows
from experiments.benchmarks.mixtures import make_columns

CAPTION = 60  # tokens of a caption in the batch of one shape
PATCH_SIDE = 16  # patches in a row and a column of a frame, at most


def _segment(rng, patches: tuple[int, int, int], caption: int, draw: int, settings) -> Segment:
  """Noise of so many patches (frames, rows, columns); a caption of no token is a dropped one."""
  patch, states = settings["patch"], settings["state_width"]
  count = int(np.prod(patches))
  return Segment(
    patches=rng.normal(size=(count, settings["patch_width"])).astype(np.float32),
    shape=tuple(p * side for p, side in zip(patches, patch, strict=True)),
    patch=patch,
    fps=16.0,
    time_factor=4,
    text_ids=rng.integers(0, settings["vocabulary"], caption),
    text_states=rng.normal(size=(caption, states)).astype(np.float32) if states else None,
    draw=draw,
  )


def _stack(rows: list[list[Segment]], settings) -> dict[str, np.ndarray]:
  sizes = dict(
    slots=settings["slots"],
    caption_slots=max(sum(s.caption_tokens for s in row) for row in rows),
    segments_per_row=max(map(len, rows)),
    patch_width=settings["patch_width"],
    state_width=settings["state_width"] or None,
  )
  return stack_rows([pack_row(row, **sizes) for row in rows])


def fixed(settings: dict, *, seed: int = 0) -> dict[str, np.ndarray]:
  """One video a row, as long as fits: whole frames of patches and a caption.

  Args:
    settings: slots, caption_slots, rows, patch, patch_width (p), state_width (k), vocabulary.
  """
  rng = np.random.default_rng(seed)
  room = settings["slots"] - CAPTION
  side = min(PATCH_SIDE, int(room**0.5))
  shape = (room // side**2, side, side)
  return _stack(
    [[_segment(rng, shape, CAPTION, i, settings)] for i in range(settings["rows"])], settings
  )


def mixed(settings: dict, mixture: str, *, width: int, seed: int = 0) -> dict[str, np.ndarray]:
  """The step of a mixture's plan whose cost is nearest to the mean of all steps.

  Clips that no row holds are left out, which makes another mixture of it in short rows.

  Args:
    mixture: of `MIXTURES`.
    width: of the model, for the costs that the planner evens out.
  """
  columns = make_columns(mixture, 20_000, seed)
  for side, p in zip("fhw", settings["patch"], strict=True):  # whole patches
    columns[side] = np.maximum(1, columns[side] // p) * p
  patches = np.prod([columns[s] // p for s, p in zip("fhw", settings["patch"], strict=True)], 0)
  captions = columns["caption_tokens"]
  fits = (patches + captions <= settings["slots"]) & (captions <= settings["caption_slots"])
  pack = PackSettings(
    slots=settings["slots"],
    caption_slots=settings["caption_slots"],
    segments=256,
    rows=settings["rows"],
    patch=settings["patch"],
    caption_dropout=0.1,
    cost=cost_of(width),
    window_clips=int(fits.sum()),
  )
  pool = Pool(columns=columns, rows=np.flatnonzero(fits))
  plan = plan_window(Mixture([pool], seed=seed), pack, epoch=0, window=0)
  rng = np.random.default_rng(seed)
  costs = plan.costs.sum(axis=1)
  first = int(np.argmin(abs(costs - costs.mean()))) * settings["rows"]
  bins = [plan.bin(first + i) for i in range(settings["rows"])]
  return _stack([_row(rng, one, columns, settings) for one in bins], settings)


def _row(rng, planned: Bin, columns: dict, settings: dict) -> list[Segment]:
  """The segments of a planned row, with noise for what they hold."""
  return [
    _segment(
      rng,
      tuple(int(columns[s][record]) // p for s, p in zip("fhw", settings["patch"], strict=True)),
      int(columns["caption_tokens"][record]) * (caption >= 0),
      int(draw),
      settings,
    )
    for record, caption, draw in zip(planned.record, planned.caption, planned.draw, strict=True)
  ]

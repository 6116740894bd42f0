"""Patches, positions and the layout of segments in a packed row: written once for both halves.

Patchify and unpatchify use array methods only, so they take numpy and jax arrays alike; the layout
of a row is host work and makes numpy arrays. The keys and dtypes of a row are the table "The packed
batch" of docs/architecture.md.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.errors import BadInput

Sides = Sequence[int]  # three integers: frames, rows, columns


def grid(shape: Sequence[int], patch: Sides, where: str = "grid") -> tuple[int, int, int]:
  """Patches along frames, rows and columns of a latent.

  Args:
    shape: latent shape (f, h, w) or (f, h, w, c).
    patch: latents a patch covers, (pt, ph, pw).
    where: function named in the error.
  Raises:
    BadInput: when the patch does not divide a side.
  """
  for name, side, part in zip("fhw", shape, patch, strict=False):
    if part < 1 or side % part:
      raise BadInput(
        f"{where}: {name}={side} is not a multiple of its patch side {part} "
        f"(latent {tuple(shape)}, patch {tuple(patch)}). Crop the clip, or set patch=(1,1,1)."
      )
  f, h, w = (int(side) // int(part) for side, part in zip(shape[:3], patch, strict=True))
  return f, h, w


def token_count(shape: Sequence[int], patch: Sides) -> int:
  """Patches of a latent of shape (f, h, w) or (f, h, w, c). Raises BadInput like `grid`."""
  return math.prod(grid(shape, patch, "token_count"))


def patchify(latent: Any, patch: Sides) -> Any:
  """Cuts a latent [f,h,w,c] into patches [n,p].

  Patches come in row-major (f,h,w) order; inside a patch the order is (c,pt,ph,pw), as a 3D
  convolution's kernel [d,c,pt,ph,pw] reads it.

  Raises:
    BadInput: when the patch does not divide a side.
  """
  f, h, w = grid(latent.shape, patch, "patchify")
  pt, ph, pw = patch
  c = latent.shape[3]
  if isinstance(latent, np.ndarray):
    return _patchify_on_host(latent, (f, h, w), patch)
  parts = latent.reshape(f, pt, h, ph, w, pw, c).transpose(0, 2, 4, 6, 1, 3, 5)
  return parts.reshape(f * h * w, c * pt * ph * pw)


def _patchify_on_host(latent: np.ndarray, sizes: tuple[int, int, int], patch: Sides) -> np.ndarray:
  """The same with a strided copy for every place in a patch: four times as fast in numpy."""
  pt, ph, pw = patch
  c = latent.shape[3]
  patches = np.empty((*sizes, c, pt, ph, pw), latent.dtype)
  for i, j, k in np.ndindex(pt, ph, pw):
    patches[..., i, j, k] = latent[i::pt, j::ph, k::pw]
  return patches.reshape(math.prod(sizes), c * pt * ph * pw)


def unpatchify(patches: Any, shape: Sides, patch: Sides) -> Any:
  """Inverse of `patchify`: patches [n,p] to a latent [f,h,w,c] of shape (f, h, w)."""
  f, h, w = grid(shape, patch, "unpatchify")
  pt, ph, pw = patch
  c = patches.shape[1] // (pt * ph * pw)
  parts = patches.reshape(f, h, w, c, pt, ph, pw).transpose(0, 4, 1, 5, 2, 6, 3)
  return parts.reshape(f * pt, h * ph, w * pw, c)


def latent_seconds(f: int, fps: float, time_factor: int) -> np.ndarray:
  """float64 [f]: seconds, centre of the frames that each latent covers; frame j is at j/fps.

  Latent 0 covers frame 0; with a time factor of k, latent i covers frames k(i-1)+1 .. ki.
  """
  i = np.arange(f)
  return np.where(i == 0, 0.0, time_factor * i - (time_factor - 1) / 2) / fps


def patch_positions(shape: Sides, patch: Sides, fps: float, time_factor: int) -> np.ndarray:
  """float32 [n,4]: seconds, row, column, 0 of every patch of a latent of shape (f, h, w).

  A patch sits at the mean of the latents it covers. Rows and columns count latent cells from the
  centre of the picture, so clips of different resolutions share their middle.
  """
  positions = np.zeros((token_count(shape, patch), 4), np.float32)
  f, h, w = shape[:3]
  seconds = latent_seconds(f, fps, time_factor)
  axes = (seconds, np.arange(h) - (h - 1) / 2, np.arange(w) - (w - 1) / 2)
  sizes = grid(shape, patch, "patch_positions")
  means = [axis.reshape(size, -1).mean(axis=1) for axis, size in zip(axes, sizes, strict=True)]
  cells = positions.reshape(*sizes, 4)
  cells[..., 0] = means[0][:, None, None]
  cells[..., 1] = means[1][:, None]
  cells[..., 2] = means[2]
  return positions


def caption_positions(tokens: int) -> np.ndarray:
  """float32 [tokens,4]: captions have an index axis of their own, 1, 2, 3 ..., else 0."""
  positions = np.zeros((tokens, 4), np.float32)
  positions[:, 3] = np.arange(1, tokens + 1)
  return positions


class Totals(NamedTuple):
  """What a step holds, over the rows of all hosts.

  Attributes:
    patches, captions: tokens of each kind.
    squares: Σ (tokens of a segment)².
    clips: segments.
    slots: of the rows, full or not.
  """

  patches: int
  captions: int
  squares: float
  clips: int
  slots: int


def count_rows(batch: dict[str, np.ndarray]) -> Totals:
  """What packed rows hold, counted slot by slot."""
  rows, slots = batch["segment"].shape
  size = batch["draw"].shape[1] + 1
  flat = batch["segment"] + size * np.arange(rows)[:, None]
  lengths = np.bincount(flat.ravel(), minlength=rows * size).reshape(rows, size)[:, 1:]
  return Totals(
    patches=int(np.sum(batch["token_index"] >= 0)),
    captions=int(np.sum(batch["text_index"] >= 0)),
    squares=float(np.sum(lengths.astype(np.float64) ** 2)),
    clips=int(np.sum(lengths > 0)),
    slots=rows * slots,
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
  """One sample on its way into a row: its caption tokens, then its patches.

  Attributes:
    patches: clean patches [n_i,p]; zeros where everything is to be made.
    shape: latent shape (f, h, w).
    patch: latents a patch covers, (pt, ph, pw).
    fps: frames a second of the clip.
    time_factor: of the VAE, frames that a latent covers.
    text_ids: caption token ids [m_i].
    text_states: caption token states [m_i,k], or None when the text encoder runs in the model.
      A dropped caption keeps its array (even an empty [0,k]), for its width.
    dropped: the caption is dropped: one slot, text id -1. An empty caption says nothing and counts
      as dropped.
    weight: loss weight.
    dataset: number of the dataset in the mixture.
    record: row of its index; -1 for none.
    draw: place in the stage's stream, below 2**64.
    given: bool [n_i], patches that are given clean (level 0); None for none.
  """

  patches: Any
  shape: tuple[int, int, int]
  patch: tuple[int, int, int]
  fps: float
  time_factor: int
  text_ids: Any
  text_states: Any = None
  dropped: bool = False
  weight: float = 1.0
  dataset: int = 0
  record: int = -1
  draw: int = 0
  given: Any = None

  @property
  def is_dropped(self) -> bool:
    return self.dropped or len(self.text_ids) == 0

  @property
  def caption_tokens(self) -> int:
    return 1 if self.is_dropped else len(self.text_ids)

  @property
  def tokens(self) -> int:
    """Slots that the segment takes: caption tokens and patches."""
    return self.caption_tokens + len(self.patches)


def pack_row(
  segments: Sequence[Segment],
  *,
  slots: int,
  caption_slots: int,
  segments_per_row: int,
  patch_width: int | None = None,
  state_width: int | None = None,
) -> dict[str, np.ndarray]:
  """Lays segments side by side in one row: the keys of the packed batch without their `b`.

  Args:
    segments: what goes in, in order; may be empty (a row of padding).
    slots: n.
    caption_slots: m.
    segments_per_row: s.
    patch_width: p; read off the segments when there are any.
    state_width: k; read off the segments when there are any. None: a row without `text_states`.
  Raises:
    BadInput: the segments do not fit in the row.
  """
  if segments:
    patch_width = segments[0].patches.shape[1]
    states = segments[0].text_states
    state_width = None if states is None else states.shape[1]
  if patch_width is None:
    raise ValueError("pack_row: an empty row has no patch width of its own. Pass patch_width.")
  sizes = dict(slots=slots, caption_slots=caption_slots, segments_per_row=segments_per_row)
  batch = empty_rows(1, **sizes, patch_width=patch_width, state_width=state_width)
  row = {key: value[0] for key, value in batch.items()}
  fill_row(row, segments)
  return row


def fill_row(row: dict[str, np.ndarray], segments: Sequence[Segment]) -> None:
  """Lays segments side by side in an empty row, in place.

  Args:
    row: one row of `empty_rows`; `latents` and `text_states` keep their dtype.
    segments: what goes in, in order.
  Raises:
    BadInput: the segments do not fit in the row.
  """
  _check_capacities(segments, len(row["segment"]), len(row["text_ids"]), len(row["draw"]))
  slot = caption = 0
  for i, segment in enumerate(segments):
    _place_caption(row, segment, slot, caption)
    _place_patches(row, segment, i + 1, slot + segment.caption_tokens)
    row["segment"][slot : slot + segment.tokens] = i + 1
    _describe(row, segment, i)
    slot += segment.tokens
    caption += segment.caption_tokens


def stack_rows(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Rows of one shape to a batch: every key gets its axis `b`."""
  return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def unpack_row(values: Any, row: dict[str, np.ndarray], patch: Sides) -> list[Any]:
  """Takes the latents out of a row again: inverse of `pack_row` on the patches.

  Args:
    values: patches in their slots [n,p], numpy or jax; need not be the row's own latents.
    row: the layout, as `pack_row` made it (or one row of a batch).
    patch: as the segments had it.
  Returns:
    A latent [f,h,w,c] for every segment present, in order.
  """
  starts = np.flatnonzero(row["token_index"] == 0)
  shapes = [tuple(int(side) for side in shape) for shape in row["segment_shape"][: len(starts)]]
  return [
    unpatchify(values[start : start + token_count(shape, patch)], shape, patch)
    for start, shape in zip(starts, shapes, strict=True)
  ]


def _check_capacities(segments, slots, caption_slots, segments_per_row) -> None:
  used = {
    "slots": (sum(s.tokens for s in segments), slots),
    "caption_slots": (sum(s.caption_tokens for s in segments), caption_slots),
    "segments": (len(segments), segments_per_row),
  }
  for name, (need, room) in used.items():
    if need > room:
      raise BadInput(
        f"pack_row: {name}={room} is less than the {need} that {len(segments)} segments take. "
        f"Raise {name}, or pack fewer or shorter segments."
      )


def empty_rows(
  rows: int,
  *,
  slots: int,
  caption_slots: int,
  segments_per_row: int,
  patch_width: int,
  state_width: int | None,
  dtype: Any = np.float32,
) -> dict[str, np.ndarray]:
  """A batch of padding, to be filled row by row.

  Args:
    rows, slots, caption_slots, segments_per_row, patch_width, state_width: b, n, m, s, p and k;
      without k there is no `text_states`.
    dtype: of `latents` and `text_states`.
  """
  b, n, m, s = rows, slots, caption_slots, segments_per_row
  batch = {
    "latents": np.zeros((b, n, patch_width), dtype),
    "text_ids": np.zeros((b, m), np.int32),
    "text_index": np.full((b, n), -1, np.int32),
    "position": np.zeros((b, n, 4), np.float32),
    "segment": np.zeros((b, n), np.int32),
    "token_index": np.full((b, n), -1, np.int32),
    "level_index": np.zeros((b, n), np.int32),
    "segment_tokens": np.zeros((b, s), np.int32),
    "segment_fps": np.zeros((b, s), np.float32),
    "segment_weight": np.zeros((b, s), np.float32),
    "segment_dropped": np.zeros((b, s), bool),
    "segment_dataset": np.full((b, s), -1, np.int32),
    "segment_record": np.full((b, s), -1, np.int64),
    "segment_shape": np.zeros((b, s, 3), np.int32),
    "draw": np.zeros((b, s, 2), np.uint32),
  }
  if state_width is not None:
    batch["text_states"] = np.zeros((b, m, state_width), dtype)
  return batch


def _place_caption(row: dict[str, np.ndarray], segment: Segment, slot: int, caption: int) -> None:
  tokens = segment.caption_tokens
  row["text_ids"][caption : caption + tokens] = -1 if segment.is_dropped else segment.text_ids
  row["text_index"][slot : slot + tokens] = np.arange(caption, caption + tokens)
  row["position"][slot : slot + tokens] = caption_positions(tokens)
  if ("text_states" in row) != (segment.text_states is not None):
    raise ValueError("pack_row: some segments of the row have text_states and some have none.")
  if "text_states" in row and not segment.is_dropped:
    row["text_states"][caption : caption + tokens] = segment.text_states


def _place_patches(row: dict[str, np.ndarray], segment: Segment, level: int, slot: int) -> None:
  tokens = token_count(segment.shape, segment.patch)
  if len(segment.patches) != tokens:
    raise ValueError(
      f"pack_row: {len(segment.patches)} patches do not make a latent {segment.shape}, "
      f"which has {tokens}."
    )
  place = slice(slot, slot + tokens)
  row["latents"][place] = segment.patches
  row["position"][place] = patch_positions(
    segment.shape, segment.patch, segment.fps, segment.time_factor
  )
  row["token_index"][place] = np.arange(tokens)
  row["level_index"][place] = level if segment.given is None else np.where(segment.given, 0, level)


def _describe(row: dict[str, np.ndarray], segment: Segment, i: int) -> None:
  given = 0 if segment.given is None else int(np.sum(segment.given))
  row["segment_tokens"][i] = len(segment.patches) - given
  row["segment_fps"][i] = segment.fps
  row["segment_weight"][i] = segment.weight
  row["segment_dropped"][i] = segment.is_dropped
  row["segment_dataset"][i] = segment.dataset
  row["segment_record"][i] = segment.record
  row["segment_shape"][i] = segment.shape
  row["draw"][i] = divmod(int(segment.draw), 2**32)

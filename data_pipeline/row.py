"""Reads the clips of a bin and lays them out in a row of the packed batch."""

import math
from typing import cast

import numpy as np

from data_pipeline import hashing, tokens
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.packing import Bin, PackSettings, Purpose
from data_pipeline.records import LatentRecord


class RowReader:
  """A pure function from a bin to its row, given the dataset.

  Args:
    dataset: an open latent dataset.
    settings: sizes of a row.
    given_first_frame: probability that the first frame of a video is given clean.
    counters: (seed, stage), of the hash that decides so.
  Raises:
    BadInput: no probability; no latent dataset.
  """

  def __init__(
    self,
    dataset: Dataset,
    settings: PackSettings,
    given_first_frame: float,
    counters: tuple[int, int],
  ) -> None:
    if not 0 <= given_first_frame <= 1:
      raise BadInput(
        f"loader: given_first_frame={given_first_frame} is no probability. Set it in [0, 1]."
      )
    if dataset.latent_channels is None:
      raise BadInput(
        f"loader: {dataset.path} holds {dataset.kind} records, not latents. Encode it first."
      )
    self._dataset, self._settings = dataset, settings
    self._given_first_frame, self._counters = given_first_frame, counters
    self._patch_width = dataset.latent_channels * math.prod(settings.patch)
    self._state_width = dataset.text_state_width

  def read(self, place: Bin) -> dict[str, np.ndarray]:
    """The row of a bin: the keys of the packed batch without their `b`.

    Raises:
      BadInput: a record is not what the index says.
    """
    segments = [
      self._segment(int(record), int(caption), int(draw))
      for record, caption, draw in zip(place.record, place.caption, place.draw, strict=True)
    ]
    return tokens.pack_row(
      segments,
      slots=self._settings.slots,
      caption_slots=self._settings.caption_slots,
      segments_per_row=self._settings.segments,
      patch_width=self._patch_width,
      state_width=self._state_width,
    )

  def _segment(self, row: int, caption: int, draw: int) -> tokens.Segment:
    record = cast(LatentRecord, self._dataset.read(row))
    self._check_index(row, caption, record)
    shape, patch = record.latent.shape[:3], self._settings.patch
    text_ids, text_states = self._caption(record, caption)
    return tokens.Segment(
      patches=tokens.patchify(record.latent, patch),
      shape=shape,
      patch=patch,
      fps=float(record.fps),
      text_ids=text_ids,
      text_states=text_states,
      dropped=caption < 0,
      record=row,
      draw=draw,
      given=self._given(tokens.grid(shape, patch), draw),
    )

  def _caption(self, record: LatentRecord, caption: int) -> tuple[np.ndarray, np.ndarray | None]:
    if caption >= 0:
      states = record.text_states
      return record.text_ids[caption], None if states is None else states[caption]
    width = self._state_width
    return np.zeros(0, np.int32), None if width is None else np.zeros((0, width), np.float32)

  def _given(self, sizes: tuple[int, int, int], draw: int) -> np.ndarray | None:
    f, h, w = sizes
    if f == 1 or hashing.uniform(Purpose.GIVEN, *self._counters, draw) >= self._given_first_frame:
      return None
    return np.arange(f * h * w) < h * w

  def _check_index(self, row: int, caption: int, record: LatentRecord) -> None:
    index = self._dataset.index
    said = tuple(int(index[side][row]) for side in "fhw")
    found = tuple(record.latent.shape[:3])
    if caption >= 0 and said == found:
      said = int(index["caption_tokens"][int(index["caption_offsets"][row]) + caption])
      found = len(record.text_ids[caption])
    if said != found:
      raise BadInput(
        f"loader: clip row {row} holds {found} (f, h, w or caption tokens), but its index says "
        f"{said}. Rebuild the index of the dataset."
      )

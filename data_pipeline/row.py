"""Reads the clips of a bin and lays them out in a row of the packed batch."""

from typing import Any

import numpy as np

from data_pipeline import hashing, tokens
from data_pipeline.errors import BadInput
from data_pipeline.packing import Bin, PackSettings, Purpose


class RowReader:
  """A pure function from a bin to its row, given the dataset.

  Args:
    dataset: an open latent dataset.
    records: rows of its index that may be read.
    settings: sizes of a row.
    given_first_frame: probability that the first frame of a video is given clean.
    counters: (seed, stage), of the hash that decides so.
  """

  def __init__(
    self,
    dataset: Any,
    records: np.ndarray,
    settings: PackSettings,
    given_first_frame: float,
    counters: tuple[int, int],
  ) -> None:
    self._dataset, self._settings = dataset, settings
    self._given_first_frame, self._counters = given_first_frame, counters
    offsets = np.asarray(dataset.index["caption_offsets"], np.int64)
    captions = offsets[records + 1] - offsets[records]
    record = dataset.read(int(records[np.argmax(captions)]))  # one with captions, if any has some
    self._patch_width = record.latent.shape[-1] * int(np.prod(settings.patch))
    self._state_width = record.text_states[0].shape[1] if record.text_states else None

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
    record = self._dataset.read(row)
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

  def _caption(self, record: Any, caption: int) -> tuple[np.ndarray, np.ndarray | None]:
    if caption >= 0:
      states = None if self._state_width is None else record.text_states[caption]
      return record.text_ids[caption], states
    width = self._state_width
    return np.zeros(0, np.int32), None if width is None else np.zeros((0, width), np.float32)

  def _given(self, sizes: tuple[int, int, int], draw: int) -> np.ndarray | None:
    f, h, w = sizes
    if f == 1 or hashing.uniform(Purpose.GIVEN, *self._counters, draw) >= self._given_first_frame:
      return None
    return np.arange(f * h * w) < h * w

  def _check_index(self, row: int, caption: int, record: Any) -> None:
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

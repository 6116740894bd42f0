"""Reads the clips of a step's bins and lays them out as a packed batch."""

import math
from collections.abc import Sequence
from typing import Any, cast

import ml_dtypes
import numpy as np

from data_pipeline import hashing, tokens
from data_pipeline.dataset import Dataset, choose_tokenizer
from data_pipeline.errors import BadInput
from data_pipeline.packing import Bin, PackSettings
from data_pipeline.records import LatentRecord
from data_pipeline.stream import Purpose

_DTYPE = ml_dtypes.bfloat16  # of latents and states, as the records store them


class RowReader:
  """A pure function from bins to their rows, given the datasets.

  Args:
    datasets: open latent datasets, numbered as in the mixture; of one VAE and one text encoder.
    tokenizer: whose caption ids and states are read.
    settings: sizes of a row.
    given_first_frame: probability that the first frame of a video is given clean.
    counters: (seed, stage), of the hash that decides so.
  Raises:
    BadInput: no probability; no latent datasets, or some that do not go together.
  """

  def __init__(
    self,
    datasets: Sequence[Dataset],
    tokenizer: str,
    settings: PackSettings,
    given_first_frame: float,
    counters: tuple[int, int],
  ) -> None:
    if not 0 <= given_first_frame <= 1:
      raise BadInput(
        f"loader: given_first_frame={given_first_frame} is no probability. Set it in [0, 1]."
      )
    self._datasets, self._settings = datasets, settings
    self._given_first_frame, self._counters = given_first_frame, counters
    self._tokenizer = tokenizer
    self._state_width = check_alike(datasets, tokenizer)
    self._time_factor = datasets[0].time_factor
    self._sizes: dict[str, Any] = dict(
      slots=settings.slots,
      caption_slots=settings.caption_slots,
      segments_per_row=settings.segments,
      patch_width=cast(int, datasets[0].latent_channels) * math.prod(settings.patch),
      state_width=self._state_width,
    )

  def read_step(self, bins: Sequence[Bin]) -> dict[str, np.ndarray]:
    """The packed batch of some bins, in order.

    Raises:
      BadInput: a record is not what the index says.
    """
    batch = tokens.empty_rows(len(bins), **self._sizes, dtype=_DTYPE)
    for i, place in enumerate(bins):
      tokens.fill_row({key: value[i] for key, value in batch.items()}, self._segments(place))
    return batch

  def _segments(self, place: Bin) -> list[tokens.Segment]:
    columns = (place.pool, place.record, place.caption, place.draw)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [self._segment(*row) for row in rows]

  def _segment(self, number: int, row: int, caption: int, draw: int) -> tokens.Segment:
    dataset = self._datasets[number]
    record = cast(LatentRecord, dataset.read(row))
    _check_index(dataset, row, record, caption, self._tokenizer)
    _check_frames(dataset, row, record, self._time_factor)
    (f, h, w), patch = record.latent.shape[:3], self._settings.patch
    text_ids, text_states = self._caption(record, caption)
    return tokens.Segment(
      patches=tokens.patchify(record.latent.view(np.uint16), patch).view(_DTYPE),  # copied as words
      shape=(f, h, w),
      patch=patch,
      fps=float(record.fps),
      time_factor=self._time_factor,
      text_ids=text_ids,
      text_states=text_states,
      dropped=caption < 0,
      dataset=number,
      record=row,
      draw=draw,
      given=self._given(tokens.grid((f, h, w), patch), draw),
    )

  def _caption(self, record: LatentRecord, caption: int) -> tuple[np.ndarray, np.ndarray | None]:
    if caption >= 0:
      states = record.text_states.get(self._tokenizer)
      return record.text_ids[self._tokenizer][caption], None if states is None else states[caption]
    width = self._state_width
    return np.zeros(0, np.int32), None if width is None else np.zeros((0, width), _DTYPE)

  def _given(self, sizes: tuple[int, int, int], draw: int) -> np.ndarray | None:
    f, h, w = sizes
    if not self._given_first_frame or f == 1:
      return None
    if hashing.uniform(Purpose.GIVEN, *self._counters, draw) >= self._given_first_frame:
      return None
    return np.arange(f * h * w) < h * w


def check_alike(datasets: Sequence[Dataset], tokenizer: str) -> int | None:
  """Whether one model can learn from all of them.

  Args:
    datasets: of a mixture, which have the tokenizer.
    tokenizer: whose ids and states are read.
  Returns:
    k, the width of the token states; None when there are none. A dataset without captions has no
    width of its own, and goes with any.
  Raises:
    BadInput: they were made by several VAEs, or by text encoders that share a name alone.
  """
  choose_tokenizer(datasets, tokenizer)
  first = datasets[0]
  for dataset in datasets:
    for name, (own, other) in {
      "vae": (dataset.meta.get("vae"), first.meta.get("vae")),
      f"text encoder {tokenizer}": (_text_of(dataset, tokenizer), _text_of(first, tokenizer)),
      "latent_channels": (dataset.latent_channels, first.latent_channels),
      "time_factor": (dataset.time_factor, first.time_factor),
    }.items():
      if own != other:
        raise BadInput(
          f"loader: {dataset.path} and {first.path} are of different {name}. "
          "Mix datasets that one VAE and one text encoder made."
        )
  captioned = [each for each in datasets if each.index["caption_offsets"][-1]] or list(datasets)
  width = captioned[0].state_width(tokenizer)
  for dataset in captioned:
    if dataset.state_width(tokenizer) != width:
      raise BadInput(
        f"loader: the states of {dataset.path} have width {dataset.state_width(tokenizer)}, those "
        f"of {captioned[0].path} {width}. Encode both with states, or both without."
      )
  return width


def _text_of(dataset: Dataset, tokenizer: str) -> dict | None:
  """The spec of the encoder that a dataset was made with."""
  return dataset.meta.get("texts", {}).get(tokenizer)


def _check_index(
  dataset: Dataset, row: int, record: LatentRecord, caption: int, tokenizer: str
) -> None:
  index = dataset.index
  said = tuple(int(index[side][row]) for side in "fhw")
  found = tuple(record.latent.shape[:3])
  if caption >= 0 and said == found:
    place = int(index["caption_offsets"][row]) + caption
    said = int(dataset.caption_tokens(tokenizer)[place])
    found = len(record.text_ids[tokenizer][caption])
  if said != found:
    raise BadInput(
      f"loader: clip row {row} holds {found} (f, h, w or caption tokens), but its index says "
      f"{said}. Rebuild the index of the dataset."
    )


def _check_frames(dataset: Dataset, row: int, record: LatentRecord, time_factor: int) -> None:
  """Raises BadInput: a record's frames are not those that its latents cover."""
  latents = record.latent.shape[0]
  covered = 1 + time_factor * (latents - 1)
  if record.frames != covered:
    raise BadInput(
      f"loader: clip row {row} of {dataset.path} has frames={record.frames}, but its {latents} "
      f"latents cover {covered} by time_factor={time_factor}. Encode the clips anew."
    )

"""What `sora encode` has to do, and how far it is: a plan of parts, each encoded and written whole.

The plan is a pure function of the clips' index and the settings. Renditions stand in the order in
which batches of one shape fill up when the clips are read one after the other; each split is cut
into parts of about the shard's bytes. So a job that was killed goes on with the parts that are
missing, on any number of devices or processes.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.records import SPLITS, ClipRecord, LatentRecord
from data_pipeline.rendering import render
from data_pipeline.renditions import name_rendition
from sora_jax.commands.caption_limits import CaptionLimits
from sora_jax.generate.batches import Placed, encode_batches, plan_batches
from sora_jax.generate.programs import Programs, plan_batch
from sora_jax.models.frozen_vae import FrozenVAE
from sora_jax.models.text.encoder import TextEncoder

TEXT_CLIPS = 512  # clips whose captions are encoded together
CAPTIONS_KEPT = 2**14  # captions remembered: about 150 MB of MiniLM states
_CAPTION_TOKENS = 24  # of a caption, to guess the bytes of a record
_SHAPE = ("frames", "height", "width")
_NO_VIDEO = np.zeros((1, 1, 1, 3), np.uint8)


class Plan(NamedTuple):
  """What is written where.

  Attributes:
    table: RENDITION [n], in the order of the dataset.
    parts: of every split that has some: places in `table`, int64, ascending.
  """

  table: np.ndarray
  parts: dict[str, list[np.ndarray]]

  @property
  def counts(self) -> dict[str, int]:
    """Parts of every split."""
    return {split: len(parts) for split, parts in self.parts.items()}

  @property
  def facts(self) -> dict:
    """JSON-able: another plan has others."""
    digest = hashlib.sha256(self.table.tobytes())
    sizes = {split: [len(part) for part in parts] for split, parts in self.parts.items()}
    return {"renditions": digest.hexdigest(), "parts": sizes}


def plan_parts(
  clips: Dataset, table: np.ndarray, vae, encoders: Sequence[TextEncoder], *, rows: int,
  captions: int, states: bool, shard_bytes: int,
) -> Plan:  # fmt: skip
  """Orders the renditions and cuts them into parts.

  Args:
    clips: they are made of.
    table: RENDITION [n], as `plan_renditions` gives it.
    vae: has `time_factor`, `space_factor` and `latent_channels`.
    encoders: of the captions.
    rows: the most clips of a batch.
    captions: kept of each clip; 0 for all.
    states: whether token states are stored.
    shard_bytes: of a part, about.
  """
  table = table[order_as_batches_fill(shapes_of(table), vae.time_factor, rows)]
  counts = np.diff(clips.index["caption_offsets"])[table["row"]]
  counts = np.minimum(counts, captions) if captions else counts
  token_bytes = sum(4 + 2 * encoder.width * states for encoder in encoders)
  latent = 1 + (table["frames"].astype(np.int64) - 1) // vae.time_factor
  cells = latent * (table["height"] // vae.space_factor) * (table["width"] // vae.space_factor)
  bytes_ = cells * vae.latent_channels * 2 + counts * _CAPTION_TOKENS * token_bytes
  split = clips.index["split"][table["row"]]
  parts = {}
  for code, name in enumerate(SPLITS):
    places = np.flatnonzero(split == code)
    if len(places):
      parts[name] = _cut(places, bytes_[places], shard_bytes)
  return Plan(table, parts)


def shapes_of(table: np.ndarray) -> np.ndarray:
  """int64 [n,3]: frames, height and width of renditions."""
  return np.stack([table[name].astype(np.int64) for name in _SHAPE], axis=1)


def _cut(places: np.ndarray, sizes: np.ndarray, shard_bytes: int) -> list[np.ndarray]:
  number = (np.cumsum(sizes) - sizes) // shard_bytes
  return np.split(places, np.flatnonzero(np.diff(number)) + 1)


def order_as_batches_fill(shapes: np.ndarray, time_factor: int, rows: int) -> np.ndarray:
  """The order in which clips come out when each shape waits for a batch of its own to fill.

  Clips of one batch stay in order; batches stand by their last clip, those that never fill at the
  end, by their first.
  """
  unique, kind = np.unique(shapes, axis=0, return_inverse=True)
  kind = kind.reshape(-1)
  sizes = np.array([plan_batch((f, h, w), time_factor, rows)[0] for f, h, w in unique.tolist()])
  by_kind = np.argsort(kind, kind="stable")
  counts = np.bincount(kind)
  start, size = (np.repeat(x, counts) for x in (np.cumsum(counts) - counts, sizes))
  first = start + (np.arange(len(kind)) - start) // size * size  # of its batch, in `by_kind`
  fills = first + size <= start + np.repeat(counts, counts)
  last = np.minimum(first + size, len(kind)) - 1
  when = np.where(fills, by_kind[last], len(kind) + by_kind[first])
  return by_kind[np.lexsort((by_kind, when))]


class PartEncoder:
  """Makes the latent records of a part.

  Args:
    clips, vae, encoders: as in `encode_dataset`.
    table: RENDITION [n], in the order of the dataset.
    programs: for all of its shapes.
    devices: of this process.
    limits: which captions are kept of each clip.
    states: whether token states are stored.
    named: the records have ids of their own; else those of their clips.
  """

  def __init__(
    self, clips: Dataset, vae: FrozenVAE, encoders: Sequence[TextEncoder], table: np.ndarray,
    programs: Programs, devices: Sequence, *, limits: CaptionLimits, states: bool, named: bool,
  ):  # fmt: skip
    self._clips, self._vae, self._table = clips, Placed(vae, devices), table
    self._programs, self._limits, self._named = programs, limits, named
    self._words = {encoder.name: Captions(encoder, states=states) for encoder in encoders}

  def records(self, places: np.ndarray, done=lambda: None) -> Iterator[LatentRecord]:
    """The records of these places of the table, in order; `done` is called for each one encoded.

    Raises:
      BadInput: a clip is damaged.
    """
    renditions = self._table[places]
    records: dict[int, ClipRecord] = {}
    latents: dict[int, np.ndarray] = {}

    def load(number: int, sizes: Sequence[int]) -> Iterator[np.ndarray]:
      record = self._clips.read(int(renditions["row"][number]))
      records[number] = trim(record, self._limits.fit(record.captions))
      try:
        yield from render(record.video, renditions[number], sizes)
      except BadInput as error:
        where = f"clip {record.id!r} (source {record.source!r}) of {self._clips.path}"
        raise BadInput(f"encode: {where}: {error}") from error

    shapes = [(f, h, w) for f, h, w in shapes_of(renditions).tolist()]
    batches = plan_batches(shapes, self._programs)
    for number, latent in encode_batches(self._vae, batches, shapes, load, self._programs):
      latents[number] = latent.astype(ml_dtypes.bfloat16)
      done()
    for first in range(0, len(renditions), TEXT_CLIPS):
      some = range(first, min(first + TEXT_CLIPS, len(renditions)))
      words = {text for number in some for text in records[number].captions}
      known = {name: encode(words) for name, encode in self._words.items()}
      for number in some:
        made = records.pop(number), renditions[number], latents.pop(number)
        yield make_record(*made, known, named=self._named)


def trim(record: ClipRecord, captions: tuple[str, ...]) -> ClipRecord:
  """The record with these captions; of its video a pixel, to save memory.

  A view would keep the whole video.
  """
  video = record.video
  video = video[:1, :1, :1].copy() if isinstance(video, np.ndarray) else _NO_VIDEO
  return dataclasses.replace(record, video=video, captions=captions, truth=b"")


class Captions:
  """Ids and states by caption; the first CAPTIONS_KEPT are kept, so that they are encoded once."""

  def __init__(self, encoder: TextEncoder, *, states: bool):
    self._encoder, self._states = encoder, states and encoder.width > 0
    self._known: dict[str, tuple] = {}

  def __call__(self, captions: set[str]) -> dict[str, tuple]:
    """(ids, states) of each caption; states bf16, or None if none are stored."""
    new = sorted(captions - self._known.keys())
    encoder, states = self._encoder, [None] * len(new)
    if self._states:
      states = [state.astype(ml_dtypes.bfloat16) for state in encoder.encode(new)]
    found = dict(zip(new, zip(encoder.tokenize(new), states, strict=True), strict=True))
    answer = {caption: self._known.get(caption) or found[caption] for caption in captions}
    if len(self._known) < CAPTIONS_KEPT:
      self._known |= found
    return answer


def make_record(
  clip: ClipRecord, rendition, latent: np.ndarray, known: dict[str, dict], *, named: bool
) -> LatentRecord:
  """The record of a rendition: `known` has, by encoder, ids and states of its captions."""
  return LatentRecord(
    id=name_rendition(clip.id, rendition) if named else clip.id,
    source=clip.source,
    licence=clip.licence,
    split=clip.split,
    start_frame=clip.start_frame + int(rendition["start"]),
    frames=int(rendition["frames"]),
    height=int(rendition["height"]),
    width=int(rendition["width"]),
    crop=tuple(rendition["crop"].tolist()),
    fps=float(rendition["fps"]),
    latent=latent,
    **caption_fields(clip.captions, known),
    attributes=clip.attributes,
    scores=clip.scores,
  )


def caption_fields(captions: tuple[str, ...], known: dict[str, dict]) -> dict:
  """Fields of a latent record that its captions decide; `known` as `make_record` has it."""
  texts = {name: [found[text] for text in captions] for name, found in known.items()}
  return {
    "captions": captions,
    "text_ids": {name: tuple(ids for ids, _ in every) for name, every in texts.items()},
    "text_states": {
      name: tuple(states for _, states in every)
      for name, every in texts.items()
      if every and every[0][1] is not None
    },
  }

"""Gives latents the captions that their clips have now: new ids and states, the same video.

Text encoders and settings are those that the dataset keeps, so that the records are those of
`sora encode` on the clips as they are now.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import change, hashing
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.records import LatentRecord
from data_pipeline.renditions import clip_of
from sora_jax.commands.caption_limits import CaptionLimits, check_each
from sora_jax.commands.encode_parts import CAPTIONS_KEPT, Captions, caption_fields
from sora_jax.models.text.registry import load_frozen_text_encoder

_OF_ENCODE = ("texts", "states", "captions", "renditions")

Words = tuple[tuple[str, ...], str]  # captions and licence


class LatentCaptions:
  """The captions of a latent dataset.

  Attributes:
    path: of the dataset.

  Args:
    latents: that `sora encode` made.
  Raises:
    BadInput: another dataset, or one whose text encoders are not those that it was made with.
  """

  def __init__(self, latents: Dataset):
    self._latents, self.path = latents, Path(latents.path)
    meta = latents.meta
    if latents.kind != "latent" or any(name not in meta for name in _OF_ENCODE):
      raise BadInput(
        f"curate: --replace-captions: sora encode did not make {self.path}. Leave it out of --data."
      )
    encoders = [load_frozen_text_encoder(self.path / "text" / name) for name in latents.tokenizers]
    policy = meta.get("long_captions", "refuse")  # said since there is a choice
    self._limits = CaptionLimits(encoders, policy, meta["captions"])
    self._words = {one.name: Captions(one, states=meta["states"]) for one in encoders}
    self._named = meta["renditions"] is not None

  def check(self, captions: Iterable[tuple[str, str, Sequence[str]]]) -> None:
    """Raises BadInput: of (id, source, captions) of clips some captions are too long."""
    check_each(captions, self._limits, str(self.path))

  def renew(
    self,
    clips: Dataset,
    sources: Collection[str],
    newest: Callable[[Any, Dataset], str | None],
  ) -> int:
    """Takes over the captions and licences of the clips.

    Args:
      clips: as they are now.
      sources: whose clips may have others than before.
      newest: gives the fingerprint of the clips by one that they had before, see `Replacement`.
    Returns:
      How many records got other ones.
    Raises:
      BadInput: a record's clip is not there.
    """
    find = self._finder(clips)
    hashes = np.array([hashing.hash_text(name) for name in sources], np.uint64)
    candidates = np.flatnonzero(np.isin(self._latents.index["source"], hashes)).tolist()
    rows = []
    for row in candidates:
      record = self._latents.read(row)
      if (record.captions, record.licence) != find(record.id):
        rows.append(row)
    fingerprint = newest(self._latents.meta.get("clips"), clips)
    changes = {"clips": fingerprint} if fingerprint else None
    make = lambda records: self._revise(records, find)  # noqa: E731
    change.revise(self.path, rows, make, meta_changes=changes)
    return len(rows)

  def _finder(self, clips: Dataset) -> Callable[[str], Words]:
    """Gives what a record's captions and licence are to be, by its id."""
    order = np.argsort(clips.index["id"])
    ids = clips.index["id"][order]

    @lru_cache(CAPTIONS_KEPT)
    def read(name: str) -> Words:
      wanted = hashing.hash_text(name)
      place = int(np.searchsorted(ids, np.uint64(wanted)))
      if place == len(ids) or int(ids[place]) != wanted:
        raise BadInput(
          f"curate: --replace-captions: {self.path} holds latents of clip {name!r}, which is not "
          f"in {clips.path}. Encode the clips anew."
        )
      clip = clips.read(int(order[place]))
      return self._limits.fit(clip.captions), clip.licence

    return lambda name: read(clip_of(name) if self._named else name)

  def _revise(self, records: list[LatentRecord], find: Callable[[str], Words]):
    words = [find(record.id) for record in records]
    every = {caption for captions, _ in words for caption in captions}
    known = {name: encode(every) for name, encode in self._words.items()}
    return [
      dataclasses.replace(record, **caption_fields(captions, known), licence=licence)
      for record, (captions, licence) in zip(records, words, strict=True)
    ]

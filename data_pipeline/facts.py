"""What holds of a whole dataset: what its maker says, and what all of its records share."""

import json
from collections.abc import Mapping, Sequence

from data_pipeline import records
from data_pipeline.errors import BadInput
from data_pipeline.records import Record
from data_pipeline.time_factor import KEY as TIME_FACTOR

# Of `meta`, what follows from the VAE, whose fingerprint is hashed: a dataset that does not say it
# yet has the same fingerprint as one that does.
NOT_HASHED = (TIME_FACTOR,)


def hashed_meta(meta: Mapping) -> dict:
  """The part of a dataset's meta that its fingerprint is made of."""
  return {name: value for name, value in meta.items() if name not in NOT_HASHED}


class Facts:
  """Facts of a dataset; those that records tell are taken in one by one.

  Attributes:
    kind, name, meta: as `DatasetWriter` has them.
    storage: of the videos, see `records.STORAGES`; None of latents, and before the first clip.
    tokenizers: names of those whose ids latents have; None of clips, and before the first latent.
    widths: `latent_channels` and `text_state_width/TOKENIZER` of latents, once they are known; a
      width of None: no states are stored.
  """

  def __init__(self, kind: str, name: str, meta: Mapping, storage: str | None = None):
    self.kind, self.name = kind, name
    self.meta: dict = json.loads(json.dumps(dict(meta)))
    self.storage = storage
    self.tokenizers: tuple[str, ...] | None = None
    self.widths: dict[str, int | None] = {}

  @property
  def hashed(self) -> dict:
    """JSON-able: the part of the fingerprint that the index does not say."""
    facts = {
      "kind": self.kind,
      "version": records.VERSIONS[self.kind],
      "meta": hashed_meta(self.meta),
      "widths": self.widths,
    }
    own = {"storage": self.storage} if self.kind == "clip" else {"tokenizers": self.tokenizers}
    return json.loads(json.dumps(facts | own))

  def check(self, record: Record) -> None:
    """Raises BadInput: a record of other kind, storage, tokenizers or width than those before."""
    if not isinstance(record, records.CLASSES[self.kind]):
      raise BadInput(f"dataset: {type(record).__name__} is no {self.kind} record. Convert it.")
    records.check_record(record)
    widths: dict[str, int | None] = {}
    tokenizers = None
    if isinstance(record, records.LatentRecord):
      widths["latent_channels"] = record.latent.shape[-1]
      tokenizers = tuple(record.text_ids)
      for name in tokenizers if record.captions else ():
        states = record.text_states.get(name)
        widths[state_width_of(name)] = states[0].shape[1] if states else None
    self.merge(records.storage_of(record), tokenizers, widths, where=f"record {record.id!r}")

  def merge(
    self,
    storage: str | None,
    tokenizers: Sequence[str] | None,
    widths: Mapping[str, int | None],
    *,
    where: str,
  ) -> None:
    """Takes facts of some records in. Raises BadInput: they differ from those that are known."""
    if self.tokenizers is None:
      self.tokenizers = None if tokenizers is None else tuple(tokenizers)
    if tokenizers is not None and set(tokenizers) != set(self.tokenizers or ()):
      raise BadInput(
        f"dataset: {where} has ids of {', '.join(tokenizers)}, those before it of "
        f"{', '.join(self.tokenizers or ())}. Encode a dataset with the same text encoders."
      )
    if self.storage is None:
      self.storage = storage
    if storage not in (None, self.storage):
      raise BadInput(
        f"dataset: {where} has {storage} video, those before it {self.storage}. Keep all videos of "
        "a dataset in one way."
      )
    for name, width in widths.items():
      if self.widths.setdefault(name, width) != width:
        raise BadInput(
          f"dataset: {name}={width} of {where} is not the {self.widths[name]} of those before it. "
          "Encode a dataset with one VAE and the same text encoders."
        )


def state_width_of(tokenizer: str) -> str:
  """Name of the width of a tokenizer's states."""
  return f"text_state_width/{tokenizer}"

"""UTF-8 bytes as tokens. The ids are embedded by the DiT and trained with it: no weights here.

Source: Xue et al. 2021, "ByT5", arXiv:2105.13626, section 3.1 (they shift ids by 3, we by 1).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipeline.errors import BadInput
from sora_jax.models.text.encoder import require_fit, require_text

_END = 257  # closes every caption, so that the empty one has a token too
_FORMAT = "bytes 1: id = byte + 1, 257 ends a caption, 0 is padding"


@dataclass(frozen=True)
class ByteEncoder:
  """Captions as bytes; see `TextEncoder`. Ids 1..256 are bytes, 257 is the end of the caption."""

  name: str = "bytes"
  width: int = 0
  vocabulary: int = 258
  max_tokens: int = 512
  fingerprint: str = hashlib.sha256(_FORMAT.encode()).hexdigest()
  files: dict[str, Path] = field(default_factory=dict)

  def tokenize(self, captions: Sequence[str]) -> list[np.ndarray]:
    """int32 [bytes + 1] ids of each caption. Raises BadInput when one is too long."""
    require_text(self.name, captions)
    return [self._ids(caption) for caption in captions]

  def count_tokens(self, captions: Sequence[str]) -> list[int]:
    """Bytes of each caption, and one for its end."""
    require_text(self.name, captions)
    return [len(caption.encode()) + 1 for caption in captions]

  def _ids(self, caption: str) -> np.ndarray:
    data = np.frombuffer(caption.encode(), np.uint8).astype(np.int32)
    require_fit(self.name, caption, len(data) + 1, self.max_tokens)
    return np.append(data + 1, np.int32(_END))

  def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
    """float32 [bytes + 1, 0]: there is nothing beside the ids."""
    return [np.zeros((len(ids), 0), np.float32) for ids in self.tokenize(captions)]

  def decode(self, ids: np.ndarray) -> str:
    """The caption whose ids these are: the inverse of `tokenize`.

    Raises:
      ValueError: `ids` are not bytes and one end token, or the bytes are not UTF-8.
    """
    ids = np.asarray(ids)
    body = ids[:-1]
    if len(ids) == 0 or ids[-1] != _END or np.any((body < 1) | (body > 256)):
      raise ValueError(f"bytes: ids={ids.tolist()} are not bytes 1..256 and a final {_END}")
    return (body - 1).astype(np.uint8).tobytes().decode()


def load_bytes(folder: Path | None) -> ByteEncoder:
  """The byte encoder. Raises BadInput when a folder of weights is named: it has none."""
  if folder is not None:
    raise BadInput(f"text encoder bytes: folder={folder} is not used. Leave the folder out.")
  return ByteEncoder()

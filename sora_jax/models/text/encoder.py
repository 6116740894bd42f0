"""What every text encoder is: captions in, token ids and token states out.

Captions are never padded to a fixed length: a caption takes the slots of a pack that it needs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipeline.errors import BadInput

_SHOWN_CHARACTERS = 60


class TextEncoder(Protocol):
  """A frozen function from captions to token states.

  Attributes:
    name: its name in the registry.
    width: k, the width of a token's state; 0 when the model embeds the ids by itself.
    vocabulary: ids are below this; 0 is padding and never comes out of `tokenize`.
    max_tokens: the longest caption, special tokens included.
    fingerprint: sha256 (hex) of all that decides ids and states: weights and tokenizer.
    files: file name -> where it lies; what a run must keep to load this encoder again.
  """

  @property
  def name(self) -> str: ...
  @property
  def width(self) -> int: ...
  @property
  def vocabulary(self) -> int: ...
  @property
  def max_tokens(self) -> int: ...
  @property
  def fingerprint(self) -> str: ...
  @property
  def files(self) -> dict[str, Path]: ...

  def tokenize(self, captions: Sequence[str]) -> list[np.ndarray]:
    """int32 [m] ids of each caption, at least one, with special tokens, without padding.

    Raises:
      BadInput: a caption is longer than `max_tokens`, or is not Unicode text.
    """
    ...

  def count_tokens(self, captions: Sequence[str]) -> list[int]:
    """Tokens of each caption, special tokens included, whether it fits or not.

    Raises:
      BadInput: a caption is not Unicode text.
    """
    ...

  def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
    """float32 [m, k] states of each caption's tokens, in the order of `tokenize`."""
    ...


def describe(encoder: TextEncoder) -> dict[str, Any]:
  """The encoder's spec as JSON values: what datasets and runs store to know it again."""
  return {
    "name": encoder.name,
    "width": encoder.width,
    "vocabulary": encoder.vocabulary,
    "max_tokens": encoder.max_tokens,
    "fingerprint": encoder.fingerprint,
  }


def require_text(name: str, captions: Sequence[str]) -> None:
  """Refuses what is not a list of Unicode captions.

  Raises:
    TypeError: a lone string, which would be read as a list of letters.
    BadInput: a caption with a lone surrogate: bytes that were not UTF-8 when they were read.
  """
  if isinstance(captions, str):
    raise TypeError(f"text encoder {name}: captions={captions!r} is one string, not a list of them")
  for caption in captions:
    try:
      caption.encode()
    except UnicodeEncodeError as error:
      raise BadInput(
        f"text encoder {name}: caption {_short(caption)} is not Unicode text "
        f"(character {error.start} is a lone surrogate). Write the caption in UTF-8."
      ) from None


def require_fit(name: str, caption: str, tokens: int, max_tokens: int) -> None:
  """Refuses a caption of more tokens than the encoder takes; nothing is cut in silence.

  Raises:
    BadInput: `tokens` is over `max_tokens`.
  """
  if tokens > max_tokens:
    raise BadInput(
      f"text encoder {name}: caption {_short(caption)} has tokens={tokens}, over "
      f"max_tokens={max_tokens} (special tokens included). Shorten the caption."
    )


def _short(caption: str) -> str:
  """One printable line that names a caption."""
  shown = caption if len(caption) <= _SHOWN_CHARACTERS else caption[:_SHOWN_CHARACTERS] + "…"
  return ascii(shown) if not shown.isprintable() else repr(shown)

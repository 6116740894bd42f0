"""Captions and licence that come with a video: from a text or JSON file beside it, or a list's row.

A text file holds one caption a line. A JSON file is a caption, a list of captions, or an object:

    {"captions": ["a fox runs", "…"], "licence": "CC-BY-4.0", "split": "train",
     "spans": [{"start_seconds": 0, "end_seconds": 4.5, "captions": ["…"]}]}

`caption` and `license` are read too; other keys are not.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.curate.types import Refused, Source, Span
from data_pipeline.hashing import hash_text
from data_pipeline.records import SPLITS

MOST_BYTES = 1 << 20
ENDINGS = (".txt", ".json")
CAPTION_FIELDS = ("caption", "captions")


@dataclasses.dataclass(frozen=True)
class Words:
  """What is said of a source."""

  captions: tuple[str, ...] = ()
  spans: tuple[Span, ...] = ()
  licence: str = ""
  split: str = ""

  def plus(self, other: "Words") -> "Words":
    """Both: captions after each other, the other's licence and split where this has none."""
    return Words(
      self.captions + other.captions,
      self.spans + other.spans,
      self.licence or other.licence,
      self.split or other.split,
    )


def describe(source: Source, words: Words) -> Source:
  """The source with what is said of it; its stamp changes with that."""
  said = dataclasses.asdict(words)
  stamp = f"{source.stamp}-{hash_text(json.dumps(said, sort_keys=True)):016x}"
  return dataclasses.replace(source, **vars(words), stamp=stamp)


def parse(ending: str, data: bytes) -> Words:
  """The words of a side-car file.

  Args:
    ending: one of `ENDINGS`.
  Raises:
    Refused: "bad_side_car".
  """
  try:
    text = data.decode("utf-8-sig")
    return (
      from_fields(json.loads(text)) if ending == ".json" else Words(_captions(text.split("\n")))
    )
  except (ValueError, RecursionError) as error:
    raise Refused("bad_side_car", f"{ending}: {error}"[:200]) from error


def from_fields(value: Any, caption_fields: Sequence[str] = CAPTION_FIELDS) -> Words:
  """The words of a JSON value, or of the row of a list.

  Raises:
    ValueError: it is not of the form above.
  """
  if not isinstance(value, Mapping):
    return Words(_captions(value))
  captions = tuple(text for name in caption_fields for text in _captions(value.get(name)))
  licence = _text(value.get("licence") or value.get("license") or "")
  split = _text(value.get("split") or "")
  if split and split not in SPLITS:
    raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")
  return Words(captions, tuple(_span(span) for span in value.get("spans") or ()), licence, split)


def _captions(value: Any) -> tuple[str, ...]:
  values = [] if value is None else value if isinstance(value, list) else [value]
  texts = [_text(text) for text in values]
  return tuple(text for text in texts if text)


def _text(value: Any) -> str:
  """Text in one line, without what UTF-8 cannot hold."""
  if not isinstance(value, str):
    raise ValueError(f"{str(value)[:60]!r} is not text")
  value.encode()
  return " ".join(value.split())


def _span(value: Any) -> Span:
  if not isinstance(value, Mapping):
    raise ValueError(f"span {str(value)[:60]!r} is not an object")
  start, end = (float(value.get(name, math.nan)) for name in ("start_seconds", "end_seconds"))
  if not 0 <= start < end < math.inf:
    raise ValueError(f"span from start_seconds={start} to end_seconds={end}")
  return Span(start, end, tuple(t for name in CAPTION_FIELDS for t in _captions(value.get(name))))

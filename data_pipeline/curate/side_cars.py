"""Captions and licence that come with a video: from a file beside it, or from the row of a list.

A text file (.txt, .caption, .cap) holds one caption a line. A JSON file is a caption, a list of
captions, a list of objects like the rows of a list, or an object:

    {"captions": ["a fox runs", "…"], "licence": "CC-BY-4.0", "split": "train",
     "spans": [{"start_seconds": 0, "end_seconds": 4.5, "captions": ["…"]}]}

`columns` knows the other names that these keys may have. Captions of parts may also be lists beside
lists of times, as in HowTo100M ({"start": […], "end": […], "text": […]}). Endings may be capitals.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_pipeline.curate import cells
from data_pipeline.curate.columns import NUMBERS, find_roles, plain
from data_pipeline.curate.spans import align, in_column, read_lists_of_times, read_times
from data_pipeline.curate.types import Refused, Source, Span
from data_pipeline.hashing import hash_text
from data_pipeline.records import SPLITS
from data_pipeline.text_lines import split_lines

MOST_BYTES = 1 << 20
ENDINGS = (".txt", ".json", ".caption", ".cap")


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

  def count(self) -> int:
    """Counts the captions, of the whole and of parts."""
    return len(self.captions) + sum(len(span.captions) for span in self.spans)


def describe(source: Source, words: Words) -> Source:
  """The source with what is said of it; its stamp changes with that."""
  said = dataclasses.asdict(words)
  stamp = f"{source.stamp}-{hash_text(json.dumps(said, sort_keys=True)):016x}"
  return dataclasses.replace(source, **vars(words), stamp=stamp)


def is_side_car(name: str) -> bool:
  """Tells by its name whether a file holds captions."""
  return name.lower().endswith(ENDINGS)


def parse(
  name: str,
  data: bytes,
  wanted: tuple[str, ...] | None = None,
  unused: Callable[[str], None] = lambda _: None,
) -> Words:
  """Reads the words of a side-car file.

  Args:
    name: one for which `is_side_car`.
    wanted: keys of objects that hold captions; None for the known ones.
    unused: told the keys that are not read.
  Raises:
    Refused: "bad_side_car".
  """
  try:
    text = data.decode("utf-8-sig")
    if not name.lower().endswith(".json"):
      return Words(tuple(line for line in map(_text, split_lines(text)) if line))
    return _of_json(json.loads(text, object_pairs_hook=unique_keys), wanted, unused)
  except (ValueError, RecursionError) as error:
    raise Refused("bad_side_car", f"{name.rpartition('/')[2]}: {error}"[:200]) from error


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """The object of a JSON text. Raises ValueError: a key is there twice."""
  found = dict(pairs)
  if len(found) < len(pairs):
    counts = Counter(name for name, _ in pairs)
    raise ValueError(f"the key {next(n for n in counts if counts[n] > 1)!r} is there twice")
  return found


def _of_json(value: Any, wanted: tuple[str, ...] | None, unused: Callable[[str], None]) -> Words:
  if isinstance(value, Mapping):
    return read_words(tuple(value), list(value.values()), wanted, is_row=False, unused=unused)
  if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
    words = Words()
    for one in value:
      words = words.plus(
        read_words(tuple(one), list(one.values()), wanted, is_row=True, unused=unused)
      )
    return words
  return Words(tuple(text for text in _texts(value, is_row=False) if text))


def read_words(
  names: tuple[str, ...],
  values: Sequence[Any],
  wanted: tuple[str, ...] | None = None,
  *,
  is_row: bool,
  unused: Callable[[str], None] = lambda _: None,
) -> Words:
  """Reads the words of an object, or of the row of a list.

  Args:
    names: of its keys, or columns.
    values: one for each.
    wanted: names of those that hold captions; None for the known ones.
    is_row: of a list: cells of text may hold lists, and single times are read.
    unused: told the names that are not read, though something is there.
  Raises:
    ValueError: it is not of the form above; the column is named.
  """
  roles = find_roles(names, wanted)
  if roles.is_spare and not is_row:
    roles = roles._replace(captions=())  # a web page's title and description
  texts = {i: in_column(names[i], _texts, values[i], is_row) for i in roles.captions}
  times = None
  if any(map(any, texts.values())):
    times = (read_times if is_row else read_lists_of_times)(names, values, roles)
  captions = () if times else tuple(text for i in roles.captions for text in texts[i] if text)
  spans: list[Span] = []
  for i, said in texts.items() if times else ():
    spans += in_column(names[i], align, said, times.parts if times else ())
  if roles.spans >= 0:
    spans += in_column(names[roles.spans], _spans, values[roles.spans], is_row)
  read = {*roles.captions, *roles.licence, roles.split, roles.spans}
  read |= set(times.places) if times else set()
  read |= {*roles.paths[:1], *roles.ids[:1], *roles.urls[:1]} if is_row else set()
  if is_row and roles.captions and times is None:
    read |= roles.times  # of other rows
  for i, name in enumerate(names):
    if i not in read and values[i] not in (None, "", [], {}):
      unused(name)
      if is_row and plain(name) in NUMBERS:
        in_column(name, _number, values[i])
  licence = next((values[i] for i in roles.licence if values[i]), "")
  split = in_column("split", _split, values[roles.split] if roles.split >= 0 else "")
  return Words(captions, tuple(spans), in_column("licence", _text, licence), split)


def _number(value: Any) -> None:
  """Raises ValueError: text stands where a number should."""
  try:
    float(value)
  except (TypeError, ValueError):
    raise ValueError(f"{str(value)[:60]!r} is no number: is a comma before it unquoted?") from None


def _texts(value: Any, is_row: bool) -> list[str]:
  """The texts of a value, in one line each; empty ones too."""
  if is_row and isinstance(value, str):
    value = cells.read_texts(value)
  values = [] if value is None else value if isinstance(value, list) else [value]
  return [_text(text) for text in values]


def _text(value: Any) -> str:
  """Text in one line, without what UTF-8 cannot hold."""
  if not isinstance(value, str):
    raise ValueError(f"{str(value)[:60]!r} is not text")
  try:
    value.encode()
  except UnicodeEncodeError as error:
    shown = value[:60].encode("utf-8", "backslashreplace").decode()
    raise ValueError(f"{shown!r} is not UTF-8. Save the file as UTF-8") from error
  return " ".join(value.split())


def _split(value: Any) -> str:
  split = _text(value or "")
  if split and split not in SPLITS:
    raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")
  return split


def _spans(value: Any, is_row: bool = False) -> list[Span]:
  if value is None or value == "":
    return []
  values = cells.read_literal(value) if is_row else value
  if not isinstance(values, list):
    raise ValueError(f"{str(value)[:60]!r} is no list of spans")
  return [_span(one) for one in values]


def _span(value: Any) -> Span:
  if not isinstance(value, Mapping):
    raise ValueError(f"span {str(value)[:60]!r} is not an object")
  names, values = tuple(value), list(value.values())
  roles = find_roles(names)
  times = read_times(names, values, roles)
  if times is None or len(times.parts) != 1:
    raise ValueError(f"span {str(value)[:60]!r} has no start_seconds and end_seconds")
  texts = [text for i in roles.captions for text in _texts(values[i], is_row=False) if text]
  return Span(*times.parts[0], tuple(texts))

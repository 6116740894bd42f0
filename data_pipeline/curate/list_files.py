"""Reads the rows of lists: .csv, .tsv, .jsonl (or .ndjson) and .json, in any case.

A .json file is an array of objects, also within an object; an object of objects, whose keys name
the videos (HowTo100M), or of captions, or of lists of them; or lines of objects as in .jsonl.
`delimited` reads the others.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.curate.delimited import read_header, read_table
from data_pipeline.curate.rows import Row, find_roles_of, open_text
from data_pipeline.curate.side_cars import unique_keys
from data_pipeline.errors import BadInput

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
_KEY = "video_id"  # what the keys of an object of objects are taken for


def is_list(name: str) -> bool:
  """Tells by its name whether a file in a folder is a list."""
  return name.lower().endswith(ENDINGS)


def read_rows(path: str) -> Iterator[Row]:
  """Goes through the rows of a list.

  Raises:
    BadInput: it cannot be read for certain.
  """
  if path.lower().endswith(".json"):
    yield from _json_rows(path)
  elif path.lower().endswith((".csv", ".tsv")):
    yield from read_table(path)
  else:
    yield from _lines_of_json(path)


def read_names(path: str) -> tuple[str, ...]:
  """The names in the header of a list, or in its first object; () if none of them names videos.

  Raises:
    BadInput: the first object cannot be read.
  """
  if path.lower().endswith((".csv", ".tsv")):
    return read_header(path)
  return next((row.names for row in read_rows(path)), ())


def _lines_of_json(path: str) -> Iterator[Row]:
  with open_text(path) as text:
    for line, content in enumerate(text, 1):
      if content.strip():
        try:
          value = json.loads(content, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
          raise BadInput(f"curate: {path}: line {line} is not JSON ({error}). Mend it.") from error
        yield _object(f"{path}: line {line}", value)


def _json_rows(path: str) -> Iterator[Row]:
  with open_text(path) as text:
    content = text.read()
  try:
    value = json.loads(content, object_pairs_hook=unique_keys)
  except (ValueError, RecursionError) as error:
    if str(error).startswith("Extra data"):
      yield from _lines_of_json(path)
      return
    raise BadInput(f"curate: {path} is not JSON ({error}). Mend it.") from error
  rows = list(_by_key(path, value)) if isinstance(value, Mapping) else []
  for number, one in enumerate(_array(value), 1):
    rows.append(_object(f"{path}: item {number}", one))
  if not rows:
    raise BadInput(
      f"curate: {path} is no list of videos. Give an array of objects, or an object of objects by "
      "the name of the video."
    )
  yield from rows


def _array(value: Any) -> list:
  """An array, or the only array of objects in an object."""
  if not isinstance(value, Mapping):
    return value if isinstance(value, list) else []
  found = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], Mapping)]
  return found[0] if len(found) == 1 else []


def _by_key(path: str, value: Mapping[str, Any]) -> Iterator[Row]:
  """The rows of an object whose keys name videos; none for another."""
  if all(isinstance(one, Mapping) for one in value.values()):
    for key, one in value.items():
      where = f"{path}: key {key[:60]!r}"
      names_video = find_roles_of(where, tuple(one)).names_video
      yield _object(where, one if names_video else {_KEY: key} | dict(one))
  elif all(map(_is_words, value.values())) and not find_roles_of(path, tuple(value)).captions:
    for key, one in value.items():
      yield Row(f"{path}: key {key[:60]!r}", (_KEY, "captions"), [key, one])


def _is_words(value: Any) -> bool:
  texts = value if isinstance(value, list) else [value]
  return all(isinstance(text, str) for text in texts)


def _object(where: str, value: Any) -> Row:
  if not isinstance(value, Mapping):
    raise BadInput(f"curate: {where} names no file: it is no object. Mend it.")
  return Row(where, tuple(value), list(value.values()))

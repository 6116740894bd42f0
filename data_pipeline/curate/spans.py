"""Reads when in a video its captions hold, in whatever columns a list says so.

start, end      seconds or [HH:]MM:SS.mmm, or lists of them (HowTo100M); or start and duration
timestamp(s)    [start, end], or a list of such (Panda-70M, ActivityNet Captions)
cut             [first frame, frame after the last], with fps (Open-Sora-Plan)
start_frame, end_frame    with fps
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from data_pipeline.curate.cells import read_literal, read_seconds
from data_pipeline.curate.columns import Roles
from data_pipeline.curate.types import Span

Time = tuple[float, float]


class Times(NamedTuple):
  """Parts of a video, and the places of the columns that say so."""

  parts: list[Time]
  places: tuple[int, ...]


def read_times(names: Sequence[str], values: Sequence[Any], roles: Roles) -> Times | None:
  """The times of the captions of a row; None for a row about a whole video.

  Raises:
    ValueError: times that make no sense, or half of them; the column is named.
  """
  for read in (_read_starts, _read_pairs, _read_frames):
    if found := read(names, values, roles):
      for start, end in found.parts:
        if start >= end:
          named = " and ".join(repr(names[place].strip()) for place in found.places[:2])
          raise ValueError(f"column {named}: a part from {start:g} to {end:g} seconds is none")
      return found
  return None


def read_lists_of_times(names: Sequence[str], values: Sequence[Any], roles: Roles) -> Times | None:
  """Times in an object beside a video: only lists, as single ones speak of another video.

  A clip that was cut from a longer video brings along from where.
  """
  listed = [value if isinstance(value, list) else None for value in values]
  pairs = listed[roles.pairs] if roles.pairs >= 0 else None
  if not pairs or len(pairs) < 2 or not isinstance(pairs[0], list):
    roles = roles._replace(pairs=-1)
  only_lists = roles._replace(cut=-1, start_frame=-1, end_frame=-1)
  if roles.start < 0 or listed[roles.start] is None:
    only_lists = only_lists._replace(start=-1)
  return read_times(names, listed, only_lists)


def _read_starts(names: Sequence[str], values: Sequence[Any], roles: Roles) -> Times | None:
  ends = roles.end if roles.end >= 0 else roles.duration
  if roles.start < 0 or (_is_empty(values, roles.start) and _is_empty(values, roles.end)):
    return None
  if ends < 0:
    name = names[roles.start].strip()
    raise ValueError(f"column {name!r}: there is no column of ends. Give one, or rename this one")
  for place, other in ((roles.start, ends), (ends, roles.start)):
    if _is_empty(values, place):
      named, there = names[place].strip(), names[other].strip()
      raise ValueError(f"column {named!r}: it is empty and {there!r} is not")
  starts, stops = (_seconds(names[place], values[place]) for place in (roles.start, ends))
  if len(starts) != len(stops):
    named = f"column {names[ends].strip()!r}"
    raise ValueError(f"{named}: {len(stops)} times beside {len(starts)} starts")
  if roles.end < 0:
    stops = [start + length for start, length in zip(starts, stops, strict=True)]
  return Times(list(zip(starts, stops, strict=True)), (roles.start, ends))


def _read_pairs(names: Sequence[str], values: Sequence[Any], roles: Roles) -> Times | None:
  if _is_empty(values, roles.pairs):
    return None
  name, value = names[roles.pairs].strip(), values[roles.pairs]
  if isinstance(value, str) and value.strip()[:1] not in ("[", "("):
    return None  # a date
  value = in_column(name, read_literal, value)
  if not isinstance(value, (list, tuple)):
    return None
  pairs = value if value and isinstance(value[0], (list, tuple)) else [value]
  return Times([in_column(name, _pair, pair) for pair in pairs], (roles.pairs,))


def _pair(value: Any) -> Time:
  if not isinstance(value, (list, tuple)) or len(value) != 2:
    raise ValueError(f"{str(value)[:40]} is no [start, end]")
  return read_seconds(value[0]), read_seconds(value[1])


def _read_frames(names: Sequence[str], values: Sequence[Any], roles: Roles) -> Times | None:
  if not _is_empty(values, roles.cut):
    places = (roles.cut,)
    frames = in_column(names[roles.cut], _pair, read_literal(values[roles.cut]))
  elif not (_is_empty(values, roles.start_frame) or _is_empty(values, roles.end_frame)):
    places = (roles.start_frame, roles.end_frame)
    first, end = (in_column(names[i], read_seconds, values[i]) for i in places)
    frames = first, end
  else:
    return None
  name = names[places[0]].strip()
  if _is_empty(values, roles.fps):
    raise ValueError(f"column {name!r}: it counts frames, and no 'fps' says how many a second")
  fps = in_column(names[roles.fps], read_seconds, values[roles.fps])
  if fps <= 0:
    raise ValueError(f"column {names[roles.fps].strip()!r}: {fps:g} is no rate")
  return Times([(frames[0] / fps, frames[1] / fps)], (*places, roles.fps))


def _seconds(name: str, value: Any) -> list[float]:
  if isinstance(value, str) and value.strip()[:1] in ("[", "("):
    value = in_column(name, read_literal, value)
  values = value if isinstance(value, (list, tuple)) else [value]
  return [in_column(name, read_seconds, one) for one in values]


def _is_empty(values: Sequence[Any], place: int) -> bool:
  value = values[place] if place >= 0 else None
  return value is None or (isinstance(value, str) and not value.strip())


def align(texts: Sequence[str], parts: Sequence[Time]) -> list[Span]:
  """The captions of parts: all of one part, or one of each.

  Raises:
    ValueError: there are more, or fewer.
  """
  if len(parts) == 1:
    said = tuple(text for text in texts if text)
    return [Span(*parts[0], said)] if said else []
  if texts and len(texts) != len(parts):
    raise ValueError(f"{len(texts)} captions for {len(parts)} times")
  pairs = zip(texts, parts, strict=True) if texts else ()
  return [Span(start, end, (text,)) for text, (start, end) in pairs if text]


def in_column(name: str, read: Any, *values: Any) -> Any:
  """Calls a function of values; its ValueError then names the column."""
  try:
    return read(*values)
  except ValueError as error:
    raise ValueError(f"column {name.strip()!r}: {error}") from error

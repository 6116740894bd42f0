"""Tells whether a source is the one that was seen before: by its stamp, else by its content.

A stamp is that of the file, which changes when it is touched or copied, and a hash of what is said
of it: `FILE-WORDS`. The hash of the content is made when a source is cut, and again only where the
stamp of its file, or its place, is another.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

from google.protobuf.message import DecodeError

from data_pipeline.curate.sources import open_source
from data_pipeline.curate.types import Refused, Source
from data_pipeline.errors import BadInput

_MOST_BYTES = 64 << 30  # a larger file is known by its stamp alone
_READ_BYTES = 1 << 20
_UNREADABLE = (Refused, BadInput, OSError, RuntimeError, ValueError, LookupError, DecodeError)
_WORDS_LETTERS = 16  # of a stamp: see `side_cars.describe`


def hash_content(source: Source, file: BinaryIO | None = None) -> str:
  """Size and hash of what a source holds; "" where that cannot be told.

  Args:
    source: a row of a TFDS dataset is its video, without what is said of it.
    file: of the source, if it is open; any place in it.
  """
  try:
    if source.kind == "tfds":
      from data_pipeline.curate import tfds_videos  # starts in two seconds

      return _hash(tfds_videos.read_content(source))
    if file is not None:
      file.seek(0)
      return _hash(_pieces(file))
    with open_source(source) as opened:
      return _hash(_pieces(opened))
  except _UNREADABLE:
    return ""


def _pieces(file: BinaryIO) -> Iterator[bytes]:
  while data := file.read(_READ_BYTES):
    yield data


def _hash(pieces: Iterable[bytes]) -> str:
  digest, size = hashlib.blake2b(digest_size=16), 0
  for data in pieces:
    digest.update(data)
    size += len(data)
    if size > _MOST_BYTES:
      return ""
  return f"{size}-{digest.hexdigest()}"


def split_stamp(stamp: str) -> tuple[str, str]:
  """The stamp of the file, and the hash of what is said of it."""
  return stamp[: -_WORDS_LETTERS - 1], stamp[-_WORDS_LETTERS:]


class Compared(NamedTuple):
  """Sources whose names are known, by what is other about them than it was.

  Attributes:
    touched: only time or place of the file.
    mended: what is said of it; the content is the same.
    other: the content, as far as can be told.
  """

  touched: list[Source]
  mended: list[Source]
  other: list[Source]


def compare(
  sources: Iterable[Source], known: Mapping[str, Mapping[str, Any]], threads: int
) -> Compared:
  """Compares sources with what is known of them. Reads those whose file has another stamp.

  Args:
    sources: those whose names are not known are passed over.
    known: rows of sources.jsonl by name; `content` is missing in those of older versions.
    threads: files read at once.
  """
  changed = [s for s in sources if known.get(s.name, {}).get("stamp", s.stamp) != s.stamp]
  with ThreadPoolExecutor(threads) as pool:
    same = list(pool.map(lambda source: _is_same(source, known[source.name]), changed))
  found = Compared([], [], [])
  for source, is_same in zip(changed, same, strict=True):
    says_same = split_stamp(source.stamp)[1] == split_stamp(known[source.name]["stamp"])[1]
    where = found.other if not is_same else found.touched if says_same else found.mended
    where.append(source)
  return found


def _is_same(source: Source, row: Mapping[str, Any]) -> bool:
  if split_stamp(source.stamp)[0] == split_stamp(row["stamp"])[0]:
    return True
  return holds(source, row.get("content", ""))


def holds(source: Source, content: str) -> bool:
  """Tells whether a source has this content, by `hash_content`; False if it is not known."""
  size = content.partition("-")[0]
  is_possible = content and (source.kind == "tfds" or source.size in (-1, int(size)))
  return bool(is_possible) and hash_content(source) == content

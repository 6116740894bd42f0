"""Spools: what the cutting of one source leaves in a folder, whole or not at all.

    KEY-HASH.array_record   serialised `ClipRecord`s in order of time; not there without clips
    KEY.json                the summary, written last: without it nothing is there
KEY is of the source's name, HASH of the records: a summary never meets the records of another.
A summary holds
    source      the fields of the `Source`
    digest      hash of the settings that decide what was cut
    bounds      None; of a source that was given up, the bounds of time and memory that it broke
    split       of its clips
    media       what `media.probe` says of it, and `sizes`: (first frame, width, height) of every
                part of one size; or None
    shots       how many
    rate        frames a second of the windows, as a fraction; not there where nothing could be read
    content     `content.hash_content` of the source
    file, file_bytes   of the records
    clips       one a record: id, source, split, start_frame, frames, fps, width, height, bytes,
                captions (how many), words (of the longest one), bars (pixels cut off), scores,
                camera (a word), phash (hex)
    rejects     rows of `rejects.jsonl`
"""

import dataclasses
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data_pipeline import hashing, records, stored
from data_pipeline.curate.child import FULL
from data_pipeline.curate.settings import Settings
from data_pipeline.curate.types import Reject, Source
from data_pipeline.records import ClipRecord

Summary = dict[str, Any]  # JSON-able
KEY_LETTERS = 32
_WORD = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\s]")  # a CJK character is one by itself
_OPTIONS = "group_size:1,uncompressed"


def refuse_source(
  source: Source,
  settings: Settings,
  folder: str | os.PathLike,
  reason: str,
  detail: str,
  content: str = "",
) -> Summary:
  """Leaves the spool of a source whose child process failed: one reject, no clips.

  It stands until the settings, or the bounds of time and memory, are others; one of
  `spool.PASSING` for this run only. What the process left unfinished is removed.
  """
  for part in Path(folder).glob(f"{spool_key(source.name)}.*.part"):
    part.unlink(missing_ok=True)
  spool = Spool(source, settings, folder)
  spool.reject(Reject(source.name, None, reason, None, detail))
  spool.summary["content"] = content
  return spool.finish(bounds=_bounds(settings))


def read_summary(source: Source, settings: Settings, folder: str | os.PathLike) -> Summary | None:
  """The summary of the spool that lies in a folder for a source; None for none, or another's."""
  summary = read_spool(source.name, settings, folder)
  return summary if summary and summary["source"] == plain(source) else None


def read_spool(name: str, settings: Settings, folder: str | os.PathLike) -> Summary | None:
  """The summary of what these settings made of a source of this name, wherever it lay then."""
  path = Path(folder, f"{spool_key(name)}.json")
  try:
    summary = json.loads(path.read_bytes())
    size = os.path.getsize(path.with_name(summary["file"])) if summary["file"] else 0
  except (FileNotFoundError, ValueError):
    return None
  is_same = settings.cut_digest() == summary["digest"] and size == summary["file_bytes"]
  return summary if is_same and summary["bounds"] in (None, _bounds(settings)) else None


def _bounds(settings: Settings) -> list[float]:
  decode = settings.decode
  return [decode.timeout_seconds, decode.timeout_seconds_per_megabyte, decode.memory_bytes]


def spool_key(name: str) -> str:
  """What the names of all files of a source begin with: `KEY_LETTERS` of them."""
  return hashlib.sha256(name.encode()).hexdigest()[:KEY_LETTERS]


def write_summary(summary: Summary, folder: str | os.PathLike) -> None:
  """Writes the summary of a spool whose records are there, whole or not at all."""
  base = Path(folder, spool_key(summary["source"]["name"]))
  part = base.with_suffix(f".{uuid.uuid4().hex[:12]}.part")
  part.write_text(json.dumps(summary, sort_keys=True))
  _keep(part, base.with_suffix(".json"))


def count_words(captions: Sequence[str]) -> dict[str, int]:
  """Facts of a clip: how many captions it has, and how many words and marks the longest of them."""
  longest = max((len(_WORD.findall(caption)) for caption in captions), default=0)
  return {"captions": len(captions), "words": longest}


def plain(source: Source) -> dict[str, Any]:
  return json.loads(json.dumps(dataclasses.asdict(source)))


class Spool:
  """A spool being written."""

  def __init__(self, source: Source, settings: Settings, folder: str | os.PathLike):
    os.makedirs(folder, exist_ok=True)
    self.source = source
    self._base = Path(folder, spool_key(source.name))
    self._part = self._base.with_suffix(f".{uuid.uuid4().hex[:12]}.part")
    self._writer: Any = None
    self.summary: Summary = dict(
      source=plain(source),
      digest=settings.cut_digest(),
      bounds=None,
      split=choose_split(source, settings.write.held_out_fraction),
      media=None,
      shots=0,
      file="",
      file_bytes=0,
      clips=[],
      rejects=[],
    )

  def reject(self, reject: Reject) -> None:
    self.summary["rejects"].append(reject.row())

  def add(self, record: ClipRecord, facts: dict[str, Any]) -> None:
    """Raises OSError: the disk is full; also `finish`."""
    records.check_record(record)
    with _naming_full():
      if self._writer is None:
        self._writer = array_record_module.ArrayRecordWriter(str(self._part), _OPTIONS)
      self._writer.write(stored.serialize(record))
    self.summary["clips"].append(facts)

  def finish(self, bounds: list[float] | None = None) -> Summary:
    path = self._base.with_suffix(".json")
    old = _file_of(path)
    self.summary["bounds"] = bounds
    if self._writer is not None:
      self._close()
    self._part.write_text(json.dumps(self.summary, sort_keys=True))
    _keep(self._part, path)
    if old and old != self.summary["file"]:
      path.with_name(old).unlink(missing_ok=True)
    return json.loads(json.dumps(self.summary))

  def _close(self) -> None:
    """Gives the records their name."""
    with _naming_full():
      self._writer.close()
    path = self._base.with_name(f"{self._base.name}-{_hash(self._part)}.array_record")
    _keep(self._part, path)
    self.summary |= dict(file=path.name, file_bytes=path.stat().st_size)

  def abandon(self) -> None:
    """Removes what was written, finished or not."""
    try:
      if self._writer is not None:
        self._writer.close()
    except RuntimeError:  # as it did before: the disk is full
      pass
    finally:
      self._part.unlink(missing_ok=True)


@contextmanager
def _naming_full() -> Iterator[None]:
  """Makes what ArrayRecord raises on a full disk the OSError that it is."""
  try:
    yield
  except RuntimeError as error:
    for number in FULL:
      if f" failed: {os.strerror(number)};" in str(error):
        raise OSError(number, os.strerror(number)) from error
    raise


def _hash(path: Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _file_of(path: Path) -> str:
  """The records' file that a summary names; "" for none."""
  try:
    return json.loads(path.read_bytes())["file"]
  except (FileNotFoundError, ValueError):
    return ""


def _keep(part: Path, path: Path) -> None:
  """Gives a file its name once its bytes are on the disk."""
  with open(part, "rb") as file:
    os.fsync(file.fileno())
  os.replace(part, path)


def choose_split(source: Source, held_out_fraction: float) -> str:
  """The source's own split, or one drawn by its name alone."""
  if source.split:
    return source.split
  draw = hashing.uniform(hashing.hash_text("held out"), hashing.hash_text(source.name))
  return "held_out" if draw < held_out_fraction else "train"

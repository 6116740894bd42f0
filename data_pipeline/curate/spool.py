"""The work folder of a curation, hidden beside the dataset at OUT, and what is read in it.

.OUT.curate/
  sources/00000.jsonl     the sources of the last run, some hundreds a file
  spools/KEY.json, KEY-HASH.array_record      what was cut from a source: see `spool_writer`
  spools/KEY.decision.json    which of its clips are copies, and the captions of the others
  answers/                of the chat endpoint: see `answers`
  next/                   tables that become part of the dataset
  append/clips            a dataset that is about to be appended
  plan.json               digest of the clips that the unfinished parts are made of
  stopped.json            why a worker ended the job
  take_down.json          a take-down that is not finished
  captions.json           a replacement of captions that is not finished

It stays when the job is done: a changed or repeated one makes only what is missing. All workers
must reach it under the same path.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline import stored
from data_pipeline.curate.child import FULL
from data_pipeline.curate.spool_writer import Summary, spool_key
from data_pipeline.curate.types import Source, Span
from data_pipeline.errors import BadInput
from data_pipeline.folder import absolute, neighbour
from data_pipeline.records import ClipRecord
from data_pipeline.shards import ShardReaders

# Reasons that may be the machine's fault, not the source's: the next run tries again.
PASSING = frozenset({"crashed", "timeout", "unreadable", "not_found"})
_CHUNK = 200  # sources a file
_PAGES = 1000  # up to so many sources each have a page of their own
_DECISION = ".decision.json"


@dataclasses.dataclass(frozen=True)
class Work:
  """Paths of the work folder. Picklable."""

  folder: Path

  @classmethod
  def of(cls, out: str | os.PathLike) -> "Work":
    """That of a dataset. Raises BadInput: `out` is not on this machine."""
    return cls(neighbour(absolute(out), "curate"))

  @property
  def spools(self) -> Path:
    return self.folder / "spools"

  @property
  def answers(self) -> Path:
    return self.folder / "answers"

  @property
  def next(self) -> Path:
    return self.folder / "next"

  @property
  def plan(self) -> Path:
    return self.folder / "plan.json"

  @property
  def stopped(self) -> Path:
    return self.folder / "stopped.json"

  @property
  def take_down(self) -> Path:
    return self.folder / "take_down.json"

  @property
  def captions(self) -> Path:
    return self.folder / "captions.json"

  def prepare(self) -> None:
    """Makes what a run writes into. Raises BadInput: it cannot be made."""
    try:
      shutil.rmtree(self.next, ignore_errors=True)
      for folder in (self.spools, self.next):
        folder.mkdir(parents=True, exist_ok=True)
      self.stopped.unlink(missing_ok=True)
      self._forget()
    except OSError as error:
      raise BadInput(
        f"curate: {self.folder} cannot be written ({error.strerror}). Give another --out."
      ) from error

  def _forget(self) -> None:
    """Removes spools that are made again, and records that no summary names, as a kill leaves."""
    named = set()
    for path, summary in list_spools(self):
      if PASSING.isdisjoint(row["reason"] for row in summary["rejects"]):
        named.add(summary["file"])
      else:
        path.unlink()
    for path in self.spools.glob("*.array_record"):
      if path.name not in named:
        path.unlink()

  def write_sources(self, sources: Iterable[Source]) -> list["Page"]:
    """Writes the sources into files. Returns where they are, in pages: one a source if few."""
    folder = self.folder / "sources"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows, pages = list(map(dataclasses.asdict, sources)), []
    step = min(_CHUNK, -(-len(rows) // _PAGES) or 1)
    for start in range(0, len(rows), _CHUNK):
      chunk = rows[start : start + _CHUNK]
      path = folder / f"{start // _CHUNK:05d}.jsonl"
      write_rows(path, chunk)
      pages += [Page(str(path), i, min(step, len(chunk) - i)) for i in range(0, len(chunk), step)]
    return pages


class Page(NamedTuple):
  """Some lines of a file of sources: what is dealt out to workers."""

  path: str
  first: int
  count: int


def read_sources(page: tuple[str, int, int]) -> Iterator[Source]:
  """The sources of a `Page`."""
  path, first, count = page
  return map(read_source, itertools.islice(read_rows(Path(path)), first, first + count))


def read_source(row: Mapping[str, Any]) -> Source:
  """A source out of its JSON object."""
  spans = tuple(Span(a, b, tuple(captions)) for a, b, captions in row["spans"])
  return Source(**{**row, "captions": tuple(row["captions"]), "spans": spans})


def write_rows(path: Path, rows: Iterable[Any]) -> None:
  """Writes JSON lines, whole or not at all."""
  part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")  # pids repeat among hosts
  try:
    with open(part, "w", encoding="utf-8") as file:
      file.writelines(f"{json.dumps(row, sort_keys=True)}\n" for row in rows)
      file.flush()
      os.fsync(file.fileno())
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def read_rows(path: Path) -> Iterator[Any]:
  """JSON lines of a file; none if there is none. Raises BadInput: it is damaged."""
  if not path.exists():
    return
  with open(path, encoding="utf-8") as file:
    for number, line in enumerate(file, 1):
      try:
        yield json.loads(line)
      except ValueError as error:
        raise BadInput(
          f"curate: {path}: line {number} is damaged ({error}). Restore the file."
        ) from error


# ---- decisions


@dataclasses.dataclass(frozen=True)
class Decision:
  """What becomes of the clips of a source.

  Attributes:
    digest: of all that decided.
    copies: clips that go, by id, each with the one that it is like.
    captions: of the others, by id; None when nobody is asked, and they are made on writing.
    failed: clips that go because they got no caption, by id, with the reason.
    usage: fields of `chat.Usage`, of all answers.
    answers: names of the answers that are kept.
    is_final: False where an endpoint gave no answer: the next run asks again.
  """

  digest: str
  copies: dict[str, str]
  captions: dict[str, list[str]] | None = None
  failed: dict[str, str] = dataclasses.field(default_factory=dict)
  usage: list[float] = dataclasses.field(default_factory=lambda: [0, 0, 0, 0.0])
  answers: list[str] = dataclasses.field(default_factory=list)
  is_final: bool = True

  def keeps(self, clip: Mapping[str, Any]) -> bool:
    return clip["id"] not in self.copies and clip["id"] not in self.failed


def decision_path(summary: Summary, work: Work) -> Path:
  """Of a source that has clips. Only the name of the source is looked at."""
  return work.spools / (spool_key(summary["source"]["name"]) + _DECISION)


def read_decision(summary: Summary, work: Work) -> Decision | None:
  """What was decided of a source that has clips; None if nothing was."""
  try:
    return Decision(**json.loads(decision_path(summary, work).read_text(encoding="utf-8")))
  except (FileNotFoundError, ValueError, TypeError):
    return None


def digest_of(value: Any) -> str:
  """Hash of something JSON-able."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


# ---- records


class Ref(NamedTuple):
  """A clip that stays: where it lies, and what it gets."""

  id: str
  file: str
  row: int
  camera: str
  captions: list[str] | None


def list_refs(summary: Summary, decision: Decision) -> Iterator[Ref]:
  """The clips of a source that stay."""
  for row, clip in enumerate(summary["clips"]):
    if decision.keeps(clip):
      captions = None if decision.captions is None else decision.captions[clip["id"]]
      yield Ref(clip["id"], summary["file"], row, clip["camera"], captions)


def read_clips(refs: Iterable[Ref], work: Work) -> Iterator[tuple[Ref, ClipRecord]]:
  """The records of clips, one at a time, as they were cut.

  Raises:
    RuntimeError: a spool is damaged.
  """
  readers = ShardReaders()
  for ref in refs:
    with readers.lend(work.spools / ref.file) as reader:
      (data,) = reader.read([ref.row])
    record = stored.deserialize("clip", data)
    assert isinstance(record, ClipRecord)
    yield ref, record


def list_spools(work: Work) -> Iterator[tuple[Path, Summary]]:
  """Every summary in the work folder, of whatever run."""
  for path in sorted(work.spools.glob("*.json")):
    if not path.name.endswith(_DECISION):
      try:
        yield path, json.loads(path.read_bytes())
      except ValueError:
        continue  # is made again


# ---- failures


@contextmanager
def reporting(work: Work) -> Iterator[None]:
  """Leaves word of what ends the job, for the process that runs it: a worker's exceptions reach it
  as text, wrapped, if at all."""
  try:
    yield
  except (BadInput, OSError) as error:
    number = error.errno if isinstance(error, OSError) else None
    if number is None or number in FULL:
      write_rows(work.stopped, [{"errno": number, "text": str(error)}])
    raise


def raise_reported(work: Work) -> None:
  """Raises what a worker left word of, if one did."""
  for row in read_rows(work.stopped):
    if row["errno"] is None:
      raise BadInput(row["text"])
    raise OSError(row["errno"], f"{os.strerror(row['errno'])} (spools, parts)", str(work.folder))

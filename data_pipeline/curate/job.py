"""A curation from beginning to end: raw videos in, a dataset of clips out.

OUT/sources.jsonl    every source that was looked at, with the facts of its clips in the dataset
OUT/rejects.jsonl    what became no record: source, start_frame, end_frame, reason, detail
OUT/report.html, report.json
OUT/curation.json    which jobs made it
OUT/removed.jsonl    sources that were taken down: they do not come back
.OUT.curate/         the work folder, see `spool`

A rerun of a finished job changes nothing; that of a killed one makes what is missing, and tries
sources again that were rejected for what may have been the machine's fault (`spool.PASSING`). Once
the job is finished, --append does so, for sources that gave no clip. But for such faults, the
output is a function of the sources and the settings alone.
"""

import dataclasses
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline import change
from data_pipeline.curate import pipeline, tables
from data_pipeline.curate.chat import Chat
from data_pipeline.curate.settings import Settings
from data_pipeline.curate.settled import read_settled
from data_pipeline.curate.sources import find_sources
from data_pipeline.curate.spool import PASSING, Work, digest_of, read_rows, write_rows
from data_pipeline.curate.spool_writer import read_summary, spool_key
from data_pipeline.curate.types import Reject, Source
from data_pipeline.curate.workers import PartWriter, decides_captions
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.folder import Claim, absolute, mend, writable
from data_pipeline.parts import Parts

_EVERY_SECONDS = 1.0

Progress = Callable[[str, int, int], None]  # what, done, of how many


class _Found(NamedTuple):
  """What the input holds: sources that may be used, and rows of what is no source."""

  sources: list[Source]
  rejects: list[dict[str, Any]]
  digest: str


def curate(
  given: str,
  out: str | os.PathLike,
  settings: Settings,
  *,
  workers: int | None = None,
  options: Sequence[str] = (),
  is_append: bool = False,
  progress: Progress | None = None,
) -> dict[str, Any]:
  """Makes, or goes on making, the dataset of clips of some raw videos.

  Args:
    given: what `find_sources` takes: a folder, glob, url, list, tar or TFDS dataset.
    out: folder of the dataset.
    settings: of all stages.
    workers: processes of the embedded runner; None for one a core.
    options: of Beam; with `--runner=…` that runner's.
    is_append: adds the sources that a dataset at `out` does not know, or that it is to try again.
    progress: told how far it is, about every second.
  Returns:
    JSON-able: `out`, `clips`, `without_captions` (clips), `sources`, `sources_without_clips`,
    `rejects` (rows by reason), `seconds`, `fingerprint`, and `usage` of the captioner.
  Raises:
    BadInput: an input, setting or option that does not fit; `out` holds the clips of another job;
      no clip is left.
    OSError: the disk is full.
  """
  begin = time.monotonic()
  place = absolute(out)
  mend(place)
  work = Work.of(place)
  beam_options = pipeline.read_options(options, workers or os.cpu_count() or 1)
  found = _find(given, settings)
  with writable(work.folder):
    claim = Claim(work.folder)
  with claim:
    if (place / "meta.json").exists():
      found = _new_ones(place, settings, found, is_append)
    elif is_append:
      raise BadInput(f"curate: --append: {out} holds no dataset yet. Leave --append out.")
    if found is not None:
      _make(place, work, settings, found, beam_options, is_append, progress)
  return tables.describe(place) | {"seconds": round(time.monotonic() - begin, 1)}


def _make(place, work, settings, found, options, is_append: bool, progress) -> None:
  """Cuts, decides and writes."""
  work.prepare()
  found = found._replace(sources=_not_removed(found.sources, place))
  paths = work.write_sources(found.sources)
  there = [str(place / "sources.jsonl")] if is_append else []
  asked = settings.captions.chat if settings.captions.prompts else None
  chat = Chat(asked, work.answers) if asked else None
  with _watching(work, settings, found.sources, progress):
    pipeline.analyse(options, work, settings, chat=chat, paths=paths, there=there)
  _assemble(place, work, settings, found, options, paths, is_append)


def _find(given: str, settings: Settings) -> _Found:
  listed = list(find_sources(given))
  sources = sorted((s for s in listed if isinstance(s, Source)), key=lambda source: source.name)
  rejects = [one.row() for one in listed if isinstance(one, Reject)]
  if not sources:
    raise BadInput(
      f"curate: --input={given} holds no file that could be a video ({len(rejects)} others). "
      "Give a folder, glob, list, archive or dataset of videos."
    )
  plain = [dataclasses.asdict(source) for source in sources]
  return _Found(sources, rejects, digest_of([_decides(settings), plain]))


def _decides(settings: Settings) -> list:
  """All that decides the clips of given sources."""
  near, write = dataclasses.asdict(settings.near), settings.write
  said = decides_captions(settings.captions)
  return [settings.cut_digest(), near, said, write.name, write.shard_bytes]


def _mark(settings: Settings) -> str:
  """Fact of the dataset: the settings that decide what a clip is."""
  return digest_of(_decides(settings)[:3])


def _new_ones(place: Path, settings: Settings, found: _Found, is_append: bool) -> _Found | None:
  """What is to be added to a dataset that is there; None for nothing.

  Raises:
    BadInput: another job made it, or one of other settings.
  """
  again = _passing(place) if is_append else set()
  if found.digest in tables.read_jobs(place) and again.isdisjoint(s.name for s in found.sources):
    return None
  if not is_append:
    raise BadInput(
      f"curate: {place} holds clips of other sources or settings. Give --append to add new "
      "sources by the same settings, or another --out."
    )
  if Dataset.open(place, kind="clip").meta.get("curation") != _mark(settings):
    raise BadInput(
      f"curate: --append: {place} was made by other settings of shots, windows, scores, near, "
      "captions or write. Take those, or another --out."
    )
  known = (row for row in read_rows(place / "sources.jsonl") if row["name"] not in again)
  names = {row["name"]: row.get("stamp") for row in known}
  taken = [s.name for s in found.sources if names.get(s.name, s.stamp) != s.stamp]
  if taken:
    raise BadInput(
      f"curate: --append: {len(taken)} sources have the names of others in {place} ({taken[0]}). "
      "Give the folder above as --input, or take those down first."
    )
  return found._replace(sources=[source for source in found.sources if source.name not in names])


def _passing(place: Path) -> set[str]:
  """Sources without clips in a dataset, all for reasons that may have passed."""
  reasons: dict[str, set[str]] = {}
  for row in read_rows(place / "rejects.jsonl"):
    reasons.setdefault(row["source"], set()).add(row["reason"])
  used = {row["name"] for row in read_rows(place / "sources.jsonl") if row["clips"]}
  return {name for name, found in reasons.items() if found <= PASSING} - used


def _not_removed(sources: list[Source], place: Path) -> list[Source]:
  gone = {row["source"] for row in read_rows(place / "removed.jsonl")}
  return [source for source in sources if source.name not in gone]


def _assemble(place, work, settings, found, options, paths, is_append: bool) -> None:
  """Writes the parts, the dataset and its tables."""
  settled = list(read_settled(found.sources, work, settings))
  sizes: Counter[str] = Counter()
  for one in settled:
    for clip in one.kept():
      sizes[one.summary["split"]] += clip["bytes"] + 1
  rows = tables.sort_rejects(settled, found.rejects)
  if not sizes:
    if is_append:
      tables.append_tables(place, settled, rows, job=found.digest)
      return
    write_rows(work.folder / "rejects.jsonl", rows)
    reasons = ", ".join(f"{n} {why}" for why, n in tables.count_reasons(rows).most_common(4))
    raise BadInput(
      f"curate: none of {len(found.sources)} sources gives a clip ({reasons}). Look into "
      f"{work.folder / 'rejects.jsonl'}, and change the limits."
    )
  counts = {split: -(-size // settings.write.shard_bytes) for split, size in sorted(sizes.items())}
  decided = [one.decision.digest if one.decision else None for one in settled]
  digest = digest_of([found.digest, decided, counts])
  target = work.folder / "append" / "clips" if is_append else place
  with _make_parts(target, work, settings, digest) as parts:
    missing = frozenset(parts.missing(counts))
    if missing:
      writer = PartWriter(settings, work, parts, counts, missing)
      pipeline.write(options, work, writer, paths=paths)
      for part in parts.missing(counts):
        parts.write(*part, [])  # no clip's hash fell on it
    if not is_append:
      tables.write_tables(parts.folder, settled, rows, job=found.digest, work=work)
    dataset = parts.finish(counts)
  if is_append:
    change.append(place, dataset)
    tables.append_tables(place, settled, rows, job=found.digest)
    shutil.rmtree(target.parent, ignore_errors=True)


def _make_parts(target: Path, work: Work, settings: Settings, digest: str) -> Parts:
  """The parts of this plan; those of another one are removed, as the work folder is ours."""
  made_of = next(read_rows(work.plan), {}).get("digest")
  if target.exists() and target.is_relative_to(work.folder):
    shutil.rmtree(target)
  parts = Parts(
    target,
    "clip",
    name=settings.write.name,
    meta={"curation": _mark(settings)},
    plan={"digest": digest},
    storage="encoded",
    start_over=made_of != digest,
  )
  write_rows(work.plan, [{"digest": digest}])
  return parts


@contextmanager
def _watching(
  work: Work, settings: Settings, sources: list[Source], progress: Progress | None
) -> Iterator[None]:
  """Tells how many sources are cut, from a thread, while the graph runs."""
  if progress is None or not sources:
    yield
    return
  ended = threading.Event()
  wanted = {f"{spool_key(source.name)}.json": source for source in sources}
  there = wanted.keys() & set(os.listdir(work.spools))
  stale = {  # of other settings, or of another file: until they are written anew
    name: os.stat(work.spools / name).st_mtime_ns
    for name in there
    if read_summary(wanted[name], settings, work.spools) is None
  }

  def look() -> None:
    with suppress(OSError):  # the folder is away for a moment: the job does not depend on this
      done = wanted.keys() & set(os.listdir(work.spools))
      old = sum(os.stat(work.spools / name).st_mtime_ns == at for name, at in stale.items())
      progress("cut", len(done) - old, len(wanted))

  def watch() -> None:
    while not ended.wait(_EVERY_SECONDS):
      look()

  watcher = threading.Thread(target=watch, daemon=True)
  look()
  watcher.start()
  try:
    yield
  finally:
    ended.set()
    watcher.join()
    look()

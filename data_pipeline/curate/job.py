"""A curation from beginning to end: raw videos in, a dataset of clips out.

OUT/sources.jsonl    every source that was looked at, with the facts of its clips in the dataset
OUT/rejects.jsonl    what became no record: source, start_frame, end_frame, reason, detail
OUT/report.html, report.json
OUT/curation.json    which jobs made it
OUT/removed.jsonl    sources that were taken down: they do not come back
.OUT.curate/         the work folder, see `spool`

A rerun of a finished job changes nothing; that of a killed one makes what is missing. The output is
a function of the sources and the settings alone.
"""

import dataclasses
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline import change, hashing
from data_pipeline.curate import pipeline
from data_pipeline.curate.chat import Chat, Usage
from data_pipeline.curate.report import write_report
from data_pipeline.curate.settings import Settings
from data_pipeline.curate.sources import find_sources
from data_pipeline.curate.spool import (
  Decision,
  Ref,
  Work,
  digest_of,
  list_refs,
  read_clips,
  read_decision,
  read_rows,
  write_rows,
)
from data_pipeline.curate.spool_writer import Summary, read_summary
from data_pipeline.curate.types import Reject, Source
from data_pipeline.curate.workers import PartWriter, decides_captions
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.folder import absolute, mend
from data_pipeline.parts import Parts

SHEET = 24  # clips of the report's contact sheet
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
    is_append: adds the sources that a dataset at `out` does not know.
    progress: told how far it is, about every second.
  Returns:
    JSON-able: `out`, `clips`, `without_captions` (clips), `sources`, `rejects` (rows by reason),
    `seconds`, `fingerprint`, and `usage` of the captioner.
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
  if (place / "meta.json").exists():
    known = _known(place, found, is_append)
    if known is None:
      return _result(place, begin)
    found = known
  elif is_append:
    raise BadInput(f"curate: --append: {out} holds no dataset yet. Leave --append out.")
  work.prepare()
  found = found._replace(sources=_not_removed(found.sources, place))
  paths = work.write_sources(found.sources)
  there = [str(place / "sources.jsonl")] if is_append else []
  asked = settings.captions.chat if settings.captions.prompts else None
  chat = Chat(asked, work.answers) if asked else None
  with _watching(work, found.sources, progress):
    pipeline.analyse(beam_options, work, settings, chat=chat, paths=paths, there=there)
  _assemble(place, work, settings, found, beam_options, paths, is_append)
  return _result(place, begin)


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


def _known(place: Path, found: _Found, is_append: bool) -> _Found | None:
  """What is to be added to a dataset that is there; None for nothing.

  Raises:
    BadInput: another job made it.
  """
  jobs = _read_json(place / "curation.json").get("jobs", [])
  if found.digest in jobs:
    return None
  if not is_append:
    raise BadInput(
      f"curate: {place} holds clips of other sources or settings. Give --append to add the new "
      "sources, or another --out."
    )
  names = {row["name"] for row in read_rows(place / "sources.jsonl")}
  return found._replace(sources=[source for source in found.sources if source.name not in names])


def _not_removed(sources: list[Source], place: Path) -> list[Source]:
  gone = {row["source"] for row in read_rows(place / "removed.jsonl")}
  return [source for source in sources if source.name not in gone]


class _Settled(NamedTuple):
  """A source, what was cut from it, and what was decided."""

  summary: Summary
  decision: Decision | None

  def refs(self) -> Iterator[Ref]:
    return list_refs(self.summary, self.decision) if self.decision else iter(())

  def kept(self) -> list[dict[str, Any]]:
    """Facts of the clips that stay."""
    decision = self.decision
    return [clip for clip in self.summary["clips"] if decision and decision.keeps(clip)]

  def row(self) -> dict[str, Any]:
    """Of sources.jsonl."""
    usage = list(self.decision.usage) if self.decision else list(Usage())
    return {"name": self.summary["source"]["name"], "clips": self.kept(), "usage": usage}

  def rejects(self) -> Iterator[dict[str, Any]]:
    yield from self.summary["rejects"]
    if self.decision:
      for clip in self.summary["clips"]:
        copy, failed = self.decision.copies.get(clip["id"]), self.decision.failed.get(clip["id"])
        for reason, detail in (("duplicate", copy and f"of {copy}"), ("caption_failed", failed)):
          if detail:
            stop = clip["start_frame"] + clip["frames"]
            yield Reject(clip["source"], clip["start_frame"], reason, stop, detail).row()


def _settled(sources: Iterable[Source], work: Work, settings: Settings) -> Iterator[_Settled]:
  for source in sources:
    summary = read_summary(source, settings, work.spools)
    if summary is None:
      raise RuntimeError(f"curate: the spool of {source.name} is gone.")
    yield _Settled(summary, read_decision(summary, work) if summary["clips"] else None)


def _assemble(place, work, settings, found, options, paths, is_append: bool) -> None:
  """Writes the parts, the dataset and its tables."""
  settled = lambda: _settled(found.sources, work, settings)  # noqa: E731
  sizes: Counter[str] = Counter()
  decided = []
  for one in settled():
    for clip in one.kept():
      sizes[one.summary["split"]] += clip["bytes"] + 1
    decided.append(one.decision.digest if one.decision else None)
  rows = _rows(settled(), found.rejects)
  if not sizes:
    if is_append:
      _append_tables(place, list(map(_Settled.row, settled())), rows, found.digest)
      return
    write_rows(work.folder / "rejects.jsonl", rows)
    reasons = ", ".join(f"{n} {reason}" for reason, n in _count(rows).most_common(4))
    raise BadInput(
      f"curate: none of {len(found.sources)} sources gives a clip ({reasons}). Look into "
      f"{work.folder / 'rejects.jsonl'}, and change the limits."
    )
  counts = {split: -(-size // settings.write.shard_bytes) for split, size in sorted(sizes.items())}
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
      _write_tables(parts.folder, list(map(_Settled.row, settled())), rows, [found.digest])
      _report(parts.folder, settled, rows, work)
    dataset = parts.finish(counts)
  if is_append:
    change.append(place, dataset)
    _append_tables(place, list(map(_Settled.row, settled())), rows, found.digest)
    shutil.rmtree(target.parent, ignore_errors=True)


def _make_parts(target: Path, work: Work, settings: Settings, digest: str) -> Parts:
  """The parts of this plan; those of another one are removed, as the work folder is ours."""
  made_of = _read_json(work.plan).get("digest")
  if target.exists() and target != Path(target.anchor) and target.is_relative_to(work.folder):
    shutil.rmtree(target)
  parts = Parts(
    target,
    "clip",
    name=settings.write.name,
    meta={"curation": digest_of(_decides(settings)[:3])},
    plan={"digest": digest},
    storage="encoded",
    start_over=made_of != digest,
  )
  write_rows(work.plan, [{"digest": digest}])
  return parts


def _rows(settled: Iterable[_Settled], listed: list[dict]) -> list[dict[str, Any]]:
  """Rows of rejects.jsonl, sorted."""
  rows = [row for one in settled for row in one.rejects()] + listed
  key = lambda row: (row["source"], row["start_frame"] or 0, row["reason"], row["detail"])  # noqa: E731
  return sorted(rows, key=key)


def _count(rows: Iterable[dict]) -> Counter[str]:
  return Counter(row["reason"] for row in rows)


def _write_tables(folder: Path, sources: list[dict], rejects: list[dict], jobs: list[str]) -> None:
  write_rows(folder / "sources.jsonl", sorted(sources, key=lambda row: row["name"]))
  write_rows(folder / "rejects.jsonl", rejects)
  write_rows(folder / "curation.json", [{"jobs": jobs}])


def _append_tables(place: Path, sources: list[dict], rejects: list[dict], job: str) -> None:
  """Adds rows to the tables of a dataset. The last file tells that it is done."""
  old = {row["name"]: row for row in read_rows(place / "sources.jsonl")}
  all_sources = list((old | {row["name"]: row for row in sources}).values())
  names = {row["name"] for row in sources}
  kept = [row for row in read_rows(place / "rejects.jsonl") if row["source"] not in names]
  known = {json.dumps(row, sort_keys=True) for row in kept}
  kept += [row for row in rejects if json.dumps(row, sort_keys=True) not in known]
  order = lambda row: (row["source"], row["start_frame"] or 0, row["reason"], row["detail"])  # noqa: E731
  jobs = [*_read_json(place / "curation.json").get("jobs", []), job]
  clips = [clip for row in all_sources for clip in row["clips"]]
  sheet = _sheet_of(Dataset.open(place, kind="clip"))
  write_report(place, clips, kept, _facts(all_sources), sheet)
  _write_tables(place, all_sources, sorted(kept, key=order), jobs)


def _report(folder: Path, settled: Callable, rows: list[dict], work: Work) -> None:
  clips = (clip for one in settled() for clip in one.kept())
  refs = sorted((ref for one in settled() for ref in one.refs()), key=_draw)[:SHEET]
  sheet = [
    dataclasses.replace(record, captions=tuple(ref.captions or record.captions))
    for ref, record in read_clips(refs, work)
  ]
  facts = _facts([one.row() for one in settled()])
  write_report(folder, clips, rows, facts, sheet)


def _draw(ref: Ref) -> int:
  return hashing.hash_text(f"sheet {ref.id}")


def _sheet_of(dataset: Dataset) -> list:
  order = hashing.permutation(len(dataset), hashing.hash_text("sheet"))[:SHEET]
  return [dataset.read(row) for row in sorted(order.tolist())]


def _facts(sources: list[dict]) -> dict[str, Any]:
  usage = Usage()
  for row in sources:
    usage = usage.plus(Usage(*row["usage"]))
  return {"sources": len(sources), "usage": usage._asdict()}


def _result(place: Path, begin: float) -> dict[str, Any]:
  dataset = Dataset.open(place, kind="clip")
  sources = list(read_rows(place / "sources.jsonl"))
  return {
    "out": str(place),
    "clips": len(dataset),
    "without_captions": int((np.diff(dataset.index["caption_offsets"]) == 0).sum()),
    "sources": len(sources),
    "rejects": dict(sorted(_count(read_rows(place / "rejects.jsonl")).items())),
    "usage": _facts(sources)["usage"],
    "seconds": round(time.monotonic() - begin, 1),
    "fingerprint": dataset.fingerprint,
  }


def _read_json(path: Path) -> dict[str, Any]:
  return next(read_rows(path), {})


@contextmanager
def _watching(work: Work, sources: list[Source], progress: Progress | None) -> Iterator[None]:
  """Tells how many sources are cut, from a thread, while the graph runs."""
  if progress is None:
    yield
    return
  ended = threading.Event()

  def look() -> None:
    while not ended.wait(_EVERY_SECONDS):
      done = sum(name.endswith(".json") for name in os.listdir(work.spools))
      done -= sum(name.endswith(".decision.json") for name in os.listdir(work.spools))
      progress("cut", min(done, len(sources)), len(sources))

  watcher = threading.Thread(target=look, daemon=True)
  watcher.start()
  try:
    yield
  finally:
    ended.set()
    watcher.join()

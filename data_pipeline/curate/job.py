"""A curation from beginning to end: raw videos in, a dataset of clips out.

OUT/sources.jsonl    every source that was looked at, with the facts of its clips in the dataset
OUT/rejects.jsonl    what became no record: source, start_frame, end_frame, reason, detail
OUT/report.html, report.json
OUT/curation.json    which jobs made it
OUT/removed.jsonl    sources that were taken down: they do not come back (`known` says what is new)
.OUT.curate/         the work folder, see `spool`

A rerun of a finished job changes nothing; that of a killed one makes what is missing, and tries
sources again that were rejected for what may have been the machine's fault (`spool.PASSING`). Once
the job is finished, --append does so, for sources that gave no clip. But for such faults, the
output is a function of the sources and the settings alone.
"""

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_pipeline import change
from data_pipeline.curate import pipeline, tables
from data_pipeline.curate.chat import Chat
from data_pipeline.curate.known import Found, caption_mark, find, mark, new_ones, without_removed
from data_pipeline.curate.settings import Settings
from data_pipeline.curate.settled import Settled, read_settled
from data_pipeline.curate.spool import Work, digest_of, read_rows, write_rows
from data_pipeline.curate.spool_writer import read_summary, spool_key
from data_pipeline.curate.types import Source
from data_pipeline.curate.workers import Counts, PartWriter, assign
from data_pipeline.errors import BadInput
from data_pipeline.folder import Claim, absolute, mend, writable
from data_pipeline.parts import Parts

_EVERY_SECONDS = 1.0

Progress = Callable[[str, int, int], None]  # what, done, of how many


def curate(
  given: str,
  out: str | os.PathLike,
  settings: Settings,
  *,
  workers: int | None = None,
  options: Sequence[str] = (),
  is_append: bool = False,
  progress: Progress | None = None,
  tell: Callable[[str], None] = lambda line: None,
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
    tell: told, line by line, what a person is to know of the input, before the work begins.
  Returns:
    JSON-able: `out`, `clips`, `without_captions` (clips), `captions` that were given with sources
    (see `placing.sum_captions`), `long_captions` (`clips`, and of the longest caption the clip and
    its `words`), `sources`, `sources_without_clips`, `rejects` (rows by reason), `seconds`,
    `fingerprint`, `usage` of the captioner, and `taken_down`: sources of the input that were.
  Raises:
    BadInput: an input, setting or option that does not fit; `out` holds the clips of another job;
      no clip is left.
    OSError: the disk is full.
  """
  begin = time.monotonic()
  place = absolute(out)
  mend(place)
  work = Work.of(place)
  workers = workers or os.cpu_count() or 1
  beam_options = pipeline.read_options(options, workers)
  found = find(given, settings, tell)
  with writable(work.folder):
    claim = Claim(work.folder)
  with claim:
    found = without_removed(found, place)
    new: Found | None = found
    if (place / "meta.json").exists():
      new = new_ones(place, settings, found, is_append, workers)
    elif is_append:
      raise BadInput(f"curate: --append: {out} holds no dataset yet. Leave --append out.")
    if new is not None:
      _make(place, work, settings, new, beam_options, is_append, progress)
  seconds = round(time.monotonic() - begin, 1)
  return tables.describe(place) | {"seconds": seconds, "taken_down": found.taken_down}


def _make(place, work, settings, found, options, is_append: bool, progress) -> None:
  """Cuts, decides and writes."""
  work.prepare()
  pages = work.write_sources(found.sources)
  there = [str(place / "sources.jsonl")] if is_append else []
  asked = settings.captions.chat if settings.captions.prompts else None
  chat = Chat(asked, work.answers) if asked else None
  with _watching(work, settings, found.sources, progress):
    pipeline.analyse(options, work, settings, chat=chat, pages=pages, there=there)
  _assemble(place, work, settings, found, options, pages, is_append)


def _assemble(place, work, settings, found, options, pages, is_append: bool) -> None:
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
      pipeline.write(options, work, writer, pages=pages)
      _write_empty(parts, counts, settled)
    if not is_append:
      made_by = dict(job=found.digest, captions=caption_mark(settings))
      tables.write_tables(parts.folder, settled, rows, **made_by, work=work)
    dataset = parts.finish(counts)
  if is_append:
    change.append(place, dataset)
    tables.append_tables(place, settled, rows, job=found.digest)
    shutil.rmtree(target.parent, ignore_errors=True)


def _write_empty(parts: Parts, counts: Counts, settled: list[Settled]) -> None:
  """Writes the parts that no clip's hash falls on. Raises RuntimeError: another one is missing."""
  missing = parts.missing(counts)
  if missing:
    used = {assign(r, one.summary["split"], counts) for one in settled for r in one.refs()}
    if lost := used.intersection(missing):
      raise RuntimeError(f"curate: the runner left out {len(lost)} parts. Run it again.")
  for part in missing:
    parts.write(*part, [])


def _make_parts(target: Path, work: Work, settings: Settings, digest: str) -> Parts:
  """The parts of this plan; those of another one are removed, as the work folder is ours."""
  made_of = next(read_rows(work.plan), {}).get("digest")
  if target.exists() and target.is_relative_to(work.folder):
    shutil.rmtree(target)
  parts = Parts(
    target,
    "clip",
    name=settings.write.name,
    meta={"curation": mark(settings)},
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

"""Compares an input with a dataset of clips: what is new, known, or not what it was."""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.curate import tables
from data_pipeline.curate.content import Compared, compare
from data_pipeline.curate.notes import Notes
from data_pipeline.curate.settings import Settings
from data_pipeline.curate.sources import find_sources
from data_pipeline.curate.spool import PASSING, digest_of, read_rows
from data_pipeline.curate.types import Reject, Source
from data_pipeline.curate.workers import decides_captions
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput

_SAID = ("name", "captions", "spans", "licence", "split", "fps")  # of a source, wherever it lies


class Found(NamedTuple):
  """The content of an input.

  Attributes:
    sources: that may be used, by name.
    rejects: rows of what is no source.
    digest: of the settings, and of the names of the sources and what is said of them.
    listed: of the settings, and of all that the listing tells of the sources: where and when.
    taken_down: how many others were taken down.
  """

  sources: list[Source]
  rejects: list[dict[str, Any]]
  digest: str
  listed: str
  taken_down: int = 0


def find(given: str, settings: Settings, tell: Callable[[str], None] = lambda line: None) -> Found:
  """Lists an input, and tells line by line what a person is to know of it.

  Raises:
    BadInput: it holds no source, or what is said of one has no certain place.
  """
  notes = Notes()
  columns = settings.sources.wanted
  listed = list(find_sources(given, caption_columns=columns, notes=notes))
  sources = sorted((s for s in listed if isinstance(s, Source)), key=lambda source: source.name)
  rejects = [one.row() for one in listed if isinstance(one, Reject)]
  if not sources:
    raise BadInput(
      f"curate: --input={given} holds no file that could be a video ({len(rejects)} others). "
      "Give a folder, glob, list, archive or dataset of videos."
    )
  for line in notes.lines():
    tell(line)
  plain = [dataclasses.asdict(source) for source in sources]
  said = [{name: row[name] for name in _SAID} for row in plain]
  decides = _decides(settings)
  return Found(sources, rejects, digest_of([decides, said]), digest_of([decides, plain]))


def _decides(settings: Settings) -> list:
  """All that decides the clips of given sources."""
  near, write = dataclasses.asdict(settings.near), settings.write
  said = decides_captions(settings.captions)
  return [settings.cut_digest(), near, said, write.name, write.shard_bytes]


def mark(settings: Settings) -> str:
  """Fact of the dataset: the settings that decide what a clip is."""
  return digest_of(_decides(settings)[:3])


def caption_mark(settings: Settings) -> str:
  """Digest of the settings that decide the words of a clip, however it was cut."""
  write = settings.write
  said = decides_captions(settings.captions)
  return digest_of([said, write.inherit_captions, write.licence, write.held_out_fraction])


def new_ones(
  place: Path, settings: Settings, found: Found, is_append: bool, threads: int
) -> Found | None:
  """Finds what is to be added to a dataset that is there; None for nothing.

  Raises:
    BadInput: another job made it, or one of other settings; the content of a known source, or what
      is said of it, is not what it was.
  """
  jobs, names = set(tables.read_jobs(place)), {source.name for source in found.sources}
  again = _passing(place) & names if is_append else set()
  if found.listed in jobs and not again:
    return None
  is_alike = Dataset.open(place, kind="clip").meta.get("curation") == mark(settings)
  if not is_alike and is_append:
    raise BadInput(
      f"curate: --append: {place} was made by other settings of shots, windows, scores, near, "
      "captions or write. Take those, or another --out."
    )
  rows = {row["name"]: row for row in read_rows(place / "sources.jsonl")} if is_alike else {}
  known = {name: row for name, row in rows.items() if name not in again}
  compared = compare(found.sources, known, threads)
  empty = {name for name, row in known.items() if not row["clips"]}
  refuse_changed(place, compared, empty)
  is_same = is_alike and not (again or compared.mended or compared.other)
  if is_same and (found.digest in jobs or names == rows.keys()):
    renew_stamps(place, compared)
    return None
  if not is_append:
    raise BadInput(
      f"curate: {place} holds clips of other sources or settings. Give --append to add new "
      "sources by the same settings, or another --out."
    )
  if not names:
    raise BadInput(
      f"curate: --append: all {found.taken_down} sources of the input were taken down from "
      f"{place}, which is for good: they do not come back. A video that may be used after all "
      "needs another name."
    )
  renew_stamps(place, compared)
  changed = {source.name for source in [*compared.mended, *compared.other]}
  taken = known.keys() - (empty & changed)
  return found._replace(sources=[source for source in found.sources if source.name not in taken])


def refuse_changed(place: Path, compared: Compared, empty: Collection[str] = ()) -> None:
  """Raises BadInput: a source with clips is not what it was.

  Args:
    place: of the dataset.
    compared: its sources.
    empty: names of those that have no clips.
  """
  refuse_other(place, compared, empty)
  mended = [source.name for source in compared.mended if source.name not in empty]
  if mended:
    raise BadInput(
      f"curate: {len(mended)} sources in {place} have other captions, licences or splits now "
      f"({mended[0]}). sora curate --replace-captions, with the same --config and --input, gives "
      "their clips these captions."
    )


def refuse_other(place: Path, compared: Compared, empty: Collection[str] = ()) -> None:
  """Raises BadInput: the content of a source with clips is not what it was."""
  other = [source.name for source in compared.other if source.name not in empty]
  if other:
    raise BadInput(
      f"curate: {len(other)} sources have the names of others in {place} ({other[0]}), or their "
      "files have changed. Give the folder above as --input, give the new files other names, or "
      "take another --out."
    )


def renew_stamps(place: Path, compared: Compared) -> None:
  """Keeps the stamps of sources that were touched only, so that they are not read again."""
  if compared.touched:
    tables.change_sources(place, {s.name: {"stamp": s.stamp} for s in compared.touched})


def _passing(place: Path) -> set[str]:
  """Sources without clips in a dataset, all for reasons that may have passed."""
  reasons: dict[str, set[str]] = {}
  for row in read_rows(place / "rejects.jsonl"):
    reasons.setdefault(row["source"], set()).add(row["reason"])
  used = {row["name"] for row in read_rows(place / "sources.jsonl") if row["clips"]}
  return {name for name, found in reasons.items() if found <= PASSING} - used


def without_removed(found: Found, place: Path) -> Found:
  """Leaves out the sources that were taken down from the dataset at `place`."""
  gone = {row["source"] for row in read_rows(place / "removed.jsonl")}
  kept = [source for source in found.sources if source.name not in gone]
  return found._replace(sources=kept, taken_down=len(found.sources) - len(kept))

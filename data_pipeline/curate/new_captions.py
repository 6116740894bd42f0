"""Replaces the captions of clips by those that the input says now. Clips, ids and shards stay.

    .OUT.curate/captions.json    before anything is changed: sources, and the fingerprints of the
                                 clips before and after, for the latents that name the former
    the clips, in one step (`change.revise`)
    spools and decisions of the sources in the work folder; sources.jsonl, curation.json, the report
    the latents, by whoever can encode captions (`Replacement.latents`)
Nothing is changed before all captions are known. Every step can be made again: after a kill at any
moment the same command makes the rest. `captions.json` stays while one of the latents is missing.
"""

import dataclasses
import os
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import change, hashing
from data_pipeline.curate import tables
from data_pipeline.curate.captions import Captioned, caption_clip, caption_clips, hash_frames
from data_pipeline.curate.chat import Chat, Usage
from data_pipeline.curate.content import compare
from data_pipeline.curate.known import (
  Found,
  caption_mark,
  find,
  mark,
  refuse_other,
  renew_stamps,
  without_removed,
)
from data_pipeline.curate.placing import count_captions
from data_pipeline.curate.reuse import reuse_spool, words_of
from data_pipeline.curate.settings import Settings
from data_pipeline.curate.spool import (
  Decision,
  Work,
  decision_path,
  read_decision,
  read_rows,
  write_rows,
)
from data_pipeline.curate.spool_writer import choose_split, count_words, read_spool
from data_pipeline.curate.take_down import find_parts, open_others
from data_pipeline.curate.types import Source
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.folder import Claim, absolute, mend
from data_pipeline.records import ClipRecord

Row = dict[str, Any]
_Said = tuple[tuple[str, ...], str]  # captions and licence of a clip


@contextmanager
def replacing_captions(
  given: str,
  out: str | os.PathLike,
  settings: Settings,
  latents: Sequence[str | os.PathLike] = (),
  *,
  workers: int | None = None,
) -> Iterator["Replacement"]:
  """Finds what is to be replaced, and holds the work folder meanwhile.

  Args:
    given: the input, as it is now. Sources that it does not name stay as they are.
    out: folder of the clip dataset.
    settings: those that it was made by.
    latents: datasets made of the clips, besides those that the clips' folder lists.
    workers: files read at once; None for one a core.
  Raises:
    BadInput: no dataset, one of other settings, or a source whose content or split is another; the
      captioner fails. Nothing is changed then.
  """
  place = absolute(out)
  mend(place)
  if not (place / "meta.json").exists():
    raise BadInput(
      f"curate: --replace-captions: {out} holds no dataset. Give the folder that sora curate made."
    )
  found = find(given, settings)
  work = Work.of(place)
  with Claim(work.folder):
    found = without_removed(found, place)
    yield Replacement(place, work, settings, found, latents, workers or os.cpu_count() or 1)
    with suppress(OSError):
      work.folder.rmdir()  # where nothing else is in it: it was made for this


class Replacement:
  """Captions that are to be replaced; see the module.

  Attributes:
    clips: the dataset, as it was.
    latents: datasets made of it, of any kind, that are there.
    missing: paths of those that are not.
    sources: names of the sources whose clips may have other captions than their latents.
  """

  def __init__(
    self,
    place: Path,
    work: Work,
    settings: Settings,
    found: Found,
    latents: Sequence[str | os.PathLike],
    threads: int,
  ):
    self._place, self._work, self._settings, self._found = place, work, settings, found
    self.clips = Dataset.open(place, kind="clip")
    self.latents, self.missing = open_others(place, latents)
    _check_settings(place, self.clips, settings)
    self._rows = {row["name"]: row for row in read_rows(place / "sources.jsonl")}
    self._compared = compare(found.sources, self._rows, threads)
    refuse_other(place, self._compared, {n for n, row in self._rows.items() if not row["clips"]})
    self._changed = {s.name: s for s in self._compared.mended if self._rows[s.name]["clips"]}
    for source in self._changed.values():
      _check_split(source, self._rows[source.name], settings)
    self._cut = {name: self._read_cut(source) for name, source in self._changed.items()}
    self._cameras = {
      clip["id"]: clip["camera"] for n in self._changed for clip in self._rows[n]["clips"]
    }
    asked = settings.captions.chat if settings.captions.prompts else None
    self._chat = Chat(asked, work.answers) if asked else None
    journal = list(read_rows(work.captions))
    self._edges = {(row["old"], row["new"]) for row in journal if not row["source"]}
    self.sources = {row["source"] for row in journal if row["source"]} | self._changed.keys()
    self._check_latents()
    self._facts: dict[str, Row] = {}  # of the clips, by id
    self._usage = dict.fromkeys(self._changed, Usage())
    self._answers: dict[str, list[str]] = {name: [] for name in self._changed}
    self._numbers = self._plan()

  # ---- before anything is changed

  def _read_cut(self, source: Source) -> Mapping[str, Any]:
    """Tells how a source was cut. Raises BadInput: an older version kept no word of it."""
    row = self._rows[source.name]
    summary = read_spool(source.name, self._settings, self._work.spools)
    stamps = row["stamp"], source.stamp  # the latter after a kill
    is_its = summary is not None and summary["source"]["stamp"] in stamps
    found = row if "shots" in row else summary if is_its else None
    if found is None and (self._settings.write.inherit_captions != "one_shot"):
      found = {"shots": 1}  # whose number does not matter
    if found is None:
      raise BadInput(
        f"curate: --replace-captions: how many shots source {source.name!r} has is not known: an "
        f"older version made {self._place}, and its work folder is gone. Make it anew."
      )
    return found

  def _check_latents(self) -> None:
    gone = {row["source"] for row in read_rows(self._place / "removed.jsonl")}
    for dataset in self.latents:
      if np.isin(dataset.index["source"], _hash(gone)).any():
        raise BadInput(
          f"curate: --replace-captions: {dataset.path} still holds sources that were taken down. "
          "Repeat sora curate --remove first, with --data if it is not registered."
        )

  def _plan(self) -> list[int]:
    """Rows of the clips whose captions or licence change."""
    changed, self._emptied = [], 0
    for row, was, record, said in self._captioned():
      if said.failed:
        raise BadInput(
          f"curate: --replace-captions: clip {record.id!r} gets no caption ({said.failed}). "
          "Nothing was changed. Repeat the command, or write a caption for it."
        )
      name = record.source
      self._facts[record.id] = count_words(said.captions)
      self._usage[name] = self._usage[name].plus(said.usage)
      self._answers[name] += self._names_of_answers(record) if self._chat else []
      if was != (said.captions, record.licence):
        changed.append(row)
        self._emptied += bool(was[0]) and not said.captions
    return changed

  def _captioned(self) -> Iterator[tuple[int, _Said, ClipRecord, Captioned]]:
    """Yields row, old words, record and new captions of every clip that is mended."""
    rows, old = self._rows_of(self._changed.keys()), deque[_Said]()

    def clips() -> Iterator[tuple[ClipRecord, str]]:
      for record in map(self.clips.read, rows):
        old.append((record.captions, record.licence))
        yield self._word(record), self._cameras[record.id]

    ask, threads = (self._chat.ask, self._chat.settings.concurrency) if self._chat else (None, 1)
    every = caption_clips(clips(), self._settings.captions, ask, threads=threads)
    for row, (record, said) in zip(rows, every, strict=True):
      yield row, old.popleft(), record, said

  def _rows_of(self, names: Collection[str]) -> list[int]:
    return np.flatnonzero(np.isin(self.clips.index["source"], _hash(names))).tolist()

  def _word(self, record: ClipRecord) -> ClipRecord:
    """The clip as its source's words have it now, before anybody is asked."""
    name = record.source
    source, cut = self._changed[name], self._cut[name]
    captions, licence = words_of(source, record, cut, self._settings)
    return dataclasses.replace(record, captions=captions, licence=licence)

  def _names_of_answers(self, record: ClipRecord) -> list[str]:
    assert self._chat is not None
    content = hash_frames(record.video, self._settings.captions.frames)
    return [self._chat.key(prompt.text, content) for prompt in self._settings.captions.prompts]

  def captions(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(id, source, captions) of all clips whose latents may need others, as they are to be."""
    for row in self._rows_of(self.sources):
      record = self.clips.read(row)
      record = self._revise(record) if record.source in self._changed else record
      yield record.id, record.source, record.captions

  # ---- changes

  def apply(self) -> Dataset:
    """Replaces the captions of the clips. Returns the dataset as it is now."""
    if self._numbers:
      revise = lambda records: [self._revise(record) for record in records]  # noqa: E731
      clips = change.revise(self._place, self._numbers, revise, before=self._note)
    else:
      clips = self.clips
    self._follow_in_work()
    changes: dict[str, Row] = {s.name: {"stamp": s.stamp} for s in self._compared.mended}
    for name in self._changed:
      kept = [clip | self._facts[clip["id"]] for clip in self._rows[name]["clips"]]
      changes[name] |= {"clips": kept, "usage": list(self._usage[name])}
      changes[name]["captions"] = count_captions(
        self._changed[name],
        kept,
        shots=self._cut[name]["shots"],
        seconds=self._rows[name].get("seconds"),
        inherit=self._settings.write.inherit_captions,
      )
    renew_stamps(self._place, self._compared)
    if changes:
      tables.change_sources(self._place, changes)
      tables.renew_report(self._place)
    if not self._unknown and not self._compared.other:
      tables.note_jobs(self._place, [self._found.digest])
    return clips

  def _revise(self, record: ClipRecord) -> ClipRecord:
    ask = self._chat.ask if self._chat else None  # answers are kept since `_plan`
    worded = self._word(record)
    said = caption_clip(worded, self._cameras[record.id], self._settings.captions, ask)
    return dataclasses.replace(worded, captions=said.captions)

  def _note(self, old: str, new: str) -> None:
    """Keeps what the latents will need until all of them have it."""
    self._edges.add((old, new))
    edges = [{"source": "", "old": a, "new": b} for a, b in sorted(self._edges)]
    self._work.folder.mkdir(parents=True, exist_ok=True)
    write_rows(self._work.captions, [*edges, *({"source": name} for name in sorted(self.sources))])

  def _follow_in_work(self) -> None:
    """Gives spools the new words, and decisions the names of answers, for take-downs."""
    for name, source in self._changed.items():
      if self._work.spools.exists():
        reuse_spool(source, self._settings, self._work)
      if self._answers[name]:
        summary = {"source": {"name": name}}
        kept = read_decision(summary, self._work) or Decision("", {}, is_final=False)
        answers = list(dict.fromkeys([*kept.answers, *self._answers[name]]))
        self._work.spools.mkdir(parents=True, exist_ok=True)
        decision = dataclasses.replace(kept, answers=answers)
        write_rows(decision_path(summary, self._work), [dataclasses.asdict(decision)])

  def newest(self, fingerprint: Any, clips: Dataset) -> str | None:
    """Fingerprint of the clips as they are now, if they had this one once; else None."""
    edges = {(row["old"], row["new"]) for row in read_rows(self._work.take_down)} | self._edges
    known = {fingerprint}
    while new := {b for a, b in edges if a in known} - known:
      known |= new
    return clips.fingerprint if clips.fingerprint in known else None

  def finish(self) -> dict[str, Any]:
    """Forgets what is done, when nothing is missing.

    Returns:
      JSON-able: `clips` whose captions were replaced, `emptied` ones that have none any more,
      `unchanged` clips, `sources` that say other things, `new` sources that the dataset does not
      know, `taken_down` ones, `missing` datasets, and those that are `unfinished`.
    """
    if not self.missing:
      self._work.captions.unlink(missing_ok=True)
    paths = [*(dataset.path for dataset in self.latents), *self.missing]
    return {
      "clips": len(self._numbers),
      "emptied": self._emptied,
      "unchanged": len(self.clips) - len(self._numbers),
      "sources": len(self._compared.mended),
      "new": len(self._unknown),
      "taken_down": self._found.taken_down,
      "missing": list(map(str, self.missing)),
      "unfinished": [str(path) for path in paths if find_parts(path)],
    }

  @property
  def _unknown(self) -> list[str]:
    return [source.name for source in self._found.sources if source.name not in self._rows]


def _check_settings(place: Path, clips: Dataset, settings: Settings) -> None:
  kept = tables.read_caption_mark(place)
  if mark(settings) != clips.meta.get("curation") and kept != caption_mark(settings):
    raise BadInput(
      f"curate: --replace-captions: {place} was made by other settings of captions or write. Take "
      "those, or another --out."
    )


def _check_split(source: Source, row: Row, settings: Settings) -> None:
  split, was = choose_split(source, settings.write.held_out_fraction), row["clips"][0]["split"]
  if split != was:
    raise BadInput(
      f"curate: --replace-captions: source {source.name!r} is of split {split} now, its clips "
      f"are of {was}, where they stay. Give it split {was}, or make the dataset anew."
    )


def _hash(names: Collection[str]) -> np.ndarray:
  return np.array([hashing.hash_text(name) for name in names], np.uint64)

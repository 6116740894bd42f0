"""What the workers of a curation do with a source, with clips, with a part. Nothing here is Beam's.

All of it can be pickled, leaves what it makes in the work folder, and does nothing twice.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

from data_pipeline import hashing
from data_pipeline.curate.caption_settings import CaptionSettings
from data_pipeline.curate.captions import caption_clip, caption_clips, hash_frames
from data_pipeline.curate.chat import Chat, Usage
from data_pipeline.curate.child import ChildFailed, run_in_child
from data_pipeline.curate.content import hash_content
from data_pipeline.curate.cut import cut_source
from data_pipeline.curate.reuse import reuse_spool
from data_pipeline.curate.settings import Settings
from data_pipeline.curate.spool import (
  PASSING,
  Decision,
  Ref,
  Work,
  decision_path,
  digest_of,
  list_refs,
  read_clips,
  read_decision,
  reporting,
  write_rows,
)
from data_pipeline.curate.spool_writer import Summary, read_summary, refuse_source
from data_pipeline.curate.types import Source
from data_pipeline.parts import Parts
from data_pipeline.records import ClipRecord

Counts = Mapping[str, int]
_ASKED = ("model", "request", "max_side", "jpeg_quality")


def decides_captions(settings: CaptionSettings) -> dict:
  """What decides captions: not where the endpoint is, or how often it is tried."""
  plain = dataclasses.asdict(settings)
  chat = {name: plain["chat"][name] for name in _ASKED} if plain["chat"] else None
  return plain | {"chat": chat}


def _cut(job: tuple[Source, Settings, str]) -> None:
  """In the child process; the summary stays in the folder."""
  cut_source(*job)


@dataclasses.dataclass(frozen=True)
class Cutter:
  """Cuts sources, each in a process of its own."""

  settings: Settings
  work: Work

  def cut(self, source: Source) -> Summary:
    """The summary of a source, which is cut now if it was not. Raises OSError: the disk is full."""
    with reporting(self.work):
      found = read_summary(source, self.settings, self.work.spools)
      return found or reuse_spool(source, self.settings, self.work) or self._cut(source)

  def _cut(self, source: Source) -> Summary:
    decode = self.settings.decode
    try:
      run_in_child(
        _cut,
        (source, self.settings, str(self.work.spools)),
        seconds=decode.seconds(source.size),
        memory_bytes=decode.memory_bytes,
      )
    except ChildFailed as error:
      content = "" if error.reason in PASSING else hash_content(source)
      facts = error.reason, error.detail, content
      return refuse_source(source, self.settings, self.work.spools, *facts)
    summary = read_summary(source, self.settings, self.work.spools)
    if summary is None:
      raise RuntimeError(f"curate: the spool of {source.name} is gone.")
    return summary


@dataclasses.dataclass(frozen=True)
class Decider:
  """Decides which clips stay and what they are called, and writes it down.

  Attributes:
    settings, work: of the job.
    chat: the endpoint that is asked for captions; None asks nobody.
  """

  settings: Settings
  work: Work
  chat: Chat | None

  def decide(
    self, summaries: Sequence[Summary], copies: Mapping[str, Sequence[tuple[str, str]]]
  ) -> Iterator[str]:
    """Yields the names of the sources that were decided upon.

    Args:
      summaries: of some sources.
      copies: by source, its clips that go, each with the one that it is like.
    """
    with reporting(self.work):
      fresh = [one for one in map(lambda s: self._begin(s, copies), summaries) if one]
      for summary, decision in self._caption(fresh):
        write_rows(decision_path(summary, self.work), [dataclasses.asdict(decision)])
        yield summary["source"]["name"]

  def _begin(self, summary: Summary, copies: Mapping) -> tuple[Summary, Decision] | None:
    """A decision without captions; None where the one that is there still holds."""
    if not summary["clips"]:
      return None
    gone = dict(copies.get(summary["source"]["name"], ()))
    said = decides_captions(self.settings.captions)
    digest = digest_of([summary["digest"], summary["source"], summary["clips"], gone, said])
    kept = read_decision(summary, self.work)
    holds = kept is not None and kept.is_final and kept.digest == digest
    return None if holds else (summary, Decision(digest, gone))

  def _caption(self, begun: list[tuple[Summary, Decision]]) -> Iterator[tuple[Summary, Decision]]:
    """Adds the captions of all clips, many clips at a time."""
    if self.chat is None:
      yield from begun
      return
    refs = [ref for summary, decision in begun for ref in list_refs(summary, decision)]
    clips = ((record, ref.camera) for ref, record in read_clips(refs, self.work))
    found = caption_clips(
      clips, self.settings.captions, self.chat.ask, threads=self.chat.settings.concurrency
    )
    for summary, decision in begun:
      captions: dict[str, list[str]] = {}
      failed: dict[str, str] = {}
      usage, answers, is_final = Usage(), [], True
      for ref in list(list_refs(summary, decision)):
        record, said = next(found)
        usage = usage.plus(said.usage)
        answers += self._answers(record)
        is_final &= said.is_final
        if said.failed:
          failed[ref.id] = said.failed
        else:
          captions[ref.id] = list(said.captions)
      facts = dict(usage=list(usage), answers=answers, is_final=is_final)
      yield summary, dataclasses.replace(decision, captions=captions, failed=failed, **facts)

  def _answers(self, record: ClipRecord) -> list[str]:
    """Names of the answers about a clip, for a take-down."""
    assert self.chat is not None
    content = hash_frames(record.video, self.settings.captions.frames)
    return [self.chat.key(prompt.text, content) for prompt in self.settings.captions.prompts]


def assign(ref: Ref, split: str, counts: Counts) -> tuple[str, int]:
  """The part of a clip: by a hash of its id."""
  draw = int(hashing.uniform(hashing.hash_text("part"), hashing.hash_text(ref.id)) * counts[split])
  return split, draw


@dataclasses.dataclass(frozen=True)
class PartWriter:
  """Writes the parts of the dataset out of the spools."""

  settings: Settings
  work: Work
  parts: Parts
  counts: Counts
  missing: frozenset[tuple[str, int]]

  def refs(self, summary: Summary) -> Iterator[tuple[tuple[str, int], Ref]]:
    """The clips of a source that go into parts which are missing, each with its part."""
    if not summary["clips"]:
      return
    decision = read_decision(summary, self.work)
    if decision is None:
      raise RuntimeError(f"curate: the decision on {summary['source']['name']} is gone.")
    for ref in list_refs(summary, decision):
      place = assign(ref, summary["split"], self.counts)
      if place in self.missing:
        yield place, ref

  def write(self, group: tuple[tuple[str, int], Iterable[Ref]]) -> tuple[str, int]:
    """Writes a part: its clips in the order of their ids."""
    place, refs = group
    with reporting(self.work):
      ordered = sorted((Ref(*ref) for ref in refs), key=lambda ref: ref.id)
      self.parts.write(*place, self._records(ordered))
    return place

  def _records(self, refs: Iterable[Ref]) -> Iterator[ClipRecord]:
    for ref, record in read_clips(refs, self.work):
      captions = ref.captions
      if captions is None:
        captions = caption_clip(record, ref.camera, self.settings.captions, None).captions
      yield dataclasses.replace(record, captions=tuple(captions))

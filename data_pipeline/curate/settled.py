"""What became of the sources of a job: what was cut from each, and what was decided."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from data_pipeline.curate.chat import Usage
from data_pipeline.curate.placing import count_captions
from data_pipeline.curate.settings import Settings
from data_pipeline.curate.spool import Decision, Ref, Work, list_refs, read_decision, read_source
from data_pipeline.curate.spool_writer import Summary, count_words, read_summary
from data_pipeline.curate.types import Reject, Source

CUT_FACTS = ("shots", "rate", "content")  # of a summary, kept in sources.jsonl


class Settled(NamedTuple):
  """A source, what was cut from it, and what was decided."""

  summary: Summary
  decision: Decision | None
  inherit: str  # `settings.Write.inherit_captions`

  def refs(self) -> Iterator[Ref]:
    return list_refs(self.summary, self.decision) if self.decision else iter(())

  def kept(self) -> list[dict[str, Any]]:
    """Facts of the clips that stay, with the captions that they have now."""
    decision = self.decision
    kept = [clip for clip in self.summary["clips"] if decision and decision.keeps(clip)]
    if decision is None or decision.captions is None:
      return kept
    return [clip | count_words(decision.captions[clip["id"]]) for clip in kept]

  def row(self) -> dict[str, Any]:
    """Of sources.jsonl."""
    usage = list(self.decision.usage) if self.decision else list(Usage())
    source = self.summary["source"]
    facts = {"name": source["name"], "stamp": source["stamp"]}
    facts |= {name: self.summary[name] for name in CUT_FACTS if name in self.summary}
    facts |= {} if self.seconds is None else {"seconds": self.seconds}
    return facts | {"clips": self.kept(), "usage": usage, "captions": self.captions()}

  @property
  def seconds(self) -> float | None:
    """Length of the source in seconds; None where it could not be read."""
    media = self.summary["media"]
    return media["frames"] / media["fps"] if media and media["fps"] else None

  def captions(self) -> dict[str, Any]:
    """Counts what became of the captions that were given: `placing.count_captions`."""
    return count_captions(
      read_source(self.summary["source"]),
      self.kept(),
      shots=self.summary["shots"],
      seconds=self.seconds,
      inherit=self.inherit,
    )

  def rejects(self) -> Iterator[dict[str, Any]]:
    yield from self.summary["rejects"]
    if self.decision:
      for clip in self.summary["clips"]:
        copy, failed = self.decision.copies.get(clip["id"]), self.decision.failed.get(clip["id"])
        for reason, detail in (("duplicate", copy and f"of {copy}"), ("caption_failed", failed)):
          if detail:
            stop = clip["start_frame"] + clip["frames"]
            yield Reject(clip["source"], clip["start_frame"], reason, stop, detail).row()


def read_settled(sources: Iterable[Source], work: Work, settings: Settings) -> Iterator[Settled]:
  """Yields what is known of sources. Raises RuntimeError: the runner left one out."""
  for source in sources:
    summary = read_summary(source, settings, work.spools)
    if summary is None:
      raise RuntimeError(f"curate: the spool of {source.name} is gone.")
    decision = read_decision(summary, work) if summary["clips"] else None
    if summary["clips"] and decision is None:
      raise RuntimeError(f"curate: nothing was decided on {source.name}. Run it again.")
    yield Settled(summary, decision, settings.write.inherit_captions)

"""Takes over what was cut from a source that was touched, moved, or of which other things are said.

Nothing is decoded: the clips stay, and get the captions, licence and split that the source's words
give them now. The spool is then what cutting the source anew would leave.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from data_pipeline.curate.content import holds, split_stamp
from data_pipeline.curate.cut import choose_words
from data_pipeline.curate.settings import Settings
from data_pipeline.curate.spool import Ref, Work, read_clips
from data_pipeline.curate.spool_writer import (
  Spool,
  Summary,
  count_words,
  plain,
  read_spool,
  write_summary,
)
from data_pipeline.curate.types import Source
from data_pipeline.curate.windows import Window
from data_pipeline.records import ClipRecord

_PLACE = {"path", "offset", "size"}
_WORDS = {"captions", "spans", "licence", "split"}


def reuse_spool(source: Source, settings: Settings, work: Work) -> Summary | None:
  """The spool of a source, made that of its words and place; None where it is to be cut.

  Args:
    source: as the input has it now.
    settings: of the job; the spool has to be of the same.
    work: folder that it lies in.
  """
  summary = read_spool(source.name, settings, work.spools)
  if summary is None or not _is_same_content(source, summary):
    return None
  old, new = summary["source"], plain(source)
  if all(old[name] == new[name] for name in _WORDS):
    summary["source"] = new
    write_summary(summary, work.spools)
    return summary
  return _reword(source, summary, settings, work)


def _is_same_content(source: Source, summary: Summary) -> bool:
  old, new = summary["source"], plain(source)
  if any(old.get(name) != new[name] for name in new.keys() - _PLACE - _WORDS - {"stamp"}):
    return False
  is_same_place = all(old[name] == new[name] for name in _PLACE)
  if is_same_place and split_stamp(old["stamp"])[0] == split_stamp(source.stamp)[0]:
    return True
  return holds(source, summary.get("content", ""))


def _reword(source: Source, summary: Summary, settings: Settings, work: Work) -> Summary:
  """Writes the spool anew, with other words."""
  spool = Spool(source, settings, work.spools)
  kept = ("bounds", "media", "shots", "rate", "content", "rejects")
  spool.summary |= {name: summary[name] for name in kept if name in summary}
  try:
    for clip, record in _clips(summary, work):
      captions, licence = words_of(source, record, summary, settings)
      split = spool.summary["split"]
      record = dataclasses.replace(record, captions=captions, licence=licence, split=split)
      spool.add(record, clip | count_words(captions) | {"split": split})
    return spool.finish(bounds=summary["bounds"])
  except BaseException:
    spool.abandon()
    raise


def _clips(summary: Summary, work: Work) -> Iterator[tuple[dict[str, Any], ClipRecord]]:
  """Facts and record of every clip of a spool."""
  clips = summary["clips"]
  refs = [Ref(clip["id"], summary["file"], row, "", None) for row, clip in enumerate(clips)]
  for clip, (_, record) in zip(clips, read_clips(refs, work), strict=True):
    yield clip, record


def words_of(
  source: Source, record: ClipRecord, cut: Mapping[str, Any], settings: Settings
) -> tuple[tuple[str, ...], str]:
  """Captions and licence that the words of a source give to one of its clips.

  Args:
    source: with its words.
    record: the clip, in whatever words.
    cut: `shots` of the source, and its `rate` (that of the clip, where an older version kept none).
    settings: of the job.
  """
  rate = cut.get("rate")
  fps = Fraction(rate) if rate else Fraction(record.fps).limit_denominator(1001)
  frames = record.video.shape[0]
  window = Window(record.start_frame, record.start_frame + frames, 0)
  return choose_words(source, window, cut["shots"], fps, settings)

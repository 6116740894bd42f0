"""Says which captions of a source go to which of its clips, and counts those that go nowhere."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from data_pipeline.curate.types import Source, Span

# Why captions go nowhere, and what a person can do.
ADVICE = {
  "several_shots": "--config.curate.write.inherit_captions=all gives those of whole sources to "
  "every clip; it needs another --out, and cuts anew",
  "not_inherited": "they are of whole sources, and curate.write.inherit_captions is none",
  "no_clip_then": "no clip of their part was kept, see rejects.jsonl",
  "small_part": "their part is less than half of each clip that it meets; a smaller "
  "--config.curate.windows.max_seconds makes shorter clips",
  "beyond_end": "their part begins after the video ends; are these the times of a longer video?",
  "no_clip": "their source gave no clip, see rejects.jsonl",
}


def choose_captions(source: Source, begin: float, end: float, *, is_whole: bool) -> tuple[str, ...]:
  """Captions of the spans that cover at least half of a clip, then those of the whole source.

  Args:
    begin, end: of the clip, seconds from the beginning of the source.
    is_whole: the latter are true of the clip.
  """
  found = [text for span in source.spans if _covers(span, begin, end) for text in span.captions]
  return tuple(dict.fromkeys(found + list(source.captions if is_whole else ())))


def inherits(inherit: str, shots: int) -> bool:
  """Tells whether captions of a whole source go to its clips (`settings.Write`)."""
  return inherit == "all" or (inherit == "one_shot" and shots <= 1)


def _covers(span: Span, begin: float, end: float) -> bool:
  return min(end, span.end_seconds) - max(begin, span.start_seconds) >= (end - begin) / 2


def count_captions(
  source: Source,
  clips: Collection[Mapping[str, Any]],
  *,
  shots: int,
  seconds: float | None,
  inherit: str,
) -> dict[str, Any]:
  """Counts the captions that were given with a source.

  Args:
    clips: those that are kept, as summaries of spools have them.
    shots: of the source.
    seconds: of the source; None if unknown.
    inherit: `settings.Write.inherit_captions`.
  Returns:
    JSON-able: `given`, `used` (by one clip at least), `unused` by reason, a key of `ADVICE`.
  """
  times = [
    (c["start_frame"] / c["fps"], (c["start_frame"] + c["frames"]) / c["fps"]) for c in clips
  ]
  unused: Counter[str] = Counter()
  whole = len(dict.fromkeys(source.captions))
  given = whole
  if whole and not (clips and inherits(inherit, shots)):
    why = "not_inherited" if inherit == "none" else "several_shots"
    unused[why if clips else "no_clip"] += whole
  for span in source.spans:
    given += len(span.captions)
    if not any(_covers(span, *time) for time in times):
      unused[_why_unplaced(span, times, seconds)] += len(span.captions)
  found = {reason: count for reason, count in sorted(unused.items()) if count}
  return {"given": given, "used": given - sum(found.values()), "unused": found}


def _why_unplaced(span: Span, times: Collection[tuple[float, float]], seconds: float | None) -> str:
  """The key of `ADVICE` for the captions of a part that covers no clip."""
  if seconds is not None and span.start_seconds >= seconds:
    return "beyond_end"
  if any(begin < span.end_seconds and span.start_seconds < end for begin, end in times):
    return "small_part"
  return "no_clip_then" if times else "no_clip"


def sum_captions(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """The sum of what `count_captions` says of sources."""
  total, unused = Counter(given=0, used=0, sources=0), Counter()
  for one in counts:
    total.update(given=one["given"], used=one["used"], sources=int(one["given"] > 0))
    unused.update(one["unused"])
  return {**total, "unused": dict(sorted(unused.items()))}

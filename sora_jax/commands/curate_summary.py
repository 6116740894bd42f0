"""The last lines of a curation: what became of the sources, and what a person should look at."""

from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.curate.placing import ADVICE
from data_pipeline.curate.reasons import sum_up


def summarise(result: Mapping[str, Any], *, for_people: bool = True) -> list[str]:
  """Lines for people.

  Args:
    result: of `job.curate`. With `captions`, those of the input: `used`, and `unused` by reason.
    for_people: the warnings come last; without it, alone.
  """
  warnings = [f"WARNING: curate: {text}" for text in _warn(result)]
  return [*_describe(result), *warnings] if for_people else warnings


def _describe(result: Mapping[str, Any]) -> Iterator[str]:
  out = result["out"]
  clips, sources = _count(result["clips"], "clip"), _count(result["sources"], "source")
  yield f"curate: {clips} of {sources}, see {out}/report.html"
  yield from _describe_captions(result)
  if rejects := result["rejects"]:
    rows = _count(sum(rejects.values()), "row")
    yield f"curate: rejected, by reason ({rows} of {out}/rejects.jsonl):"
    yield from sum_up(rejects)


def _describe_captions(result: Mapping[str, Any]) -> Iterator[str]:
  without = _count(result["without_captions"], "clip")
  if "captions" not in result:
    yield f"curate: {without} without captions"
    return
  used, unused = result["captions"]["used"], sum(result["captions"]["unused"].values())
  yield f"curate: captions: {used:,} used, {unused:,} unused; {without} without any"


def _warn(result: Mapping[str, Any]) -> Iterator[str]:
  lost, total = result["sources_without_clips"], result["sources"]
  if 2 * lost > total:
    where = f"{result['out']}/rejects.jsonl"
    yield f"{lost:,} of {_count(total, 'source')} gave no clip, see the reasons in {where}."
  if 0 < result["without_captions"] == result["clips"]:
    yield "no clip has a caption. Give some beside the videos, or ask an endpoint for them."
  for reason, count in result["captions"]["unused"].items() if "captions" in result else ():
    yield f"{_count(count, 'caption')} of the input went to no clip ({reason}): {ADVICE[reason]}."


def _count(number: int, what: str) -> str:
  return f"{number:,} {what}{'' if number == 1 else 's'}"

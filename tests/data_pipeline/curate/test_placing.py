"""What becomes of the captions that were given: counted against what the clips have."""

import json

import pytest

from data_pipeline.curate.placing import ADVICE, choose_captions, count_captions, sum_captions
from data_pipeline.curate.types import Source, Span

WHOLE = ("one", "two", "one")
SPANS = (Span(0, 2, ("first",)), Span(2.2, 3, ("short", "brief")), Span(50, 60, ("late",)))
CLIPS = [dict(start_frame=0, frames=20, fps=10.0), dict(start_frame=20, frames=40, fps=10.0)]


@pytest.mark.parametrize(
  "clips, shots, inherit, unused",
  [
    (CLIPS, 1, "one_shot", {"beyond_end": 1, "small_part": 2}),
    (CLIPS, 2, "one_shot", {"beyond_end": 1, "several_shots": 2, "small_part": 2}),
    (CLIPS, 2, "all", {"beyond_end": 1, "small_part": 2}),
    (CLIPS, 1, "none", {"beyond_end": 1, "not_inherited": 2, "small_part": 2}),
    (CLIPS[:1], 1, "all", {"beyond_end": 1, "no_clip_then": 2}),
    (CLIPS[1:], 1, "all", {"beyond_end": 1, "no_clip_then": 1, "small_part": 2}),
    ([], 0, "all", {"beyond_end": 1, "no_clip": 5}),
  ],
)
def test_captions_are_used_or_counted_by_reason(clips, shots, inherit, unused):
  source = Source("a", "a", captions=WHOLE, spans=SPANS)
  counts = count_captions(source, clips, shots=shots, seconds=6.0, inherit=inherit)
  assert counts == {"given": 6, "used": 6 - sum(unused.values()), "unused": unused}
  assert set(unused) <= set(ADVICE)
  is_whole = inherit == "all" or (inherit == "one_shot" and shots == 1)
  ends = [(c["start_frame"] / 10, (c["start_frame"] + c["frames"]) / 10) for c in clips]
  placed = {text for time in ends for text in choose_captions(source, *time, is_whole=is_whole)}
  assert len(placed) == counts["used"]
  assert json.loads(json.dumps(counts)) == counts


def test_the_sum_over_sources():
  several = {"given": 2, "used": 0, "unused": {"several_shots": 2}}
  counts = sum_captions([several, several, {"given": 3, "used": 3, "unused": {}}])
  assert counts == {"given": 7, "used": 3, "sources": 3, "unused": {"several_shots": 4}}
  assert set(counts["unused"]) <= set(ADVICE)
  assert sum_captions([]) == {"given": 0, "used": 0, "sources": 0, "unused": {}}

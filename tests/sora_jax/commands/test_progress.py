"""Progress without a terminal, by a clock of the test's."""

import pytest

from sora_jax.commands import progress
from sora_jax.commands.curate_summary import summarise


@pytest.fixture
def clock():
  now = [0.0]

  def read():
    return now[0]

  read.now = now
  return read


def test_a_meter_says_first_and_last_and_little_between(clock, capsys):
  with progress.Meter(clock) as meter:
    for second in range(301):  # told every second, as `curate` does
      clock.now[0] = float(second)
      meter("cut", 40 + second // 3, 140)
  lines = capsys.readouterr().err.splitlines()
  assert lines[:2] == ["cut: 40/140", "cut: 43/140, 0.3/s, 0:05:23 left"]  # 40 were there before
  assert len(lines) == 11 and lines[-1] == "cut: 140/140, 0.333/s"


def test_two_things_at_once_do_not_crowd_each_other(clock, capsys):
  with progress.Meter(clock) as meter:
    for second in range(31):
      clock.now[0] = float(second)
      for what in ("cut", "ask"):
        meter(what, second, 100)
  lines = capsys.readouterr().err.splitlines()
  assert [line.replace(",", "").split()[:2] for line in lines] == [
    [f"{what}:", f"{second}/100"] for second in (0, 10, 20, 30) for what in ("cut", "ask")
  ]


def test_a_job_that_ends_early_says_how_far_it_came(clock, capsys):
  with pytest.raises(KeyError), progress.Meter(clock) as meter:
    meter("cut", 0, 9)
    clock.now[0] = 4.0
    meter("cut", 2, 9)
    meter("cut", 2, 9)
    raise KeyError
  assert capsys.readouterr().err.splitlines() == ["cut: 0/9", "cut: 2/9, 0.5/s, 0:00:14 left"]


@pytest.mark.parametrize("seconds, lines", [(0.1, []), (1.0, ["10/30", "20/30", "30/30"])])
def test_what_is_done_soon_gets_no_line(seconds, lines, clock, monkeypatch, capsys):
  monkeypatch.setattr(progress.time, "monotonic", clock)
  for _ in progress.track(range(30), "data", 30):
    clock.now[0] += seconds
  said = capsys.readouterr().err.splitlines()
  assert [line.split()[1].rstrip(",") for line in said] == lines


RESULT = {
  "out": "clips",
  "clips": 1234,
  "without_captions": 3,
  "sources": 9,
  "sources_without_clips": 5,
  "rejects": {"static": 2, "too_short": 1500, "letterboxed": 2, "of_tomorrow": 1},
}


def test_the_end_sums_up():
  assert summarise(RESULT) == [
    "curate: 1,234 clips of 9 sources, see clips/report.html",
    "curate: 3 clips without captions",
    "curate: rejected, by reason (1,505 rows of clips/rejects.jsonl):",
    "  1,500  too_short    shorter than windows.min_seconds",
    "      2  letterboxed  above scores.letterbox.max, the share of black bars",
    "      2  static       below scores.motion.min",
    "      1  of_tomorrow  see its detail",
    "WARNING: curate: 5 of 9 sources gave no clip, see the reasons in clips/rejects.jsonl.",
  ]
  assert summarise(RESULT, for_people=False) == summarise(RESULT)[-1:]


def test_the_end_tells_of_captions_and_is_short_when_all_is_well():
  well = RESULT | {"rejects": {}, "sources_without_clips": 0, "without_captions": 0}
  well["captions"] = {"used": 20, "unused": {}}
  assert summarise(well)[1:] == ["curate: captions: 20 used, 0 unused; 0 clips without any"]
  lost = summarise(well | {"captions": {"used": 20, "unused": {"no_clip": 1, "several_shots": 6}}})
  assert lost[1:] == [
    "curate: captions: 20 used, 7 unused; 0 clips without any",
    "WARNING: curate: 1 caption of the input went to no clip (no_clip): their source gave no clip, "
    "see rejects.jsonl.",
    "WARNING: curate: 6 captions of the input went to no clip (several_shots): "
    "--config.curate.write.inherit_captions=all gives those of whole sources to every clip; it "
    "needs another --out, and cuts anew.",
  ]
  bare = summarise(well | {"without_captions": 1234, "captions": {"used": 0, "unused": {}}})
  assert bare[-1].startswith("WARNING: curate: no clip has a caption. ")

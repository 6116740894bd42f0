"""The report of a curation: what the clips are like, and why the rest was dropped.

report.json    counts of all clips and rejects, and histograms
report.html    the same drawn, with a contact sheet; one file that loads nothing

Clips are taken one at a time. What is counted and summed is counted over all of them; histograms
are those of at most 32,768 clips, the ones with the smallest hash of their id, so that memory is
bounded and no order matters. There is no date: the same clips give the same bytes.
"""

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline import hashing, page
from data_pipeline.curate.scores import SCORES
from data_pipeline.curate.spool import write_rows
from data_pipeline.records import ClipRecord
from data_pipeline.video import window_of

SAMPLE = 2**15  # clips whose values the histograms show
_FRAMES = 4  # of a clip on the contact sheet
_HEIGHT, _WIDTH = 120, 960  # pixels of each, at most
_SHAPES = {"seconds": "seconds a clip", "pixels": "pixels a frame", "fps": "frames a second"}
_SAID = ("motion", "sharpness", "aesthetic")  # scores that stand below a clip


def write_report(
  folder: Path,
  clips: Iterable[Mapping[str, Any]],
  rejects: Iterable[Mapping[str, Any]],
  facts: Mapping[str, Any],
  sheet: Sequence[ClipRecord],
) -> dict[str, Any]:
  """Writes report.json and report.html into a folder, each whole or not at all.

  Args:
    folder: that is there.
    clips: facts of the clips of the dataset, as summaries of spools have them.
    rejects: rows of rejects.jsonl.
    facts: `sources`, how many, and `usage` of the captioner by name; others are kept as they are.
    sheet: clips to show.
  Returns:
    What report.json holds: `facts`; `totals`: `clips`, `frames`, `hours`, `bytes`, `captions`,
    `rejects`; `splits`: `clips`, `hours` and `bytes` by split; clips by word of `camera`, and by
    number of `captions`; `rejects` by reason; `scores`: `clips`, `min`, `max`
    and `mean` by name; `histograms` by name (`edges` and `counts`, see `page.Histogram`), of
    `sampled` clips.
  Raises:
    BadInput: a video of `sheet` is damaged. OSError: the folder cannot be written.
  """
  seen = _Census()
  for clip in clips:
    seen.add(clip)
  report = {"facts": dict(facts), **seen.report(), "rejects": _count_reasons(rejects)}
  report["totals"]["rejects"] = sum(report["rejects"].values())
  page.write_page(folder / "report.html", "Curation", _summary(report), _draw(report, sheet))
  write_rows(folder / "report.json", [report])
  return report


class _Census:
  """Counts clips, and keeps a sample of what was measured of them."""

  def __init__(self) -> None:
    self._totals: Counter[str] = Counter()
    self._splits: defaultdict[str, Counter[str]] = defaultdict(Counter)
    self._camera: Counter[str] = Counter()
    self._captions: Counter[int] = Counter()
    self._scores: defaultdict[str, _Range] = defaultdict(_Range)
    self._sample: list[tuple[int, int, dict[str, float]]] = []  # a heap: the largest hash first

  def add(self, clip: Mapping[str, Any]) -> None:
    seconds = clip["frames"] / clip["fps"]
    sums = {"clips": 1, "seconds": seconds, "bytes": clip["bytes"]}
    self._splits[clip["split"]].update(sums)
    self._totals.update(sums | {"frames": clip["frames"], "captions": clip["captions"]})
    self._captions[clip["captions"]] += 1
    if clip["camera"]:
      self._camera[clip["camera"]] += 1
    for name, value in clip["scores"].items():
      self._scores[name].add(value)
    shape = (seconds, clip["width"] * clip["height"], clip["fps"])
    self._draw(clip["id"], dict(zip(_SHAPES, shape, strict=True)) | clip["scores"])

  def _draw(self, name: str, values: dict[str, float]) -> None:
    one = (-hashing.hash_text(name), self._totals["clips"], values)
    if len(self._sample) < SAMPLE:
      heapq.heappush(self._sample, one)
    else:
      heapq.heappushpop(self._sample, one)

  def report(self) -> dict[str, Any]:
    names = [*_SHAPES, *sorted(self._scores)]
    return {
      "totals": _with_hours(self._totals, ("clips", "frames", "seconds", "bytes", "captions")),
      "splits": {
        split: _with_hours(self._splits[split], ("clips", "seconds", "bytes"))
        for split in sorted(self._splits)
      },
      "camera": dict(_by_count(self._camera)),
      "captions": {str(n): self._captions[n] for n in sorted(self._captions)},
      "scores": {name: self._scores[name].report() for name in sorted(self._scores)},
      "histograms": {name: self._histogram(name)._asdict() for name in names},
      "sampled": len(self._sample),
    }

  def _histogram(self, name: str) -> page.Histogram:
    values = [values[name] for _, _, values in self._sample if name in values]
    return page.histogram(np.array(values, np.int64 if name == "pixels" else np.float64))


class _Range:
  """Extremes and mean of one score."""

  def __init__(self) -> None:
    self.count, self.sum, self.min, self.max = 0, 0.0, float("inf"), float("-inf")

  def add(self, value: float) -> None:
    self.count += 1
    self.sum += value
    self.min, self.max = min(self.min, value), max(self.max, value)

  def report(self) -> dict[str, float]:
    mean = float(f"{self.sum / self.count:.6g}")
    return {"clips": self.count, "min": self.min, "max": self.max, "mean": mean}


def _with_hours(sums: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
  """Sums by name, seconds as hours."""
  found = {name: sums[name] for name in names}
  return {
    "hours" if name == "seconds" else name: round(n / 3600, 6) if name == "seconds" else n
    for name, n in found.items()
  }


def _count_reasons(rejects: Iterable[Mapping[str, Any]]) -> dict[str, int]:
  return dict(_by_count(Counter(row["reason"] for row in rejects)))


def _by_count(counts: Counter[str]) -> list[tuple[str, int]]:
  return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


# ---- the page


def _summary(report: Mapping[str, Any]) -> str:
  totals, sources = report["totals"], report["facts"].get("sources")
  of = f" of {sources:,} sources" if isinstance(sources, int) else ""
  size = f"{totals['hours']:,.2f} hours, {totals['bytes'] / 1e9:,.3f} GB"
  return f"{totals['clips']:,} clips{of}: {size}. {totals['rejects']:,} rejects."


def _draw(report: Mapping[str, Any], sheet: Sequence[ClipRecord]) -> Iterator[str]:
  totals, counted = report["totals"], report["histograms"]
  if report["sampled"] < totals["clips"]:
    yield f"<p>Histograms are those of {report['sampled']:,} clips, drawn by their ids.</p>"
  shapes = [page.draw_histogram(said, _read(counted[name])) for name, said in _SHAPES.items()]
  splits = {split: sums["clips"] for split, sums in report["splits"].items()}
  bars = {
    "clips by split": splits,
    "clips by number of captions": report["captions"],
    "clips by motion of the camera": report["camera"],
  }
  shapes += [page.draw_bars(title, counts) for title, counts in bars.items() if counts]
  yield page.draw_section("Clips", shapes)
  scores = [page.draw_histogram(n, _read(counted[n]), SCORES.get(n, "")) for n in report["scores"]]
  yield page.draw_section("Scores", scores) if scores else ""
  if report["rejects"]:
    dropped = page.draw_bars("rejects by reason", report["rejects"])
    yield page.draw_section("Dropped", [dropped], least=0)
  if sheet:
    yield page.draw_section("Some of the clips", map(_draw_clip, sheet), least=440)
  yield page.draw_section("Totals", [page.draw_table(_rows(report))], least=0)


def _read(counted: Mapping[str, Any]) -> page.Histogram:
  return page.Histogram(**counted)


def _draw_clip(record: ClipRecord) -> str:
  frames, height, width, _ = record.video.shape
  scores = json.loads(record.scores or "{}")
  said = [record.id, record.split, f"{frames / record.fps:.2f} s", f"{width}x{height}"]
  said += [f"{name} {scores[name]:.3g}" for name in _SAID if name in scores]
  captions = " / ".join(record.captions) or "no caption"
  shown = _pick(record)
  height, width, _ = shown[0].shape
  most = min(_HEIGHT, height * max(1, _WIDTH // width))  # small frames are enlarged
  return page.draw_clip(shown, captions, ", ".join(said), most)


def _pick(record: ClipRecord) -> list[np.ndarray]:
  """The middle frames of equal parts of a clip, small; each is decoded from the keyframe on."""
  count = record.video.shape[0]
  places = sorted({(2 * i + 1) * count // (2 * _FRAMES) for i in range(_FRAMES)})
  return [_shrink(window_of(record.video, place, place + 1)[0]) for place in places]


def _shrink(frame: np.ndarray) -> np.ndarray:
  image = Image.fromarray(np.ascontiguousarray(frame))
  image.thumbnail((_WIDTH, _HEIGHT))
  return np.asarray(image)


def _rows(report: Mapping[str, Any]) -> dict[str, str]:
  """All single numbers of the report, by name."""
  rows = {}
  parts = {**report["facts"], "": report["totals"], **report["splits"]}
  parts |= {f"{name}:": sums for name, sums in report["scores"].items()}
  for name, value in parts.items():
    for key, number in value.items() if isinstance(value, Mapping) else [("", value)]:
      is_number = isinstance(number, (int, float))
      rows[f"{name} {key}".strip()] = f"{number:,}" if is_number else str(number)
  return rows

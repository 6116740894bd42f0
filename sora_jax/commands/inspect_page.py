"""`sora inspect --data DIR --html FILE`: a page with a dataset's histograms and a contact sheet."""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipeline import hashing, page
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.page import Histogram
from sora_jax.commands.inspect_clips import FrameReader, describe_clip
from sora_jax.commands.inspect_data import count_records, unit_of
from sora_jax.commands.progress import track

_SHEET = {"clip": 24, "latent": 8}  # clips on it: a latent has to be decoded
_SCORED = 1000  # clips, at most, that are read for the histograms of scores
_SHOWN = 4  # frames of a clip
_SEED = 0x5EE7


def write_dataset_page(dataset: Dataset, facts: dict, rows: np.ndarray, limit: int, path: Path):
  """Writes the page.

  Args:
    dataset: open.
    facts: of `describe_dataset`, with those of the packing where it was packed.
    rows: clips to choose from, by chance but always the same ones.
    limit: clips on the contact sheet; 0 for the usual number.
  Raises:
    BadInput: the file cannot be written; a latent dataset without its VAE.
  """
  if not path.parent.is_dir() or path.is_dir():
    raise BadInput(f"inspect: --html={path} is no file in a folder that exists. Name another.")
  rows = rows[hashing.permuted(len(rows), 0, min(len(rows), _SCORED), _SEED)]
  sheet = list(_draw_sheet(dataset, rows[: limit or _SHEET[dataset.kind]]))
  scores, unit = list(_draw_scores(dataset, rows)), unit_of(facts)
  sections = [
    page.draw_section("Numbers", [page.draw_table(_numbers(facts))], least=0),
    page.draw_section(unit.capitalize(), _draw_counts(facts)),
    *([page.draw_section(f"Scores of {len(rows):,} {unit}", scores)] if scores else []),
    page.draw_section(f"{len(sheet):,} of them", sheet, least=480),
  ]
  summary = f"{count_records(facts)} of {facts['sources']:,} sources, {facts['path']}"
  try:
    page.write_page(path, f"{facts['name']} ({facts['kind']}s)", summary, sections)
  except PermissionError as error:
    raise BadInput(f"inspect: --html={path} cannot be written ({error.strerror}).") from error


def _numbers(facts: dict) -> dict[str, object]:
  count = ("clips",) if facts["kind"] == "clip" else ("renditions", "of_clips")
  names = (*count, "sources", "seconds", "tokens", "pixels", "bytes", "steps", "fingerprint")
  shown = {n.replace("_", " "): facts[n] for n in names if facts.get(n) is not None}
  shown |= {n: f"{100 * facts[n]:.2f} %" for n in ("fill", "imbalance") if n in facts}
  without = f"{unit_of(facts)} without"
  shown |= {"captions": facts["captions"]["total"], without: facts["captions"]["without"]}
  return {n: f"{v:,.6g}" if isinstance(v, float) else _group(v) for n, v in shown.items()}


def _group(value: object) -> str:
  return f"{value:,}" if isinstance(value, int) else str(value)


def _draw_counts(facts: dict) -> Iterator[str]:
  for name, unit in (
    ("seconds", "seconds"),
    ("tokens", "1x1x1 patches"),
    ("captions", f"a {unit_of(facts)[:-1]}"),
  ):
    if name in facts["histograms"]:
      counted = Histogram(**facts["histograms"][name])
      yield page.draw_histogram(name.capitalize(), counted, unit)
  sizes = {
    " x ".join(str(n) for key, n in shape.items() if key != "clips"): shape["clips"]
    for shape in facts["shapes"]
  }
  names = " x ".join(key for key in facts["shapes"][0] if key != "clips")
  yield page.draw_bars("Frames a second", facts["fps"])
  yield page.draw_bars("Splits", facts["splits"])
  yield page.draw_bars(f"Shapes ({names})", sizes)


def _draw_scores(dataset: Dataset, rows: np.ndarray) -> Iterator[str]:
  values = defaultdict(list)
  for row in track(rows.tolist(), "scores", len(rows)):
    for name, score in describe_clip(dataset.read(row))["scores"].items():
      values[name].append(score)
  for name, found in sorted(values.items()):
    yield page.draw_histogram(name, page.histogram(np.array(found)))


def _draw_sheet(dataset: Dataset, rows: np.ndarray) -> Iterator[str]:
  reader = FrameReader(dataset)
  for row in track(rows.tolist(), "contact sheet", len(rows)):
    record = dataset.read(row)
    clip = describe_clip(record)
    count = min(_SHOWN, clip["frames"])
    places = [(2 * i + 1) * clip["frames"] // (2 * count) for i in range(count)]
    frames = itertools.islice(reader.frames(record), places[-1] + 1)
    shown = [frame for place, frame in enumerate(frames) if place in places]
    size = f"{clip['frames']} x {clip['width']}x{clip['height']}, {clip['fps']:g} fps"
    facts = f"{clip['id']} · {size} · {clip['licence'] or 'no licence'}"
    yield page.draw_clip(shown, clip["captions"][0] if clip["captions"] else "(no caption)", facts)

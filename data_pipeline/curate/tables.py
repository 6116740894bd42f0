"""The tables that lie beside the shards of a curated dataset, and its report.

`sources.jsonl`, `rejects.jsonl`, `curation.json`: see `job`. They are small beside the clips, and
no part of the dataset's fingerprint.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import hashing
from data_pipeline.curate.chat import Usage
from data_pipeline.curate.placing import sum_captions
from data_pipeline.curate.report import write_report
from data_pipeline.curate.settled import Settled
from data_pipeline.curate.spool import Ref, Work, read_clips, read_rows, write_rows
from data_pipeline.dataset import Dataset

# Words and marks from which on MiniLM, the default text encoder, may not take a caption whole: its
# 254 word pieces were at least 226 of them in English captions of that length.
LONG_WORDS = 200
SHEET = 24  # clips of the report's contact sheet
Row = dict[str, Any]


def sort_rejects(settled: Iterable[Settled], listed: Sequence[Row]) -> list[Row]:
  """Rows of rejects.jsonl: of what was cut, and of what is no source."""
  return sorted([*(row for one in settled for row in one.rejects()), *listed], key=_order)


def _order(row: Row) -> tuple:
  return row["source"], row["start_frame"] or 0, row["reason"], row["detail"]


def count_reasons(rejects: Iterable[Row]) -> Counter[str]:
  return Counter(row["reason"] for row in rejects)


def read_jobs(folder: Path) -> list[str]:
  """Digests of the jobs that made a dataset."""
  return _read_made(folder).get("jobs", [])


def read_caption_mark(folder: Path) -> str | None:
  """Digest of the settings that decided the captions; None where an older version kept none."""
  return _read_made(folder).get("captions")


def _read_made(folder: Path) -> Row:
  return next(read_rows(folder / "curation.json"), {})


def note_jobs(folder: Path, jobs: Sequence[str]) -> None:
  """Adds digests of jobs to those that made a dataset."""
  made = _read_made(folder)
  known = made.get("jobs", [])
  if new := [job for job in dict.fromkeys(jobs) if job not in known]:
    write_rows(folder / "curation.json", [made | {"jobs": [*known, *new]}])


def change_sources(folder: Path, changes: Mapping[str, Row]) -> None:
  """Writes fields of sources.jsonl anew, by name of the source."""
  rows = [row | changes.get(row["name"], {}) for row in read_rows(folder / "sources.jsonl")]
  write_rows(folder / "sources.jsonl", rows)


def write_tables(
  folder: Path,
  settled: Sequence[Settled],
  rejects: list[Row],
  *,
  job: str,
  captions: str,
  work: Work,
) -> None:
  """Those of a new dataset, and its report.

  Args:
    folder: that will become the dataset.
    settled: all its sources.
    rejects: sorted.
    job: digest.
    captions: digest of the settings that decided them.
    work: folder that the clips still lie in.
  """
  sources = [one.row() for one in settled]
  _write(folder, sources, rejects)
  write_rows(folder / "curation.json", [{"captions": captions, "jobs": [job]}])
  refs = sorted((ref for one in settled for ref in one.refs()), key=_draw)[:SHEET]
  sheet = [
    dataclasses.replace(record, captions=tuple(ref.captions or record.captions))
    for ref, record in read_clips(refs, work)
  ]
  clips = (clip for row in sources for clip in row["clips"])
  write_report(folder, clips, rejects, _facts(sources), sheet)


def _draw(ref: Ref) -> int:
  return hashing.hash_text(f"sheet {ref.id}")


def append_tables(
  folder: Path, settled: Sequence[Settled], rejects: list[Row], *, job: str
) -> None:
  """Adds rows to the tables of a dataset; the job is noted last, when all is done."""
  more = {row["name"]: row for row in (one.row() for one in settled)}
  sources = {row["name"]: row for row in read_rows(folder / "sources.jsonl")} | more
  kept = [row for row in read_rows(folder / "rejects.jsonl") if row["source"] not in more]
  known = {json.dumps(row, sort_keys=True) for row in kept}
  kept += [row for row in rejects if json.dumps(row, sort_keys=True) not in known]
  _write(folder, list(sources.values()), sorted(kept, key=_order))
  renew_report(folder)
  note_jobs(folder, [job])


def renew_report(folder: str | os.PathLike) -> None:
  """Writes the report of a dataset anew, out of its tables."""
  sources = list(read_rows(Path(folder, "sources.jsonl")))
  dataset = Dataset.open(folder, kind="clip")
  order = hashing.permutation(len(dataset), hashing.hash_text("sheet"))[:SHEET]
  sheet = [dataset.read(row) for row in sorted(order.tolist())]
  clips = (clip for row in sources for clip in row["clips"])
  rejects = read_rows(Path(folder, "rejects.jsonl"))
  write_report(Path(folder), clips, rejects, _facts(sources), sheet)


def describe(folder: Path) -> dict[str, Any]:
  """What `job.curate` returns, but for the time."""
  dataset = Dataset.open(folder, kind="clip")
  sources = list(read_rows(folder / "sources.jsonl"))
  facts = _facts(sources)
  return {
    "out": str(folder),
    "clips": len(dataset),
    "without_captions": int((np.diff(dataset.index["caption_offsets"]) == 0).sum()),
    "long_captions": _find_long(sources),
    "sources": facts["sources"],
    "sources_without_clips": sum(not row["clips"] for row in sources),
    "rejects": dict(sorted(count_reasons(read_rows(folder / "rejects.jsonl")).items())),
    "captions": facts["captions"],
    "usage": facts["usage"],
    "fingerprint": dataset.fingerprint,
  }


def _find_long(sources: list[Row]) -> dict[str, Any]:
  """Clips with a caption of more than LONG_WORDS words and marks: how many, and the longest."""
  sizes = [(clip.get("words", 0), clip["id"]) for row in sources for clip in row["clips"]]
  words, longest = max(sizes, default=(0, ""))
  count = sum(size > LONG_WORDS for size, _ in sizes)
  return {"clips": count, "longest": longest, "words": words} if count else {"clips": 0}


def _facts(sources: list[Row]) -> dict[str, Any]:
  usage = Usage()
  for row in sources:
    usage = usage.plus(Usage(*row["usage"]))
  captions = sum_captions(row["captions"] for row in sources if "captions" in row)
  return {"sources": len(sources), "usage": usage._asdict(), "captions": captions}


def _write(folder: Path, sources: list[Row], rejects: list[Row]) -> None:
  write_rows(folder / "sources.jsonl", sorted(sources, key=lambda row: row["name"]))
  write_rows(folder / "rejects.jsonl", rejects)

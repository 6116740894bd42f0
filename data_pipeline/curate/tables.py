"""The tables that lie beside the shards of a curated dataset, and its report.

`sources.jsonl`, `rejects.jsonl`, `curation.json`: see `job`. They are small beside the clips, and
no part of the dataset's fingerprint.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import hashing
from data_pipeline.curate.chat import Usage
from data_pipeline.curate.report import write_report
from data_pipeline.curate.settled import Settled
from data_pipeline.curate.spool import Ref, Work, read_clips, read_rows, write_rows
from data_pipeline.dataset import Dataset

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
  return next(read_rows(folder / "curation.json"), {}).get("jobs", [])


def write_tables(
  folder: Path, settled: Sequence[Settled], rejects: list[Row], *, job: str, work: Work
) -> None:
  """Those of a new dataset, and its report.

  Args:
    folder: that will become the dataset.
    settled: all its sources.
    rejects: sorted.
    job: digest.
    work: folder that the clips still lie in.
  """
  sources = [one.row() for one in settled]
  _write(folder, sources, rejects, [job])
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
  jobs = read_jobs(folder)
  rows = sorted(kept, key=_order)
  _write(folder, list(sources.values()), rows, jobs)
  renew_report(folder)
  _write(folder, list(sources.values()), rows, list(dict.fromkeys([*jobs, job])))


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
    "sources": facts["sources"],
    "sources_without_clips": sum(not row["clips"] for row in sources),
    "rejects": dict(sorted(count_reasons(read_rows(folder / "rejects.jsonl")).items())),
    "usage": facts["usage"],
    "fingerprint": dataset.fingerprint,
  }


def _facts(sources: list[Row]) -> dict[str, Any]:
  usage = Usage()
  for row in sources:
    usage = usage.plus(Usage(*row["usage"]))
  return {"sources": len(sources), "usage": usage._asdict()}


def _write(folder: Path, sources: list[Row], rejects: list[Row], jobs: list[str]) -> None:
  write_rows(folder / "sources.jsonl", sorted(sources, key=lambda row: row["name"]))
  write_rows(folder / "rejects.jsonl", rejects)
  write_rows(folder / "curation.json", [{"jobs": jobs}])

"""Take-downs: removes all that was made of some sources, wherever a curation put it.

    removed.jsonl of the clips' folder    first: from now on no run uses these sources
    the clips, then every dataset that was made of them (`derived.json`, and those given)
    spools, decisions, answers about their clips, and lists of sources, in the work folder
    sources.jsonl, rejects.jsonl beside the clips
Nothing is changed before all of it was looked at. Every step can be made again, and every take-down
goes through all sources of removed.jsonl: after a kill at any moment the same command, or the next
one, makes the rest. Until then `take_down.json` of the work folder holds the fingerprints that the
clips had before and after, for the datasets that still name the former; it stays while one of these
datasets is missing, or is to get captions that were replaced (`new_captions`).
"""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import change, hashing, index
from data_pipeline.curate.spool import Work, read_decision, read_rows, write_rows
from data_pipeline.curate.spool_writer import KEY_LETTERS, spool_key
from data_pipeline.dataset import Dataset
from data_pipeline.derived import read_derived
from data_pipeline.errors import BadInput
from data_pipeline.folder import Claim, absolute, discard, mend, neighbour
from data_pipeline.writer import Facts

_NAMED = 3  # unknown sources that an error names


def take_down(
  out: str | os.PathLike, sources: Collection[str], latents: Sequence[str | os.PathLike] = ()
) -> dict[str, Any]:
  """Removes the clips of some sources, and all that was made of them.

  `report.html` and `report.json` are not touched: `tables.renew_report` writes them anew.

  Args:
    out: folder of the clip dataset.
    sources: names, as `source` of records and `name` of sources.jsonl have them. Those that were
      removed before are passed over.
    latents: datasets made of the clips, besides those that the clips' folder lists.
  Returns:
    JSON-able: `removed`: how many records were, now, of "clips" and of every other dataset by its
    path; `sources`: the names given, sorted; `missing`: datasets that are not there; `unfinished`:
    those whose jobs were not finished, and what they had written is removed whole.
  Raises:
    BadInput: before anything is changed: no dataset, a damaged one, one that would be left empty,
      one that is being written, or a source that nothing here knows.
    OSError: the disk is full; repeat the command.
  """
  if isinstance(sources, str):
    raise TypeError("take_down: sources is a string, not a collection of them.")
  place = absolute(out)
  mend(place)
  if not (place / "meta.json").exists():
    raise BadInput(f"take_down: {out} holds no dataset. Give the folder that sora curate made.")
  work, names = Work.of(place), set(sources)
  with Claim(work.folder):
    clips = Dataset.open(place, kind="clip")
    others, missing = open_others(place, latents)
    paths = [*(other.path for other in others), *missing]
    unfinished = [path for path in paths if find_parts(path)]
    for path in paths:
      if path in unfinished or neighbour(path, "lock").exists():
        Claim(path).release()  # nobody is at it
    before = {row["source"] for row in read_rows(place / "removed.jsonl")}
    _check_known(names - before, [clips, *others], work)
    gone = before | names
    _check_rest([clips, *others], gone)

    if names - before:
      write_rows(place / "removed.jsonl", [{"source": name} for name in sorted(gone)])
    changes = _note_changes(clips, gone, work)
    removed = {"clips": len(change.remove(place, gone))}
    for other in others:
      new = _follow(other.meta.get("clips"), changes)
      changed = {"clips": new} if new else None
      removed[str(other.path)] = len(change.remove(other.path, gone, meta_changes=changed))
    for path in unfinished:
      _discard_parts(path)
    _clean_work(work, gone)
    _drop_rows(place / "sources.jsonl", "name", gone)
    _drop_rows(place / "rejects.jsonl", "source", gone)
    _end(work, is_whole=not missing)
  named = {"missing": list(map(str, missing)), "unfinished": list(map(str, unfinished))}
  return {"removed": removed, "sources": sorted(names), **named}


def find_parts(path: Path) -> list[Path]:
  """Folders of a job that has not finished the dataset at `path`: they may hold anything."""
  if not path.parent.is_dir():
    return []
  prefix = neighbour(path, "finished-").name
  finished = [folder for folder in path.parent.iterdir() if folder.name.startswith(prefix)]
  return [folder for folder in [neighbour(path, "parts"), *finished] if folder.exists()]


def _discard_parts(path: Path) -> None:
  """Removes them; the job begins anew."""
  with Claim(path):
    for folder in find_parts(path):
      discard(folder, path=path)


def open_others(
  place: Path, latents: Sequence[str | os.PathLike]
) -> tuple[list[Dataset], list[Path]]:
  """The datasets made of the one at `place`, and the paths where there is none any more."""
  paths = dict.fromkeys(map(absolute, [*read_derived(place), *latents]))
  paths.pop(place, None)
  for path in paths:
    mend(path)
  missing = [path for path in paths if not path.exists()]
  return [Dataset.open(path, kind=None) for path in paths if path not in missing], missing


# ---- before anything is changed


def _check_known(names: set[str], datasets: list[Dataset], work: Work) -> None:
  """Raises BadInput: a name that no dataset, spool or table has."""
  texts = sorted(name for name in names if _is_text(name))
  hashes = _hash(texts)
  known = np.zeros(len(texts), bool)
  for dataset in datasets:
    known |= np.isin(hashes, dataset.index["source"])
  unknown = names - {text for text, is_known in zip(texts, known, strict=True) if is_known}
  unknown = {name for name in unknown if not (_is_text(name) and _has_spool(name, work))}
  place = datasets[0].path
  for table, field in (("sources", "name"), ("rejects", "source")) if unknown else ():
    unknown -= {row[field] for row in read_rows(place / f"{table}.jsonl")}
  if unknown:
    first = ", ".join(map(repr, sorted(unknown)[:_NAMED]))
    more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
    raise BadInput(
      f"take_down: source={first}{more} is in no dataset or table of {place}, nor in its work "
      f"folder. Nothing was removed. Give names as {place / 'sources.jsonl'} has them."
    )


def _is_text(name: str) -> bool:
  """Whether it is UTF-8; arguments of a command may hold other bytes."""
  return name == name.encode(errors="replace").decode()


def _has_spool(name: str, work: Work) -> bool:
  return (work.spools / f"{spool_key(name)}.json").exists()


def _check_rest(datasets: list[Dataset], gone: set[str]) -> None:
  """Raises BadInput: no record of a dataset would be left."""
  for dataset in datasets:
    if _rows_of(dataset, gone).all():
      raise BadInput(
        f"take_down: {dataset.path} would hold no records without the sources removed. Nothing was "
        "changed. Remove the folder itself, with what was made of it, then repeat."
      )


def _rows_of(dataset: Dataset, sources: set[str]) -> np.ndarray:
  """bool: which rows are of the sources."""
  return np.isin(dataset.index["source"], _hash(sources))


def _hash(names: Collection[str]) -> np.ndarray:
  return np.array([hashing.hash_text(name) for name in names], np.uint64)


# ---- datasets


def _note_changes(clips: Dataset, gone: set[str], work: Work) -> dict[str, str]:
  """Fingerprints of the clips after a removal, by those before; kept until all is done."""
  changes = {row["old"]: row["new"] for row in read_rows(work.take_down)}
  rows = _rows_of(clips, gone)
  if rows.any():
    changes[clips.fingerprint] = _fingerprint_of(clips, np.flatnonzero(~rows))
    work.folder.mkdir(parents=True, exist_ok=True)
    write_rows(work.take_down, [{"old": old, "new": new} for old, new in changes.items()])
  return changes


def _fingerprint_of(dataset: Dataset, rows: np.ndarray) -> str:
  """Fingerprint that a dataset has when only some of its rows are left."""
  facts = Facts(dataset.kind, dataset.name, dataset.meta, storage=dataset.storage)
  facts.widths = dict(dataset.widths)
  return index.fingerprint(facts.hashed, index.take(dataset.index, rows))


def _follow(fingerprint: Any, changes: Mapping[str, str]) -> str | None:
  """The newest fingerprint of the clips that had this one; None if they did not change."""
  new = None
  while isinstance(fingerprint, str) and fingerprint in changes:
    new = fingerprint = changes[fingerprint]
  return new


# ---- the work folder, tables


def _clean_work(work: Work, gone: set[str]) -> None:
  keys = {spool_key(name) for name in gone}
  for answer in _answers(work, gone):
    answer.unlink(missing_ok=True)
  # order matters: a decision names the answers, so it goes after them
  for path in list(_spools(work, keys)):
    path.unlink(missing_ok=True)
  for folder in [work.next, *work.folder.glob("append*")]:  # the next run makes them anew
    if folder.exists():
      shutil.rmtree(folder)
  for table in sorted(work.folder.glob("sources/*.jsonl")):
    _drop_rows(table, "name", gone)
  _drop_rows(work.folder / "rejects.jsonl", "source", gone)
  _drop_rows(work.captions, "source", gone)


def _answers(work: Work, gone: set[str]) -> Iterator[Path]:
  """Files of the answers about clips of some sources, see `answers`."""
  for source in sorted(gone):
    decision = read_decision({"source": {"name": source}}, work)
    for name in decision.answers if decision else ():
      yield work.answers / name[:2] / f"{name}.json"


def _spools(work: Work, keys: set[str]) -> Iterator[Path]:
  """All that lies in the spools' folder of some sources, what is unfinished too."""
  if work.spools.exists():
    with os.scandir(work.spools) as entries:
      for entry in entries:
        if entry.name.lstrip(".")[:KEY_LETTERS] in keys:
          yield Path(entry.path)


def _drop_rows(path: Path, field: str, gone: set[str]) -> None:
  """Writes a table anew without the rows of some sources, if it has such rows."""
  if any(row[field] in gone for row in read_rows(path)):
    write_rows(path, (row for row in read_rows(path) if row[field] not in gone))


def _end(work: Work, *, is_whole: bool) -> None:
  if is_whole and not work.captions.exists():
    work.take_down.unlink(missing_ok=True)
  with contextlib.suppress(OSError):
    work.folder.rmdir()  # where nothing else is in it: it was made for this

"""The folder in which the parts of a dataset lie until it is finished, and its states.

.NAME.parts/                     beside the dataset at NAME; survives a kill
  parts-DIGEST/plan.json         what decides the parts; DIGEST is its hash
  parts-DIGEST/SPLIT-00012/      one part, whole: `SPLIT-0`, its shard, and `index.npz`
  parts-DIGEST/tmp-…/            one that is being written, or was when its process was killed
  closed-DIGEST/                 `parts-DIGEST` while the dataset is made of it: nobody can write
.NAME.finished-DIGEST/           the work folder when it is a whole dataset, apart from its name

Every step from one state to the next is one rename.
"""

import errno
import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.access import make_room
from data_pipeline.errors import BadInput
from data_pipeline.folder import check_free, discard, neighbour, settle, sync, sync_file
from data_pipeline.index import tokenizers_of
from data_pipeline.shards import count_records

_NO_MORE_FILES = (errno.EMFILE, errno.ENFILE)
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)
_MADE = ("meta.json", "features.json", "dataset_info.json", "index")  # by `seal`


class Part(NamedTuple):
  """A part that is written whole: index columns, widths of latents, and its shard."""

  columns: dict[str, np.ndarray]
  widths: dict[str, int | None]
  shard: Path

  @property
  def records(self) -> int:
    return len(self.columns["row"])

  @property
  def tokenizers(self) -> tuple[str, ...] | None:
    """Of its latents; None of clips."""
    return tokenizers_of(self.columns) or None


class WorkFolder:
  """Where the parts of one plan lie. Methods other than `make_room` and `put` need the claim.

  Args:
    path: of the dataset.
    plan: JSON-able.
  """

  def __init__(self, path: Path, plan: Mapping):
    self._path, self._plan = path, plan
    text = json.dumps(plan, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    self._work = neighbour(path, "parts")
    self._open, self._closed = self._work / f"parts-{digest}", self._work / f"closed-{digest}"
    self._finished = neighbour(path, f"finished-{digest}")

  @property
  def folder(self) -> Path:
    """Of the dataset to be."""
    return self._finished if self.is_finished else self._work

  @property
  def is_finished(self) -> bool:
    return self._finished.exists()

  def prepare(self, *, start_over: bool) -> None:
    """Goes on from what an earlier process left, or makes an empty folder.

    Raises:
      BadInput: `path` is taken, or parts of another plan are there.
    """
    settle(self._path)
    if start_over:
      self.remove()
    check_free(self._path)
    self._refuse_others()
    if self._open.exists() or self._closed.exists():
      self.reopen()
      for left in self._open.glob("tmp-*"):
        shutil.rmtree(left, ignore_errors=True)
    elif not self.is_finished:
      discard(self._work, path=self._path)  # has no plan: killed before this was done
      new = self._work / "new"
      new.mkdir(parents=True)
      (new / "plan.json").write_text(json.dumps(self._plan, indent=1) + "\n", encoding="utf-8")
      sync(new)
      new.rename(self._open)

  def _refuse_others(self) -> None:
    inside = self._work.iterdir() if self._work.exists() else ()
    folders = [folder for folder in inside if folder.name.startswith(("parts-", "closed-"))]
    for folder in [*folders, *self._all_finished()]:
      if folder not in (self._open, self._closed, self._finished):
        raise BadInput(
          f"parts: {folder} is of another {self._differences(folder)}. Write with the same "
          "settings as before, or start over, which removes it."
        )

  def _all_finished(self) -> list[Path]:
    prefix = neighbour(self._path, "finished-").name
    return [folder for folder in self._path.parent.iterdir() if folder.name.startswith(prefix)]

  def _differences(self, folder: Path) -> str:
    """Names of what differs between our plan and that of a folder."""
    try:
      theirs = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
      names = [name for name in self._plan if theirs[name] != self._plan[name]]
      for name in {"meta", "plan"} & set(names):
        ours, other = self._plan[name], theirs[name]
        names += sorted(f"{name}.{k}" for k in ours | other if ours.get(k) != other.get(k))
    except (OSError, ValueError, KeyError):
      return "plan"
    return ", ".join(names)

  def remove(self) -> None:
    """Removes all parts, of any plan."""
    for folder in [self._work, *self._all_finished()]:
      discard(folder, path=self._path)

  def make_room(self) -> Path:
    """A folder to write a part into. Raises OSError: the parts are finished or removed."""
    return make_room(self._open, "tmp-")

  def put(self, room: Path, split: str, number: int) -> None:
    """Names a part that was written, in the place of one that is there."""
    sync(room)
    place = self._open / part_name(split, number)
    while True:
      try:
        room.rename(place)
        break
      except OSError as error:
        if error.errno not in _OCCUPIED:
          raise
      aside = self.make_room()
      try:
        place.rename(aside)
      except OSError as error:  # somebody else moved it, or put another there
        if error.errno not in (errno.ENOENT, *_OCCUPIED):
          raise
      shutil.rmtree(aside, ignore_errors=True)
    sync_file(self._open)

  def read(self, split: str, number: int) -> Part | None:
    """A part, if it is there and whole. Raises OSError: no file descriptor is left."""
    parent = self._closed if self._closed.exists() else self._open
    return _read_part(parent / part_name(split, number), split)

  def names(self) -> set[str]:
    """Names of all closed parts, whole or not."""
    found = (path.name for path in self._closed.iterdir() if path.is_dir())
    return {name for name in found if not name.startswith("tmp-")}

  def close(self) -> None:
    """From now on nobody can write a part."""
    self._open.rename(self._closed)

  def move_shards(self, names: Mapping[Path, str]) -> None:
    """Gives the shards of parts their names in the dataset.

    Args:
      names: new name by path of the shard.
    """
    layout = {name: str(path.relative_to(self._closed)) for path, name in names.items()}
    new = self._closed / "layout.tmp"
    new.write_text(json.dumps(layout), encoding="utf-8")
    sync_file(new)
    new.rename(self._closed / "layout.json")
    sync_file(self._closed)
    for path, name in names.items():
      path.rename(self._work / name)

  def reopen(self) -> None:
    """Undoes `close` and `move_shards`, and removes what `seal` made of them."""
    if not self._closed.exists():
      return
    layout = self._closed / "layout.json"
    if layout.exists():
      for name, place in json.loads(layout.read_text(encoding="utf-8")).items():
        if (self._work / name).exists():
          (self._work / name).rename(self._closed / place)
      for made in _MADE:
        _remove_any(self._work / made)
      layout.unlink()
    self._closed.rename(self._open)

  def finish(self) -> None:
    """The dataset is whole: there is no way back. Called again, it goes on where it was."""
    if not self.is_finished:
      sync(self._work)
      self._work.rename(self._finished)
    check_free(self._path)
    _remove_any(self._finished / self._closed.name)
    self._finished.rename(self._path)
    sync_file(self._path.parent)


def part_name(split: str, number: int) -> str:
  return f"{split}-{number:05d}"


def write_index(room: Path, columns: Mapping[str, Any], widths: Mapping) -> None:
  """Writes what a part has beside its shard."""
  np.savez(room / "index.npz", allow_pickle=False, widths=json.dumps(widths), **columns)


def _read_part(folder: Path, split: str) -> Part | None:
  shard = folder / f"{split}-0"
  try:
    with open(folder / "index.npz", "rb") as file, np.load(file, allow_pickle=False) as arrays:
      columns = dict(arrays)
    part = Part(columns, json.loads(str(columns.pop("widths"))), shard)
    found = count_records(shard) if shard.exists() else 0
  except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
    if getattr(error, "errno", None) in _NO_MORE_FILES:
      raise  # which says nothing of the part
    return None
  return part if found == part.records else None


def _remove_any(path: Path) -> None:
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)

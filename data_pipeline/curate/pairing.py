"""Finds the video that a caption file speaks of, by their names, in a folder or in an archive.

A name without its ending is a stem, and dots divide it: `clip.v1.mp4` has clip, v1. A caption file
speaks of
  1. the video whose whole name it begins with: clip.mp4.txt; else the videos of its own stem
  2. else the video with the longest stem that its own goes on from: clip.en.txt of clip.mp4
  3. else the only video whose stem goes on from its own: clip.txt of clip.v1.mp4
  4. else, in an archive, the only video of its WebDataset key, which is the name up to the first
     dot, if every key of the archive has one video, and no caption file has that one's stem
With two videos for (3) nobody can tell: BadInput. Otherwise it is alone.
"""

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from data_pipeline.curate.side_cars import ENDINGS
from data_pipeline.errors import BadInput

_SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "desktop.ini", ".localized"})
_SYSTEM_FOLDERS = frozenset(
  {"__macosx", "@eadir", "$recycle.bin", ".trashes", ".spotlight-v100", ".fseventsd"}
  | {".appledouble", "system volume information", ".temporaryitems"}
)
# What else WebDataset keeps beside a video: classes, numbers, arrays.
METADATA = (
  *(".cls", ".cls2", ".id", ".index", ".count", ".inx", ".npy", ".npz", ".pth", ".pt", ".pyd"),
  *(".pickle", ".pkl", ".msg", ".mp", ".ten", ".tb"),
)


class Pairs(NamedTuple):
  """Attributes: of: the caption files of a video, in a fixed order. alone: those of no video."""

  of: Mapping[str, list[str]]
  alone: frozenset[str]


def is_system_file(name: str) -> bool:
  """Tells whether a path is of what operating systems leave in folders: ._x, .DS_Store, …"""
  *folders, last = name.split("/")
  last = last.lower()
  return (
    last.startswith("._") or last in _SYSTEM_FILES or any(map(is_system_folder, (*folders, last)))
  )


def is_system_folder(name: str) -> bool:
  return name.lower() in _SYSTEM_FOLDERS


def pair(where: str, videos: Iterable[str], cars: Iterable[str], *, by_key: bool) -> Pairs:
  """Says which caption files speak of which videos.

  Args:
    where: the folder or archive, for errors.
    videos, cars: names, those of caption files with one of `side_cars.ENDINGS`.
    by_key: in an archive, see (4) above.
  Raises:
    BadInput: a caption file may be of several videos.
  """
  keys: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
  names = set(videos)
  for video in sorted(names):
    keys[_key(video)][_stem(video)].append(video)
  by_key = by_key and all(len(stems) == 1 for stems in keys.values())
  cars = sorted(cars, key=lambda car: (_rank(car), car))
  stems_said = {_base(car) for car in cars}
  of, alone = defaultdict(list), set()
  orders: dict[str, _Order] = {}
  for car in cars:
    base, stems = _base(car), keys.get(_key(car), {})
    if base in names:
      found = [base]
    elif base in stems:
      found = stems[base]
    else:
      order = orders[_key(car)] = orders.get(_key(car)) or _Order.of(stems)
      stem = _find(where, car, order, stems_said if by_key else None)
      found = [] if stem is None else stems[stem]
    for video in found:
      of[video].append(car)
    alone |= set() if found else {car}
  return Pairs(of, frozenset(alone))


def pair_folders(videos: Iterable[str], cars: Iterable[str]) -> Pairs:
  """`pair` in each folder of some paths."""
  folders: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
  for place, paths in enumerate((videos, cars)):
    for path in paths:
      folders[path.rpartition("/")[0]][place].append(path)
  pairs = [
    pair(folder, inside, said, by_key=False) for folder, (inside, said) in sorted(folders.items())
  ]
  of = {video: said for one in pairs for video, said in one.of.items()}
  return Pairs(of, frozenset().union(*(one.alone for one in pairs)))


class _Order(NamedTuple):
  """The stems of a key. Attributes: stems: sorted. lengths: of them, the greatest first."""

  stems: list[str]
  lengths: list[int]

  @classmethod
  def of(cls, stems: Iterable[str]) -> "_Order":
    return cls(sorted(stems), sorted(set(map(len, stems)), reverse=True))

  def has(self, stem: str) -> bool:
    place = bisect_left(self.stems, stem)
    return self.stems[place : place + 1] == [stem]

  def going_on(self, base: str) -> list[str]:
    """The first three stems that go on from a name."""
    begin = bisect_left(self.stems, f"{base}.")
    return [stem for stem in self.stems[begin : begin + 3] if stem.startswith(f"{base}.")]


def _find(where: str, car: str, order: _Order, said: set[str] | None) -> str | None:
  """The stem that a caption file goes with, of those of its key; None for none."""
  base, stems = _base(car), order.stems
  for length in order.lengths:
    before = base[:length]
    if base[length : length + 1] == "." and order.has(before) and not order.going_on(before):
      return before
  after = order.going_on(base)
  if len(after) > 1:
    raise BadInput(
      f"curate: {where}: the captions in {car} may be of {' or '.join(after)}. Give "
      "each video a caption file of its own name."
    )
  if after:
    return after[0]
  return stems[0] if stems and said is not None and stems[0] not in said else None


def _rank(car: str) -> int:
  return next(i for i, ending in enumerate(ENDINGS) if car.lower().endswith(ending))


def _base(car: str) -> str:
  return car[: -len(ENDINGS[_rank(car)])]


def _stem(video: str) -> str:
  folder, slash, last = video.rpartition("/")
  return folder + slash + os.path.splitext(last)[0]


def _key(name: str) -> str:
  """A WebDataset key: the name up to the first dot of its last part."""
  folder, slash, last = name.rpartition("/")
  return folder + slash + last.partition(".")[0]

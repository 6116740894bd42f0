"""Knows the columns of the field's lists of videos by name: Open-Sora, Open-Sora-Plan, Hugging
Face's VideoFolder, Panda-70M, HowTo100M, InternVid, WebVid, ActivityNet Captions.

Case, spaces, `_` and `-` make no difference: `Start_timestamp` is `start timestamp`.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from data_pipeline.errors import BadInput

# In order of precedence, written as `plain` writes them.
_PATHS = (
  *("path", "file", "video", "filename", "filepath", "videopath", "videofile", "videofilename"),
  *("clippath", "mediapath", "media", "relpath", "image", "imagepath", "imagefile"),
)
_IDS = ("videoid", "youtubeid", "ytid", "vid", "clipid")
_URLS = ("url", "videourl", "videolink", "contenturl")
_CAPTIONS = (
  *("caption", "captions", "text", "texts", "cap", "caps", "encap", "sentence", "sentences"),
  *("shortcaption", "longcaption", "densecaption", "detailedcaption", "videocaption"),
)
_SPARE_CAPTIONS = ("prompt", "prompts", "description", "descriptions", "title")  # if none of those
_STARTS = ("startseconds", "start", "starttime", "startsec", "starttimestamp", "begin")
_ENDS = ("endseconds", "end", "endtime", "endsec", "endtimestamp", "stop")
_DURATIONS = ("duration", "durationseconds")
NUMBERS = frozenset({"fps", "framerate", "numframes", "height", "width", "aspectratio"})  # or empty
_PAIRS = ("timestamps", "timestamp")
_CUTS = ("cut",)
_START_FRAMES, _END_FRAMES = ("startframe",), ("endframe",)


class Roles(NamedTuple):
  """The places of the columns that mean something; -1, or none, where there is no such column.

  Attributes:
    captions: all that hold captions. paths, ids, urls: all that name the video, the best first.
    start, end, duration: times. pairs: lists of [start, end]. cut: [first frame, frame after the
      last] at a rate of `fps`, as have start_frame and end_frame.
    is_spare: `captions` are columns that are taken for want of better ones.
    is_file_name: a column is named as VideoFolder wants it, file_name or *_file_name.
    doubled: the name of two columns of which there should be one; "" for none.
  """

  captions: tuple[int, ...]
  paths: tuple[int, ...]
  ids: tuple[int, ...]
  urls: tuple[int, ...]
  start: int
  end: int
  duration: int
  pairs: int
  cut: int
  start_frame: int
  end_frame: int
  fps: int
  spans: int
  licence: tuple[int, ...]
  split: int
  is_spare: bool
  is_file_name: bool
  doubled: str

  @property
  def times(self) -> set[int]:
    ends = {self.end if self.end >= 0 or self.start < 0 else self.duration}
    return {self.start, self.pairs, self.cut, self.start_frame, self.end_frame} | ends

  @property
  def names_video(self) -> bool:
    return bool(self.paths or self.ids or self.urls)


def plain(name: str) -> str:
  """A name of a column without what makes no difference."""
  return re.sub(r"[\s_\-]+", "", name.strip("\ufeff").casefold())


@functools.lru_cache(maxsize=4096)
def find_roles(names: tuple[str, ...], wanted: tuple[str, ...] | None = None) -> Roles:
  """Finds the meaning of a list's columns, or of an object's keys.

  Args:
    wanted: names of those that hold captions; None for the known ones.
  """
  doubled: list[str] = []
  known = [plain(name) for name in names]

  def all_of(wanted: Sequence[str]) -> tuple[int, ...]:
    return tuple(i for name in wanted for i, other in enumerate(known) if other == name)

  def one_of(wanted: Sequence[str]) -> int:
    found = all_of(wanted)
    for name in wanted:
      if known.count(name) > 1:
        doubled.append(names[found[0]].strip())
    return found[0] if found else -1

  captions, is_spare = _caption_columns(known, all_of, wanted)
  paths = tuple(i for i in all_of(_paths(known)) if i not in captions)
  for name in {known[i] for i in paths}:
    one_of((name,))
  return Roles(
    captions=captions,
    paths=paths,
    ids=all_of(_IDS),
    urls=all_of(_URLS),
    start=one_of(_STARTS),
    end=one_of(_ENDS),
    duration=one_of(_DURATIONS),
    pairs=one_of(_PAIRS),
    cut=one_of(_CUTS),
    start_frame=one_of(_START_FRAMES),
    end_frame=one_of(_END_FRAMES),
    fps=one_of(("fps",)),
    spans=one_of(("spans",)),
    licence=all_of(("licence", "license")),
    split=one_of(("split",)),
    is_spare=is_spare,
    is_file_name=any(re.fullmatch(r"\w*filename", name) for name in known),
    doubled=next(iter(doubled), ""),
  )


def _caption_columns(known, all_of, wanted) -> tuple[tuple[int, ...], bool]:
  if wanted is not None:
    return all_of([plain(name) for name in wanted]), False
  if found := all_of(_CAPTIONS):
    return found, False
  is_webvid = "contenturl" in known
  found = all_of((*_SPARE_CAPTIONS, "name") if is_webvid else _SPARE_CAPTIONS)
  return found[:1], bool(found)


def _paths(known: Sequence[str]) -> tuple[str, ...]:
  others = sorted({n for n in known if re.fullmatch(r"\w+file(name|path)", n)} - set(_PATHS))
  return (*_PATHS, *others)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources:
  """The way in which an input is read: `config.curate.sources`.

  Attributes:
    caption_columns: columns of lists, keys of side-cars or features of datasets that hold captions,
      apart by commas; "" for those that are known here, "none" for none.
  Raises:
    BadInput: a name is empty.
  """

  caption_columns: str

  def __post_init__(self) -> None:
    if not all(self.wanted or "x"):
      raise BadInput(
        f"curate.sources.caption_columns={self.caption_columns!r} has an empty name. Give names "
        "apart by commas, 'none', or '' for the known ones."
      )

  @property
  def wanted(self) -> tuple[str, ...] | None:
    """The names; None for the known ones."""
    given = self.caption_columns.strip()
    if given.casefold() == "none":
      return ()
    return tuple(name.strip() for name in given.split(",")) if given else None

"""The settings of curation: `config.curate` as frozen, checked dataclasses.

    from experiments import curate_default
    settings = read_settings(curate_default.get_config().curate.to_dict())
    settings.windows.min_seconds
Values and their reasons are in `experiments/curate_default.py`; there are no defaults here. All
raise BadInput for a value out of its range.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from data_pipeline.curate.caption_settings import CaptionSettings
from data_pipeline.curate.caption_settings import read_settings as read_captions
from data_pipeline.curate.columns import Sources
from data_pipeline.curate.container import Limits as MediaLimits
from data_pipeline.curate.fields import check_choice, check_names, check_range, make
from data_pipeline.curate.shots import DETECTORS
from data_pipeline.errors import BadInput
from data_pipeline.video_writer import CODECS, MAX_SIDE

CUT_VERSION = 4  # of what `cut_source` makes; another one makes everything anew
_UNKNOWN_SECONDS = 4 * 3600.0
MAX_SECONDS = 2e6  # that a process can wait for another: 2**31 milliseconds
_MOST = {
  "timeout_seconds": MAX_SECONDS,
  "timeout_seconds_per_megabyte": MAX_SECONDS,
  "memory_bytes": 2**50,
}
_MAY_BE_SMALL = frozenset(
  {"timeout_seconds_per_megabyte", "max_held_seconds", "free_pixels", "pixels_per_byte"}
)
_THRESHOLDS = {
  "flow": (0.0, 1.0),
  "adaptive": (1.0, 255.0),
  "content": (1.0, 255.0),
  "transnetv2": (0.0, 1.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decode:
  """Bounds of one source. Attributes below `memory_bytes` are those of `container.Limits`.

  Attributes:
    timeout_seconds, timeout_seconds_per_megabyte: of wall-clock time for all that is done with it.
    memory_bytes: RSS of the process that does it.
  """

  timeout_seconds: float
  timeout_seconds_per_megabyte: float
  memory_bytes: int
  max_side: int
  max_pixels: int
  free_pixels: float
  pixels_per_byte: float
  max_seconds: float
  max_frames: int
  max_fps: float
  max_gap_seconds: float
  max_held_seconds: float

  def __post_init__(self) -> None:
    for name, value in vars(self).items():
      least = 0 if name in _MAY_BE_SMALL else 1
      check_range(f"curate.decode.{name}", value, least, _MOST.get(name, math.inf))

  def seconds(self, size: int) -> float:
    """Time that a source of `size` bytes may take; -1 where the size is not known."""
    if size < 0:
      return max(self.timeout_seconds, _UNKNOWN_SECONDS)
    return min(self.timeout_seconds + self.timeout_seconds_per_megabyte * size / 1e6, MAX_SECONDS)

  @property
  def limits(self) -> MediaLimits:
    names = (field.name for field in dataclasses.fields(MediaLimits))
    return MediaLimits(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shots:
  """See `shots.make_finder`. Attributes: side: pixels of the frames that are looked at."""

  detector: str
  threshold: float
  min_content: float
  min_seconds: float
  side: int

  def __post_init__(self) -> None:
    check_choice("curate.shots.detector", self.detector, DETECTORS)
    low, high = _THRESHOLDS[self.detector]
    check_range(f"curate.shots.threshold (of {self.detector})", self.threshold, low, high)
    check_range("curate.shots.min_content", self.min_content, 0, 255)
    check_range("curate.shots.min_seconds", self.min_seconds, 0, 3600)
    check_range("curate.shots.side", self.side, 32, 2048)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
  """See `windows.find_windows`."""

  min_seconds: float
  max_seconds: float
  overlap_seconds: float
  trim_seconds: float

  def __post_init__(self) -> None:
    check_range("curate.windows.min_seconds", self.min_seconds, 0, 3600)
    check_range("curate.windows.max_seconds", self.max_seconds, max(self.min_seconds, 0.01), 3600)
    check_range("curate.windows.overlap_seconds", self.overlap_seconds, 0, self.max_seconds / 2)
    check_range("curate.windows.trim_seconds", self.trim_seconds, 0, 60)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """Of one score.

  Attributes:
    measure: the score is computed and kept in the record; otherwise its limits do not hold.
    min, max: clips outside are rejected; None is no limit.
  """

  measure: bool
  min: float | None
  max: float | None

  def __post_init__(self) -> None:
    if self.min is not None and self.max is not None and self.min > self.max:
      raise BadInput(
        f"curate.scores: min={self.min:g} is above max={self.max:g} ({type(self).__name__}). No "
        "clip would be left: correct one of them."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Motion(Limits):
  """Attributes: min_camera: slower motion of the camera is "static", frame diagonals a second."""

  min_camera: float

  def __post_init__(self) -> None:
    super().__post_init__()
    check_range("curate.scores.motion.min_camera", self.min_camera, 0, 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Letterbox(Limits):
  """Limits of the share of the frame that is bars, and:

  Attributes:
    crop: bars are cut off.
    min_side: pixels that the picture between bars that are cut off has at least, either way.
    max_luma: of a black line, 0..255.
  """

  crop: bool
  min_side: int
  max_luma: float

  def __post_init__(self) -> None:
    super().__post_init__()
    check_range("curate.scores.letterbox.min_side", self.min_side, 1, MAX_SIDE)
    check_range("curate.scores.letterbox.max_luma", self.max_luma, 0, 255)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Limits):
  """Attributes: side: pixels of the frame in which text is looked for."""

  side: int

  def __post_init__(self) -> None:
    super().__post_init__()
    check_range("curate.scores.text.side", self.side, 64, 4096)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aesthetic(Limits):
  """Attributes: encoder, head: files; see `aesthetic`."""

  encoder: str
  head: str

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.measure and not (self.encoder and self.head):
      raise BadInput(
        "curate.scores.aesthetic: measure=True needs weights. Give the files `encoder` and `head`, "
        "or set measure=False."
      )

  def hash_files(self) -> list[str]:
    """Hashes of what the files hold. Raises BadInput: one cannot be read."""
    return [_hash_file(name, getattr(self, name)) for name in ("encoder", "head")]


def _hash_file(name: str, path: str) -> str:
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise BadInput(
      f"curate.scores.aesthetic: {name}={path} cannot be read ({error.strerror}). Give the file of "
      "weights, or set measure=False."
    ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """What is measured of a clip.

  Attributes:
    frames: of a clip that are looked at one by one, evenly spaced; also those of `near`.
    side: pixels of their longer side, at most, when they are measured.
  """

  frames: int
  side: int
  motion: Motion
  sharpness: Limits
  brightness: Limits
  contrast: Limits
  letterbox: Letterbox
  text: Text
  nsfw: Limits
  aesthetic: Aesthetic

  def __post_init__(self) -> None:
    check_range("curate.scores.frames", self.frames, 1, 64)
    check_range("curate.scores.side", self.side, 64, 4096)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Near:
  """See `near.find_pairs`. Attributes: remove: near-duplicates are looked for, and go."""

  remove: bool
  max_distance: float
  within_source: bool

  def __post_init__(self) -> None:
    check_range("curate.near.max_distance", self.max_distance, 0, 64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Write:
  """How clips are written.

  Attributes:
    name: of the dataset, as TFDS shows it.
    licence: of sources that bring none; SPDX id or text.
    shard_bytes: size of a shard, about.
    codec: of the clips' videos, one of `video_writer.CODECS`.
    quality: of the codec; CRF of h264.
    max_side: pixels; larger clips are reduced. None leaves every size.
    held_out_fraction: of the sources, not trained on.
    inherit_captions: captions of a whole source go to "all" its clips, to those of a source of
      one shot ("one_shot"), or to none of them ("none").
  """

  name: str
  licence: str
  shard_bytes: int
  codec: str
  quality: int
  max_side: int | None
  held_out_fraction: float
  inherit_captions: str

  def __post_init__(self) -> None:
    check_choice("curate.write.codec", self.codec, CODECS)
    check_choice("curate.write.inherit_captions", self.inherit_captions, _INHERIT)
    check_range("curate.write.quality", self.quality, 0, 51)
    check_range("curate.write.shard_bytes", self.shard_bytes, 1, 2**50)
    check_range("curate.write.max_side", self.max_side, 1, MAX_SIDE)
    check_range("curate.write.held_out_fraction", self.held_out_fraction, 0, 1)


_INHERIT = ("all", "one_shot", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """All of them, as `config.curate` has them."""

  sources: Sources
  decode: Decode
  shots: Shots
  windows: Windows
  scores: Scores
  near: Near
  captions: CaptionSettings
  write: Write

  def cut_digest(self) -> str:
    """Hash of all that decides what `cut_source` makes of a source that it gets through.

    Files of weights are read once, at the first call; copies of these settings in other processes
    know the result.

    Raises:
      BadInput: such a file cannot be read.
    """
    return self._cut_digest

  @functools.cached_property
  def _cut_digest(self) -> str:
    write = dataclasses.asdict(self.write)
    decides = [
      *(dataclasses.asdict(part) for part in (self.shots, self.windows, self.scores)),
      dataclasses.asdict(self.decode.limits),
      {name: value for name, value in write.items() if name not in ("name", "shard_bytes")},
    ]
    if self.scores.aesthetic.measure:
      decides.append({"weights": self.scores.aesthetic.hash_files()})
    text = json.dumps([CUT_VERSION, decides], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_settings(config: Mapping[str, Any]) -> Settings:
  """Settings out of plain values, `config.curate.to_dict()`.

  Raises:
    BadInput: a setting is missing, unknown, of another type, or out of its range.
  """
  fields: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Settings)}
  if not isinstance(config, Mapping):
    raise BadInput(f"curate={config!r} is no section. Give its settings by name.")
  check_names("curate", set(fields), set(config))
  del fields["captions"]
  parts = {name: make(kind, f"curate.{name}", config[name]) for name, kind in fields.items()}
  return Settings(**parts, captions=read_captions(config["captions"]))

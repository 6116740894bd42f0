"""What is in a media file, and its frames at a constant rate, upright and in RGB.

Both read an open file and nothing else (`container`). The rule for rates is in `timing`, that for
colours in `colours`. Frames are streamed. Beside the file's own index, a reader holds at most
`HELD_FRAMES` frames in the file's pixel format (16 references of a codec, its delay, the
deinterlacer), four RGB pictures at the file's size or the asked one, and `HELD_BYTES` of buffers,
however long the file is; while timestamps are looked at, about 80 bytes a frame more.

Reasons for which a source is refused (`Refused.reason`):
  empty, not_video, no_video (audio only), no_decoder, unreadable (the storage fails)
  damaged            it was a video, and cannot be decoded; or not from here on
  reaches_out        it asks for another file or address
  too_large, too_long, too_many_frames      beyond `Limits`
  broken_timestamps  jumps longer than `Limits.max_gap_seconds`, most at one time, or many missing
  colours            a colour matrix that cannot be converted
"""

import dataclasses
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np

from data_pipeline.curate.colours import (
  MATRICES,
  RANGES,
  TRANSFERS,
  Deinterlacer,
  Orientation,
  Painter,
)
from data_pipeline.curate.container import Limits
from data_pipeline.curate.decode import Survey, decoded, survey
from data_pipeline.curate.stills import durations_ms, open_still, paint_still, still_format
from data_pipeline.curate.timing import Timing, fill, measure

HELD_FRAMES = 24
HELD_BYTES = 64 << 20
_LIMITS = Limits()
_MARGIN = 2  # frames that the deinterlacer wants to see before the first


@dataclasses.dataclass(frozen=True)
class MediaInfo:
  """What is in a media file.

  Attributes:
    format: the container, by FFmpeg's or Pillow's name.
    codec: the decoder.
    width, height: pixels, upright. Pixels are left as they are stored: see `pixel_aspect`.
    fps: the constant rate of `frames`, frames/second; 1 for a picture.
    frames: at that rate, as far as the file can be read.
    source_frames: in the file; differs from `frames` where frames are repeated or dropped.
    rotation: degrees clockwise by which stored frames are turned: 0, 90, 180 or 270.
    is_mirrored: stored frames are mirrored left to right, then turned.
    pix_fmt: of stored frames, FFmpeg's name or Pillow's mode.
    matrix, colour_range, transfer: names; "unknown" is read as BT.601, and as limited range.
    pixel_aspect: width / height of a stored pixel.
    is_variable_rate: source frames are not evenly spaced.
    damage: "truncated": the file ends before it says, after `frames`; else "".
    declared_frames: that the file speaks of; equal to `frames` if it is not damaged.
  """

  format: str
  codec: str
  width: int
  height: int
  fps: Fraction
  frames: int
  source_frames: int
  rotation: int
  is_mirrored: bool
  pix_fmt: str
  matrix: str
  colour_range: str
  transfer: str
  pixel_aspect: Fraction
  is_variable_rate: bool
  is_interlaced: bool
  is_picture: bool
  has_alpha: bool
  damage: str
  declared_frames: int
  timing: Timing = dataclasses.field(repr=False)

  @property
  def seconds(self) -> float:
    return float(self.frames / self.fps)


def probe(file: BinaryIO, limits: Limits = _LIMITS) -> MediaInfo:
  """Looks at a whole file: its packets, and its first frame.

  Args:
    file: open for reading, seekable.
  Raises:
    Refused: see the list above.
  """
  form = _form(file)
  return _probe_still(file, form, limits) if form else _probe_video(file, limits)


def frames(
  file: BinaryIO,
  info: MediaInfo | None = None,
  *,
  start: int = 0,
  stop: int | None = None,
  size: tuple[int, int] | None = None,
  limits: Limits = _LIMITS,
) -> Iterator[np.ndarray]:
  """The frames `start <= k < stop` at the constant rate `info.fps`.

  Args:
    file: as given to `probe`.
    info: what `probe` said of it; None asks it.
    stop: None is the end, as is anything beyond it.
    size: (width, height) of the result, upright; None is the file's own.
  Yields:
    uint8 [H,W,3], RGB, read-only: a repeated frame is the same array.
  Raises:
    Refused: see the list above. "damaged" may come after good frames: those before it stand.
  """
  info = info or probe(file, limits)
  size = size or (info.width, info.height)
  stop = info.frames if stop is None else min(stop, info.frames)
  if start >= stop:
    return
  if form := _form(file):
    shown, paint = _pictures(file, form, info, size, limits), np.asarray
  else:
    painter = Painter(size, Orientation(info.rotation // 90, info.is_mirrored))
    shown, paint = _video(file, info, start, limits), painter.paint
  longest = info.timing.longest_run + math.ceil(info.fps)  # a second may be lost in all
  last, painted = None, None
  for item in fill(shown, start, stop, longest):
    if painted is None or item is not last:
      last, painted = item, paint(item)
      painted.flags.writeable = False
    yield painted


def _form(file: BinaryIO) -> str:
  """Pillow's name of the file's format; "" for a video."""
  file.seek(0)
  return still_format(file.read(512))


def _measured(stamps: np.ndarray, last: int, tick: Fraction, rates: Any, limits: Limits) -> Timing:
  return measure(
    stamps,
    last,
    tick,
    rates,
    max_seconds=limits.max_seconds,
    max_frames=limits.max_frames,
    max_fps=limits.max_fps,
    max_gap_seconds=limits.max_gap_seconds,
  )


# ---- videos


def _probe_video(file: BinaryIO, limits: Limits) -> MediaInfo:
  found = survey(file, limits)
  timing = _measured(found.stamps, found.last_ticks, found.tick, found.rates, limits)
  timing = dataclasses.replace(timing, is_counted=found.is_counted)
  width, height = found.orientation.size(found.width, found.height)
  return MediaInfo(
    format=found.format,
    codec=found.codec,
    width=width,
    height=height,
    fps=timing.fps,
    frames=timing.frames,
    source_frames=timing.source_frames,
    rotation=90 * found.orientation.turns,
    is_mirrored=found.orientation.is_mirrored,
    pix_fmt=found.pix_fmt,
    matrix=MATRICES.get(found.matrix, str(found.matrix)),
    colour_range=RANGES.get(found.colour_range, "unknown"),
    transfer=TRANSFERS.get(found.transfer, str(found.transfer)),
    pixel_aspect=found.pixel_aspect,
    is_variable_rate=timing.is_variable,
    is_interlaced=found.is_interlaced,
    is_picture=False,
    has_alpha=found.has_alpha,
    damage=found.damage,
    declared_frames=_declared(found, timing),
    timing=timing,
  )


def _declared(found: Survey, timing: Timing) -> int:
  if not found.damage:
    return timing.frames
  return max(timing.frames, round(found.declared_seconds * timing.fps))


def _video(
  file: BinaryIO, info: MediaInfo, start: int, limits: Limits
) -> Iterator[tuple[int, Any]]:
  """(output frame, decoded frame), interlaced ones made whole."""
  whole = Deinterlacer()
  margin = _MARGIN if info.is_interlaced else 0
  for slot, frame in decoded(file, info.timing, max(0, start - margin), limits):
    yield from whole.push(slot, frame)
  yield from whole.flush()


# ---- pictures


def _probe_still(file: BinaryIO, form: str, limits: Limits) -> MediaInfo:
  with open_still(file, form, limits) as image:
    shown = list(durations_ms(image, limits.max_frames))
    image.seek(0)
    height, width = paint_still(image, None).shape[:2]
    if len(shown) == 1:
      timing = Timing(0, Fraction(1), Fraction(1), 1, False, 1, 1)
    else:
      stamps = np.cumsum([0, *shown[:-1]], dtype=np.int64)
      timing = _measured(stamps, shown[-1], Fraction(1, 1000), (), limits)
    return MediaInfo(
      format=form.lower(),
      codec=form.lower(),
      width=width,
      height=height,
      fps=timing.fps,
      frames=timing.frames,
      source_frames=len(shown),
      rotation=0,
      is_mirrored=False,
      pix_fmt=image.mode,
      matrix="rgb",
      colour_range="pc",
      transfer="unknown",
      pixel_aspect=Fraction(1),
      is_variable_rate=timing.is_variable,
      is_interlaced=False,
      is_picture=len(shown) == 1,
      has_alpha="A" in image.mode or "transparency" in image.info,
      damage="",
      declared_frames=timing.frames,
      timing=timing,
    )


def _pictures(
  file: BinaryIO, form: str, info: MediaInfo, size: tuple[int, int], limits: Limits
) -> Iterator[tuple[int, np.ndarray]]:
  """(output frame, picture) of a still or an animation."""
  stamp = 0
  with open_still(file, form, limits) as image:
    for duration in durations_ms(image, limits.max_frames):
      yield info.timing.slot(stamp), paint_still(image, size)
      stamp += duration

"""What is in a media file, and its frames at a constant rate, upright and in RGB.

Both read an open file and nothing else (`container`). The rule for rates is in `timing`, that for
colours in `colours`. Frames are streamed. Beside the file's own index, a reader holds at most
`HELD_FRAMES` frames in the file's pixel format (16 references of a codec, its delay, the
deinterlacer), four RGB pictures at the file's size or the asked one, and `HELD_BYTES` of buffers,
however long the file is; and about 20 bytes a frame of its timestamps, 200 while they are looked
at.

Reasons for which a source is refused (`Refused.reason`):
  empty, not_video, no_video (audio only), no_decoder, unreadable (the storage fails)
  damaged            it was a video, and cannot be decoded; or not from here on
  reaches_out        it asks for another file or address
  too_large, too_long, too_many_frames      beyond `Limits`
  broken_timestamps  times leap again and again, or most are one time
  held               one frame would be shown longer than `Limits.max_held_seconds`
  bomb               more pixels than a file of its size may hold
  size_change        frames lie otherwise than those before: see `looks`
  colours            a colour matrix, or a picture of 32 bits a channel, that cannot be converted
  alpha              alpha that lies beside the pictures, where it cannot be read
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
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
from data_pipeline.curate.container import Limits, refusing
from data_pipeline.curate.decode import Index, decoded
from data_pipeline.curate.frame_index import index_frames
from data_pipeline.curate.heif import has_alpha_track
from data_pipeline.curate.looks import Look, Seen, alike, parted
from data_pipeline.curate.packets import CUT_OFF, Survey, survey
from data_pipeline.curate.stills import open_still, resized, still_format
from data_pipeline.curate.timing import Loss, Timing, fill, measure
from data_pipeline.curate.types import Refused

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
    dropped: source frames that no output frame shows: another has their place.
    streams: of video in the file, of which one is read.
    pictures: in the file; of those that are no animation only one is read.
    timing: when they are shown; what cannot be is in its `losses`.
    index: where they are; None for a picture.
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
  dropped: int
  streams: int
  pictures: int
  timing: Timing = dataclasses.field(repr=False)
  index: Index | None = dataclasses.field(repr=False)

  @property
  def seconds(self) -> float:
    return float(self.frames / self.fps)


def probe(file: BinaryIO, limits: Limits = _LIMITS, *, trusts: bool = False) -> MediaInfo:
  """Decodes a whole file to learn what is in it.

  Args:
    file: open for reading, seekable.
    trusts: times that a container gives, and that look right, are believed without decoding;
      `frames` raises `decode.Misread` where they turn out to be wrong.
  Raises:
    Refused: see the list above.
  """
  form = still_format(file)
  return _probe_still(file, form, limits) if form else _probe_video(file, limits, trusts)


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
    Refused: see the list above. "damaged" and "size_change" may come after good frames: those
      before it stand.
  """
  info = info or probe(file, limits)
  size = size or (info.width, info.height)
  stop = info.frames if stop is None else min(stop, info.frames)
  losses = (x for x in info.timing.losses if x.stop is None or x.stop > max(start, x.start))
  loss = next(losses, None)
  end = stop if loss is None else min(stop, loss.start)
  if start < end:
    shown = _shown(file, info, start, end, limits)
    yield from _painted(alike(shown, (info.width, info.height), start), size)
  if loss is not None and max(start, end) < stop:
    raise Refused(loss.reason, loss.detail)


def parts(
  file: BinaryIO,
  info: MediaInfo,
  start: int,
  stop: int,
  fit: Callable[[MediaInfo], tuple[int, int]],
  limits: Limits = _LIMITS,
) -> Iterator[tuple[MediaInfo, Iterator[np.ndarray]]]:
  """Frames, as `frames` gives them, in parts: a new one where their size changes.

  Args:
    start, stop: within one of `info.timing.parts`.
    fit: the size (width, height) of the frames of a part.
  Yields:
    What `frames` wants to know for frames of the part, counted from the file's first, and its
    frames, which have to be read before the next part.
  Raises:
    Refused: see the list above.
  """
  shown = _shown(file, info, start, stop, limits)
  for number, (look, seen) in enumerate(parted(shown)):
    is_first = number == 0 and look.size == (info.width, info.height)
    part = info if is_first else _of_look(info, look)
    yield part, _painted(seen, fit(part))


def _of_look(info: MediaInfo, look: Look) -> MediaInfo:
  (width, height), orientation = look.size, look.orientation or Orientation()
  return dataclasses.replace(
    info,
    width=width,
    height=height,
    rotation=90 * orientation.turns,
    is_mirrored=orientation.is_mirrored,
    pixel_aspect=look.pixel_aspect,
  )


def _shown(
  file: BinaryIO, info: MediaInfo, start: int, stop: int, limits: Limits
) -> Iterator[Seen]:
  """Gives what is shown in the output frames `start <= k < stop`, which no loss divides."""
  is_picture = info.index is None
  seen = _pictures(file, info, limits) if is_picture else _video(file, info, start, limits)
  return fill(seen, start, stop)


def _painted(shown: Iterable[Seen], size: tuple[int, int]) -> Iterator[np.ndarray]:
  """Pictures of frames that lie alike; of one that is repeated, the same."""
  painter, last, picture = None, None, None
  for look, frame in shown:
    painter = painter or Painter(size, look.orientation or Orientation())
    if picture is None or frame is not last:
      is_painted = isinstance(frame, np.ndarray)
      last, picture = frame, resized(frame, size) if is_painted else painter.paint(frame)
      picture.flags.writeable = False
    yield picture


def _measured(
  stamps: np.ndarray, last: int, tick: Fraction, rates: Any, limits: Limits, **known: Any
) -> Timing:
  return measure(
    stamps,
    last,
    tick,
    rates,
    max_seconds=limits.max_seconds,
    max_frames=limits.max_frames,
    max_fps=limits.max_fps,
    max_gap_seconds=limits.max_gap_seconds,
    max_held_seconds=limits.max_held_seconds,
    **known,
  )


# ---- videos


def _probe_video(file: BinaryIO, limits: Limits, trusts: bool) -> MediaInfo:
  found = survey(file, limits)
  with refusing():
    if found.format.startswith("mov") and has_alpha_track(file):
      raise Refused("alpha", "alpha in a track of its own is not read")
  timing, index = _lay(file, found, limits, trusts)
  if found.unread:
    form = found.format.partition(",")[0]
    detail = f"another {form} file begins at byte {found.unread}: split the file there"
    whole = [loss for loss in timing.losses if loss.stop is not None]
    losses = (*whole, Loss(timing.frames, None, "unread", detail))
    timing = dataclasses.replace(timing, losses=losses)
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
    dropped=timing.dropped,
    streams=found.streams,
    pictures=1,
    timing=timing,
    index=index,
  )


def _lay(file: BinaryIO, found: Survey, limits: Limits, trusts: bool) -> tuple[Timing, Index]:
  """Times and places of the frames, by the container if it is believed, else by decoding all."""
  last, tick, rates = found.last_ticks, found.tick, found.rates
  if trusts and not found.doubt and _is_continuous(found, limits):
    holes = [(number, CUT_OFF) for number in found.cut_off]
    timing = _measured(found.stamps, last, tick, rates, limits, holes=holes)
    return timing, Index(found.stamps)
  seen = index_frames(file, limits, next((rate for rate in rates if rate), None))
  if seen.is_counted:
    last, rates = 0, (1 / seen.tick,)
  holes = list(seen.holes)
  if not holes and len(seen.index.stamps) == len(found.stamps):
    holes = [(number, CUT_OFF) for number in found.cut_off]
  known = dict(holes=holes, seams=seen.seams)
  return _measured(seen.index.stamps, last, seen.tick, rates, limits, **known), seen.index


def _is_continuous(found: Survey, limits: Limits) -> bool:
  """Tells whether no leap in time is so long that another recording begins."""
  steps = np.diff(found.stamps.astype(np.float64))
  return bool(steps.max(initial=0.0) * float(found.tick) <= limits.max_gap_seconds)


def _declared(found: Survey, timing: Timing) -> int:
  if not found.damage:
    return timing.frames
  return max(timing.frames, round(found.declared_seconds * timing.fps))


def _video(
  file: BinaryIO, info: MediaInfo, start: int, limits: Limits
) -> Iterator[tuple[int, Seen]]:
  """(output frame, decoded frame), interlaced ones made whole."""
  assert info.index is not None
  whole, timing, stamps = Deinterlacer(), info.timing, info.index.stamps
  begin = max(first for first, _ in timing.parts if first <= start)
  margin = _MARGIN if info.is_interlaced else 0  # of the same part
  least = max(_shown_at(info, start) - margin, _shown_at(info, begin))
  orientation = Orientation(info.rotation // 90, info.is_mirrored)
  for number, (look, frame) in decoded(file, info.index, least, limits):
    orientation = look.orientation or orientation
    if number < least:
      continue
    slot, look = timing.slot(int(stamps[number])), look._replace(orientation=orientation)
    for (place, lies), ready in whole.push((slot, look), frame):
      yield place, (lies, ready)
  for (place, lies), ready in whole.flush():
    yield place, (lies, ready)


def _shown_at(info: MediaInfo, slot: int) -> int:
  """The number of the source frame that an output frame shows."""
  assert info.index is not None
  end = math.ceil(info.timing.stamp(slot + 1))
  return max(0, int(np.searchsorted(info.index.stamps, end)) - 1)


# ---- pictures


def _probe_still(file: BinaryIO, form: str, limits: Limits) -> MediaInfo:
  with open_still(file, form, limits) as still:
    times, has_alpha, shape = [], False, (0, 0, 3)
    for time in still.times(limits):
      times.append(time)
      has_alpha = has_alpha or still.is_transparent
      shape = still.paint().shape if len(times) == 1 else shape
    timing = Timing(0, Fraction(1), Fraction(1), 1, False, 1)
    if still.count > 1:
      stamps = np.array([start for start, _ in times], dtype=np.int64)
      timing = _measured(stamps, times[-1][1], Fraction(1, 1000), (), limits)
    return MediaInfo(
      format=form.lower(),
      codec=form.lower(),
      width=shape[1],
      height=shape[0],
      fps=timing.fps,
      frames=timing.frames,
      source_frames=len(times),
      rotation=0,
      is_mirrored=False,
      pix_fmt=still.image.mode,
      matrix="rgb",
      colour_range="pc",
      transfer="unknown",
      pixel_aspect=Fraction(1),
      is_variable_rate=timing.is_variable,
      is_interlaced=False,
      is_picture=still.count == 1,
      has_alpha=has_alpha,
      damage="truncated" if len(times) < still.count else "",
      declared_frames=round(timing.frames * still.count / len(times)),
      dropped=timing.dropped,
      streams=0,
      pictures=still.pictures,
      timing=timing,
      index=None,
    )


def _pictures(file: BinaryIO, info: MediaInfo, limits: Limits) -> Iterator[tuple[int, Seen]]:
  """(output frame, picture) of a still or an animation."""
  look = Look(info.width, info.height, info.pixel_aspect, Orientation())
  with open_still(file, still_format(file), limits) as still:
    for start, _ in still.times(limits):
      yield info.timing.slot(start), (look, still.paint())

"""One source, from opening it to encoded clips: what the child process does.

The file is read three times, always frame by frame: small, for cuts and motion; a few frames of
every window, for all other scores; and the windows that are kept, to encode them. Nothing of a
source is held but numbers, one encoded clip, and what `media.frames` and `encode_video` hold (see
there): memory does not grow with its length.

What it leaves is a spool (`spool_writer`).
"""

import dataclasses
import json
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from data_pipeline.curate import barred
from data_pipeline.curate.content import hash_content
from data_pipeline.curate.decode import Misread
from data_pipeline.curate.media import MediaInfo, frames, parts, probe
from data_pipeline.curate.motion import MotionMeter
from data_pipeline.curate.picture import Bars, bar_share, crop, opencv, reduce
from data_pipeline.curate.placing import choose_captions, inherits
from data_pipeline.curate.scores import STILL, Look, judge, judge_size, look_at
from data_pipeline.curate.settings import Settings
from data_pipeline.curate.shots import Shot, ShotFinder, make_finder
from data_pipeline.curate.sources import open_source
from data_pipeline.curate.spool_writer import Spool, Summary, count_words, read_summary
from data_pipeline.curate.types import Refused, Reject, Source
from data_pipeline.curate.windows import Left, Window, find_windows
from data_pipeline.records import ClipRecord
from data_pipeline.video import EncodedVideo
from data_pipeline.video_writer import encode_video


class _Survey(NamedTuple):
  """The findings of the first reading.

  Attributes:
    parts: ranges of frames of one size that could be read, with their shots and what is known.
    rejects: what could not be.
    meter: of motion; None if it is not measured.
  """

  parts: list[tuple[int, int, list[Shot], MediaInfo]]
  rejects: list[Reject]
  meter: MotionMeter | None

  @property
  def shots(self) -> int:
    return sum(len(shots) for _, _, shots, _ in self.parts)


def cut_source(source: Source, settings: Settings, folder: str | os.PathLike) -> Summary:
  """Cuts a source into clips, and leaves its spool in a folder. Not again, if it lies there.

  Args:
    source: to open.
    settings: of curation; captions of an endpoint and near-duplicates come later.
    folder: of spools, made if absent; many processes may write into one.
  Returns:
    The summary of the spool.
  Raises:
    BadInput: what would meet every source: a missing package, an unusable setting.
    OSError: the disk is full.
  """
  if kept := read_summary(source, settings, folder):
    return kept
  opencv().setNumThreads(1)  # processes are the workers; and the same sums everywhere
  spool = Spool(source, settings, folder)
  try:
    _cut_or_reject(spool, settings)
    return spool.finish()
  except BaseException:
    spool.abandon()
    raise


def _cut_or_reject(spool: Spool, settings: Settings) -> None:
  try:
    with open_source(spool.source) as file:
      try:
        _cut(file, spool, settings)
      except Refused as error:
        spool.reject(Reject(spool.source.name, None, error.reason, None, error.detail))
      spool.summary["content"] = hash_content(spool.source, file)
  except Refused as error:  # on opening
    spool.reject(Reject(spool.source.name, None, error.reason, None, error.detail))


def _cut(file: BinaryIO, spool: Spool, settings: Settings) -> None:
  name, limits = spool.source.name, settings.decode.limits
  info = probe(file, limits, trusts=True)
  try:
    seen = _survey(file, name, info, settings)
  except Misread:
    info = probe(file, limits)
    seen = _survey(file, name, info, settings)
  spool.summary |= {"media": _facts(info), "shots": seen.shots, "rate": str(info.fps)}
  sizes = [[start, part.width, part.height] for start, _, _, part in seen.parts]
  spool.summary["media"]["sizes"] = sizes
  for reject in [*seen.rejects, *_left_out(name, info)]:
    spool.reject(reject)
  windows, left = _find_windows(seen, info, settings)
  for start, stop, reason, detail in left:
    spool.reject(Reject(name, start, reason, stop, detail))
  for part, window in windows:
    try:
      refusal = _cut_window(file, part, window, seen, spool, settings)
    except Refused as error:
      refusal = error.reason, error.detail
    if refusal:
      reason, detail = refusal
      spool.reject(Reject(name, window.start, reason, window.stop, detail))


def _find_windows(
  seen: _Survey, info: MediaInfo, settings: Settings
) -> tuple[list[tuple[MediaInfo, Window]], list[Left]]:
  """The windows of every part, and what is left of it."""
  windows: list[tuple[MediaInfo, Window]] = []
  left: list[Left] = []
  if info.frames == 1:
    return [(info, Window(0, 1, 0))], []
  for start, stop, shots, part in seen.parts:
    found = find_windows(shots, stop - start, info.fps, **dataclasses.asdict(settings.windows))
    windows += [(part, Window(start + a, start + b, number)) for a, b, number in found[0]]
    left += [one._replace(start=start + one.start, stop=start + one.stop) for one in found[1]]
  return windows, left


def _left_out(name: str, info: MediaInfo) -> Iterator[Reject]:
  """Rows of what has no place among the frames of a source."""
  if info.dropped:
    detail = f"{info.dropped} of {info.source_frames} frames have no place of their own"
    detail = f"{detail} at {float(info.fps):.6g} fps"
    yield Reject(name, 0, "dropped_frames", info.frames, detail)
  if info.streams > 1:
    detail = f"{info.streams} video streams: only the best is read"
    yield Reject(name, info.frames, "more_streams", None, detail)
  if info.pictures > 1:
    detail = f"{info.pictures} pictures: only the primary one is read"
    yield Reject(name, 1, "more_pictures", None, detail)


def _facts(info: MediaInfo) -> dict[str, Any]:
  """Gives what `probe` says, JSON-able."""
  names = [f.name for f in dataclasses.fields(info) if f.name not in ("timing", "index")]
  facts = {name: getattr(info, name) for name in names}
  return {k: float(v) if isinstance(v, Fraction) else v for k, v in facts.items()}


def _survey(file: BinaryIO, name: str, info: MediaInfo, settings: Settings) -> _Survey:
  """Reads all frames, small.

  Raises:
    Refused: none can be read.
    Misread: they are not those that the container speaks of.
  """
  meter = MotionMeter(info.fps) if settings.scores.motion.measure else None
  side, limits = settings.shots.side, settings.decode.limits
  found, rejects = [], _lost(name, info)
  for start, stop in info.timing.parts:
    pieces: list[tuple[int, ShotFinder, MediaInfo]] = []
    count = start
    try:
      for part, shown in parts(file, info, start, stop, lambda part: _small(part, side), limits):
        pieces.append((count, _make_finder(info, settings), part))
        if meter:
          meter.skip_to(count)
        for frame in shown:
          pieces[-1][1].add(frame)
          if meter:
            meter.add(frame)
          count += 1
    except Refused as error:
      if not count:
        raise
      rejects.append(Reject(name, count, error.reason, stop, error.detail))
    ends = [begin for begin, _, _ in pieces[1:]] + [count]
    for (begin, finder, part), end in zip(pieces, ends, strict=True):
      found.append((begin, end, finder.finish(), part))
  if not found and rejects:
    raise Refused(rejects[0].reason, rejects[0].detail)
  return _Survey(found, rejects, meter)


def _small(info: MediaInfo, side: int) -> tuple[int, int]:
  scale = min(1.0, side / max(info.width, info.height))
  return max(1, round(info.width * scale)), max(1, round(info.height * scale))


def _make_finder(info: MediaInfo, settings: Settings) -> ShotFinder:
  shots = settings.shots
  return make_finder(
    info.fps,
    detector=shots.detector,
    threshold=shots.threshold,
    min_content=shots.min_content,
    min_seconds=shots.min_seconds,
  )


def _lost(name: str, info: MediaInfo) -> list[Reject]:
  """Rows of the frames that nothing may be made of."""
  losses = info.timing.losses
  rows = [Reject(name, loss.start, loss.reason, loss.stop, loss.detail) for loss in losses]
  if info.damage and not (rows and rows[-1].end_frame is None):
    detail = f"{info.frames} of {info.declared_frames} frames can be read"
    rows.append(Reject(name, info.frames, info.damage, None, detail))
  return rows


def _cut_window(
  file: BinaryIO, info: MediaInfo, window: Window, seen: _Survey, spool: Spool, settings: Settings
) -> tuple[str, str] | None:
  """Adds the clip of a window to the spool. Returns why it does not, if so."""
  start, stop = window.start, window.stop
  least = settings.scores.motion.min_camera
  motion, camera = seen.meter.measure(start, stop, min_camera=least) if seen.meter else ({}, "")
  if refusal := judge(motion, settings.scores):
    if refusal[0] == STILL and any(bars := barred.glance(file, info, start, stop, settings)):
      motion, camera = barred.measure_motion(file, info, window, bars, settings)
      refusal = judge(motion, settings.scores)
    if refusal:
      return refusal
  look = look_at(_pick(file, info, start, stop, settings), settings.scores)
  bars = look.bars if settings.scores.letterbox.crop else Bars()
  if seen.meter and bar_share(bars, info.height, info.width) > barred.SLIGHT:
    motion, camera = barred.measure_motion(file, info, window, bars, settings)
  scores = {name: float(f"{value:.6g}") for name, value in (motion | look.scores).items()}
  size = judge_size(bars, info.height, info.width, settings.scores.letterbox)
  if refusal := judge(scores, settings.scores) or size:
    return refusal
  video = _encode(file, info, start, stop, bars, settings)
  record = _make_record(spool, window, seen.shots, info.fps, video, scores, settings)
  spool.add(record, _describe(record, video, bars, look, camera))
  return None


def _pick(
  file: BinaryIO, info: MediaInfo, start: int, stop: int, settings: Settings
) -> Iterator[np.ndarray]:
  """The middle frames of equal parts of a window, each once."""
  count = settings.scores.frames
  places = sorted({start + (2 * i + 1) * (stop - start) // (2 * count) for i in range(count)})
  shown = frames(file, info, start=places[0], stop=places[-1] + 1, limits=settings.decode.limits)
  wanted = set(places)
  yield from (frame for place, frame in enumerate(shown, places[0]) if place in wanted)


def _encode(
  file: BinaryIO, info: MediaInfo, start: int, stop: int, bars: Bars, settings: Settings
) -> EncodedVideo:
  """The frames of a window, cropped and reduced, as they come."""
  write = settings.write

  def fit(frame: np.ndarray) -> np.ndarray:
    picture = crop(frame, bars)
    side = write.max_side or max(picture.shape[:2])
    return np.ascontiguousarray(reduce(picture, side))

  height, width, _ = fit(np.zeros((info.height, info.width, 3), np.uint8)).shape
  shown = frames(file, info, start=start, stop=stop, limits=settings.decode.limits)
  return encode_video(
    map(fit, shown),
    width=width,
    height=height,
    fps=info.fps,
    codec=write.codec,
    quality=write.quality if write.codec == "h264" else None,
  )


def _make_record(
  spool: Spool,
  window: Window,
  shots: int,
  fps: Fraction,
  video: EncodedVideo,
  scores: dict[str, float],
  settings: Settings,
) -> ClipRecord:
  source = spool.source
  captions, licence = choose_words(source, window, shots, fps, settings)
  return ClipRecord(
    id=f"{source.name}:{window.start}-{window.stop}",
    source=source.name,
    licence=licence,
    split=spool.summary["split"],
    start_frame=window.start,
    fps=float(fps),
    video=video,
    captions=captions,
    attributes="",
    truth=b"",
    scores=json.dumps(scores, sort_keys=True) if scores else "",
  )


def choose_words(
  source: Source, window: Window, shots: int, fps: Fraction, settings: Settings
) -> tuple[tuple[str, ...], str]:
  """Captions and licence that what is said of a source of so many shots gives to a window."""
  is_whole = inherits(settings.write.inherit_captions, shots)
  begin, end = window.start / float(fps), window.stop / float(fps)
  captions = choose_captions(source, begin, end, is_whole=is_whole)
  return captions, source.licence or settings.write.licence


def _describe(
  record: ClipRecord, video: EncodedVideo, bars: Bars, look: Look, camera: str
) -> dict[str, Any]:
  """Gives what the summary says of a clip."""
  count, height, width, _ = video.shape
  return dict(
    id=record.id,
    source=record.source,
    split=record.split,
    start_frame=record.start_frame,
    frames=count,
    fps=record.fps,
    width=width,
    height=height,
    bytes=video.nbytes,
    **count_words(record.captions),
    bars=list(bars),
    scores=json.loads(record.scores or "{}"),
    camera=camera,
    phash=[f"{value:016x}" for value in look.hashes],
  )

"""Motion of pictures between black bars.

Bars stand still. Over the whole frame they pull the mean down, more than they pull the frame's
diagonal up: of a picture of a third of each side hardly a tenth of its motion would be left.
"""

from typing import BinaryIO

from data_pipeline.curate.media import MediaInfo, frames
from data_pipeline.curate.motion import MotionMeter
from data_pipeline.curate.picture import Bars, crop
from data_pipeline.curate.scores import find_bars, scale_bars
from data_pipeline.curate.settings import Settings
from data_pipeline.curate.windows import Window

SLIGHT = 0.05  # share of the frame up to which bars change its motion by no more


def glance(file: BinaryIO, info: MediaInfo, start: int, stop: int, settings: Settings) -> Bars:
  """The bars of the middle frame of a window, about: it is read small. None if they are kept."""
  if not settings.scores.letterbox.crop:
    return Bars()
  place = (start + stop) // 2
  size = _fit(info.width, info.height, settings.shots.side)
  limits = settings.decode.limits
  for frame in frames(file, info, start=place, stop=place + 1, size=size, limits=limits):
    found = find_bars(frame, settings.scores) or Bars()
    factors = (info.height / frame.shape[0], info.width / frame.shape[1]) * 2
    return Bars(*(int(side * factor) for side, factor in zip(found, factors, strict=True)))
  return Bars()


def measure_motion(
  file: BinaryIO, info: MediaInfo, window: Window, bars: Bars, settings: Settings
) -> tuple[dict[str, float], str]:
  """Measures a window as `MotionMeter.measure` does, of the picture between bars alone.

  Args:
    bars: of the window, in pixels of the source.
  """
  width, height = info.width - bars.left - bars.right, info.height - bars.top - bars.bottom
  w, h = _fit(width, height, settings.shots.side)
  size = max(1, round(info.width * w / width)), max(1, round(info.height * h / height))
  small = scale_bars(bars, (info.height, info.width), (size[1], size[0]))
  start, stop = window.start, window.stop
  meter = MotionMeter(info.fps)
  for frame in frames(file, info, start=start, stop=stop, size=size, limits=settings.decode.limits):
    meter.add(crop(frame, small))
  return meter.measure(0, stop - start, min_camera=settings.scores.motion.min_camera)


def _fit(width: int, height: int, side: int) -> tuple[int, int]:
  """Width and height with the longer side at most `side`."""
  scale = min(1.0, side / max(width, height))
  return max(1, round(width * scale)), max(1, round(height * scale))

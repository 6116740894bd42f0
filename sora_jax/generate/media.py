"""Video and picture files: H.264 in MP4 both ways, PNG, contact sheets.

The same frames give the same bytes: one encoder thread, no encoding date, and no encoder name in
container or stream. Files appear whole or not at all.
"""

import errno
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from PIL import Image, ImageDraw, ImageFont

from data_pipeline.errors import BadInput

BACKGROUND = (24, 24, 27)
INK = (228, 228, 231)
BT709 = 1  # code point of ITU-T H.273 for primaries, transfer function and matrix alike
SCALING = (
  Interpolation.BICUBIC
  | Interpolation.ACCURATE_RND
  | Interpolation.BITEXACT
  | Interpolation.FULL_CHR_H_INP  # without these two, flat colours come back 3 levels off
  | Interpolation.FULL_CHR_H_INT
)
# The comment of a file whose coded picture is a row or a column larger than the video.
VISIBLE = "visible {width}x{height}"


def check_writable(path: str | Path) -> None:
  """Raises BadInput unless a file can be made at `path`; leaves what is there untouched.

  Call it before the work whose result goes there.
  """
  path = Path(path)
  if os.path.exists(path) and not os.path.isfile(path):
    raise BadInput(f"write: out={path} exists and is no plain file. Name another file.")
  if not path.parent.is_dir():
    raise BadInput(f"write: out={path} has no folder to go to ({path.parent}). Make it first.")
  probe = _neighbour(path)
  try:
    probe.touch()
    probe.unlink()
  except OSError as error:
    if error.errno == errno.ENOSPC:
      raise  # a full disk is the machine's fault, not the name's
    raise BadInput(
      f"write: out={path} cannot be written ({error.strerror}). Name another place."
    ) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
  """Yields a file to write beside `path`, which takes its place at the end, or goes on an error."""
  check_writable(path)
  temporary = _neighbour(Path(path))
  try:
    yield temporary
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def _neighbour(path: Path) -> Path:
  return path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")


def write_mp4(path: str | Path, video: np.ndarray, fps: float | Fraction, *, crf: int = 12) -> None:
  """Writes H.264 in MP4 that browsers play: 4:2:0, BT.709, index at the front.

  H.264 in 4:2:0 has even sides only. An odd side gets its last row or column twice, and the file's
  comment says which part is the picture: players show the extra pixel, `read_mp4` cuts it off.

  Args:
    path: file to make or replace; its folder exists.
    video: uint8 RGB [F,H,W,3], at least one frame.
    fps: frames a second, kept as a fraction: 23.976 and 30000/1001 are what they say.
    crf: constant rate factor of x264, 0 (largest) to 51.
  Raises:
    BadInput: `path` cannot be written, or fps is not a positive number.
  """
  _check_pixels("write_mp4", video, ndim=4)
  rate = exact_fps(fps)
  with replacing(path) as temporary, _open_mp4(temporary) as container:
    _, height, width, _ = video.shape
    if height % 2 or width % 2:
      container.metadata["comment"] = VISIBLE.format(width=width, height=height)
    stream = _add_h264(container, rate, height + height % 2, width + width % 2, crf)
    # The encoder names its version and options in a message (SEI, type 6) that no player needs.
    strip = BitStreamFilterContext("filter_units=remove_types=6", stream)
    for packet in _encode(stream, video):
      for stripped in strip.filter(packet):
        container.mux(stripped)
    for stripped in strip.filter(None):
      container.mux(stripped)


def exact_fps(fps: float | Fraction) -> Fraction:
  """Frames a second as the fraction with the smallest error among denominators up to 1001."""
  if not (math.isfinite(fps) and 0.01 <= fps <= 1000):
    raise BadInput(f"write_mp4: fps={fps} is not between 0.01 and 1000. Give frames a second.")
  return fps if isinstance(fps, Fraction) else Fraction(float(fps)).limit_denominator(1001)


def _open_mp4(path: Path) -> Any:
  options = {"movflags": "+faststart", "fflags": "+bitexact"}
  return av.open(str(path), "w", format="mp4", container_options=options)


def _add_h264(container: Any, rate: Fraction, height: int, width: int, crf: int) -> Any:
  # No B-frames: frames are stored in the order of their display, so durations are exact.
  # The scaler sites colour samples between pixels; a stream that does not say so is read as if they
  # sat on the left ones, a shift of half a pixel.
  options = {"crf": str(crf), "preset": "medium", "bf": "0", "chroma_sample_location": "center"}
  stream = container.add_stream("libx264", rate=rate, options=options)
  stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
  context = stream.codec_context
  context.thread_count = 1
  context.time_base = 1 / rate
  context.color_primaries = context.color_trc = context.colorspace = BT709
  context.color_range = ColorRange.MPEG
  return stream


def _encode(stream: Any, video: np.ndarray) -> Iterator[Any]:
  reformatter = VideoReformatter()
  for index, pixels in enumerate(video):
    height, width, _ = pixels.shape
    even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = reformatter.reformat(
      av.VideoFrame.from_ndarray(even, format="rgb24"),
      format="yuv420p",
      dst_colorspace=Colorspace.ITU709,
      src_color_range=ColorRange.JPEG,
      dst_color_range=ColorRange.MPEG,
      interpolation=SCALING,
      threads=1,
    )
    frame.pts, frame.time_base = index, stream.codec_context.time_base
    yield from stream.encode(frame)
  yield from stream.encode(None)


def read_mp4(path: str | Path) -> tuple[np.ndarray, Fraction]:
  """Reads every frame of the first video stream.

  Returns:
    video: uint8 RGB [F,H,W,3].
    fps: frames a second.
  Raises:
    BadInput: no such file, not a video, or damaged.
  """
  try:
    with av.open(str(path)) as container:
      stream = container.streams.video[0]
      frames = [_to_rgb(frame) for frame in container.decode(stream)]
      comment = container.metadata.get("comment", "")
      rate = stream.average_rate
  except (OSError, IndexError, FFmpegError) as error:
    raise BadInput(f"read_mp4: {path} is not a readable video ({error}). Name another.") from error
  if not frames or rate is None:
    raise BadInput(f"read_mp4: {path} holds no frame. Name another file.")
  video = np.stack(frames)
  _, height, width, _ = video.shape
  for h, w in ((height - 1, width), (height, width - 1), (height - 1, width - 1)):
    if comment == VISIBLE.format(width=w, height=h):
      video = video[:, :h, :w]
  return video, Fraction(rate)


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
  # A file without a tag is read as what small videos are: BT.601, limited range.
  tagged = frame.colorspace == BT709
  return frame.to_ndarray(
    format="rgb24",
    src_colorspace=Colorspace.ITU709 if tagged else Colorspace.ITU601,
    interpolation=SCALING,
    dst_color_range=ColorRange.JPEG,
  )


def write_png(path: str | Path, image: np.ndarray) -> None:
  """Writes a picture, uint8 RGB [H,W,3]. Raises BadInput where `path` cannot be written."""
  _check_pixels("write_png", image, ndim=3)
  with replacing(path) as temporary:
    Image.fromarray(image).save(temporary, format="PNG", optimize=True)


def _check_pixels(where: str, pixels: np.ndarray, *, ndim: int) -> None:
  shape = pixels.shape
  if pixels.dtype != np.uint8 or len(shape) != ndim or shape[-1] != 3 or 0 in shape:
    axes = {3: "[H,W,3]", 4: "[F,H,W,3]"}[ndim]
    raise ValueError(f"{where}: {pixels.dtype} {shape} is not uint8 {axes} with every side >= 1.")


def strip(video: np.ndarray, count: int, *, pad: int = 1) -> np.ndarray:
  """Lays `count` frames of a clip, evenly spaced from first to last, side by side: [H,W',3]."""
  _check_pixels("strip", video, ndim=4)
  chosen = video[np.linspace(0, len(video) - 1, count).round().astype(int)]
  inner = slice(pad, -pad or None)
  return grid(list(chosen[:, None]), columns=count, pad=pad)[0, inner, inner]


def grid(
  videos: Sequence[np.ndarray],
  *,
  columns: int,
  scale: int = 1,
  pad: int = 4,
  captions: Sequence[str] | None = None,
) -> np.ndarray:
  """Lays clips of any shapes and lengths out as one video, row by row.

  Every cell has the size of the largest clip; smaller ones are centred. A clip that ends early
  holds its last frame.

  Args:
    videos: uint8 RGB [F,H,W,3] each.
    columns: cells in a row.
    scale: each pixel becomes scale x scale pixels.
    pad: pixels around every cell.
    captions: text under each clip, broken into lines of the cell's width.
  Returns:
    uint8 RGB [F,H,W,3] with the frames of the longest clip.
  """
  for video in videos:
    _check_pixels("grid", video, ndim=4)
  if captions is not None and len(captions) != len(videos):
    raise ValueError(f"grid: {len(captions)} captions for {len(videos)} videos.")
  height, width = (scale * max(video.shape[axis] for video in videos) for axis in (1, 2))
  labels = _draw_captions(captions or [""] * len(videos), width)
  cell_h, cell_w = height + labels.shape[1] + pad, width + pad
  rows = -(-len(videos) // columns)
  frames = max(len(video) for video in videos)
  sheet = np.empty((frames, rows * cell_h + pad, columns * cell_w + pad, 3), np.uint8)
  sheet[:] = BACKGROUND
  for index, (video, label) in enumerate(zip(videos, labels, strict=True)):
    top, left = pad + index // columns * cell_h, pad + index % columns * cell_w
    clip = video.repeat(scale, axis=1).repeat(scale, axis=2)
    clip = clip[np.minimum(np.arange(frames), len(clip) - 1)]
    y, x = top + (height - clip.shape[1]) // 2, left + (width - clip.shape[2]) // 2
    sheet[:, y : y + clip.shape[1], x : x + clip.shape[2]] = clip
    sheet[:, top + height : top + height + len(label), left : left + width] = label
  return sheet


def _draw_captions(captions: Sequence[str], width: int) -> np.ndarray:
  """Draws each text on a label of the same height: uint8 [captions, height, width, 3]."""
  font = ImageFont.load_default(11)
  wrapped = [_wrap(text, width, font) for text in captions]
  lines = max(len(text) for text in wrapped)
  height = 14 * lines + 4 if lines else 0
  labels = np.empty((len(captions), height, width, 3), np.uint8)
  for label, text in zip(labels, wrapped, strict=True):
    image = Image.new("RGB", (width, max(height, 1)), BACKGROUND)
    ImageDraw.Draw(image).multiline_text((0, 1), "\n".join(text), INK, font, spacing=3)
    label[:] = np.asarray(image)[:height]
  return labels


def _wrap(text: str, width: int, font: Any) -> list[str]:
  lines: list[str] = []
  for word in text.split():
    if lines and font.getlength(f"{lines[-1]} {word}") <= width:
      lines[-1] += f" {word}"
    else:
      lines.append(word)
  return lines

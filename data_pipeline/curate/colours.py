"""From decoded frames to upright RGB pictures.

Matrix and range are those the file says; where it says nothing, BT.601 and limited range (full
range for JPEG's formats), as FFmpeg has it. Transfer curve and primaries are left alone: HDR is not
tone-mapped (`MediaInfo.transfer` tells). Alpha is laid over black. Conversion and resizing are
swscale's, bicubic, with accurate rounding and full chroma.
"""

import dataclasses
import struct
from typing import Any

import numpy as np
from av import VideoFrame, error
from av.filter import Graph
from av.sidedata.sidedata import Type

from data_pipeline.curate.types import Refused

_FLAGS = "bicubic+accurate_rnd+full_chroma_int"
MATRICES = {0: "rgb", 1: "bt709", 2: "unknown", 4: "fcc", 5: "bt470bg", 6: "smpte170m"}
MATRICES |= {7: "smpte240m", 9: "bt2020nc", 10: "bt2020c"}
RANGES = {0: "unknown", 1: "tv", 2: "pc"}
TRANSFERS = {1: "bt709", 2: "unknown", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m"}
TRANSFERS |= {8: "linear", 13: "srgb", 14: "bt2020-10", 15: "bt2020-12", 16: "pq", 18: "hlg"}


@dataclasses.dataclass(frozen=True)
class Orientation:
  """How a stored picture is set upright: mirrored left to right first, then turned.

  Attributes:
    turns: quarter turns clockwise, 0 to 3.
    is_mirrored: before it is turned.
  """

  turns: int = 0
  is_mirrored: bool = False

  def size(self, width: int, height: int) -> tuple[int, int]:
    """Width and height of an upright picture, from those stored, or the reverse."""
    return (height, width) if self.turns % 2 else (width, height)

  def apply(self, picture: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] as stored to uint8 [H, W, 3] upright."""
    if self.is_mirrored:
      picture = picture[:, ::-1]
    return np.ascontiguousarray(np.rot90(picture, -self.turns))


def orientation_of(frame: Any, codec: str) -> Orientation:
  """The display matrix of a frame, to the nearest quarter turn.

  Args:
    codec: the decoder's name. PyAV frees the name of a PNG's colour profile twice where side data
      is looked at: there only the angle is.
  """
  if codec in ("png", "apng"):
    return Orientation(round(-frame.rotation / 90) % 4)
  try:
    found = frame.side_data.get(Type.DISPLAYMATRIX)
  except ValueError:  # side data of a kind that PyAV has no name for: then only the angle is known
    return Orientation(round(-frame.rotation / 90) % 4)
  return _from_matrix(struct.unpack("=9i", bytes(found))) if found else Orientation()


def _from_matrix(matrix: tuple[int, ...]) -> Orientation:
  """From the nine numbers of ISO/IEC 14496-12: x' = ax + cy, y' = bx + dy, y pointing down."""
  a, b, c, d = (matrix[i] for i in (0, 1, 3, 4))
  is_mirrored = a * d - b * c < 0
  if is_mirrored:
    a, b = -a, -b  # what remains after the picture's x was turned round
  degrees = np.degrees(np.arctan2(b, a)) if a or b else 0.0
  return Orientation(round(degrees / 90) % 4, is_mirrored)


def has_alpha(frame: Any) -> bool:
  """Palettes count: a colour of theirs may be transparent."""
  return frame.format.has_palette or any(part.is_alpha for part in frame.format.components)


class Painter:
  """Makes RGB pictures of frames.

  It holds one filter graph and the frame in it. Frames may change size and format between calls.

  Args:
    size: width and height of the pictures, in pixels, upright.
    orientation: how frames are set upright.
  """

  def __init__(self, size: tuple[int, int], orientation: Orientation):
    self._size = orientation.size(*size)
    self._orientation = orientation
    self._graphs: dict[str, tuple[tuple, Graph]] = {}

  def paint(self, frame: Any) -> np.ndarray:
    """uint8 [H, W, 3] of a decoded frame.

    Raises:
      Refused: "colours": a matrix that is not known here.
    """
    if frame.colorspace not in MATRICES:
      raise Refused("colours", f"matrix {frame.colorspace} of ITU-T H.273 is not supported")
    if has_alpha(frame):
      picture = self._convert(frame, (frame.width, frame.height), "rgba").to_ndarray()
      frame = VideoFrame.from_ndarray(over_black(picture), format="rgb24")
    return self._orientation.apply(self._convert(frame, self._size, "rgb24").to_ndarray())

  def _convert(self, frame: Any, size: tuple[int, int], pixels: str) -> Any:
    if (frame.format.name, frame.width, frame.height) == (pixels, *size):
      return frame
    key = (*_key(frame), size)
    held = self._graphs.get(pixels)
    if held is None or held[0] != key:
      scale = ("scale", f"{size[0]}:{size[1]}:flags={_FLAGS}")
      held = self._graphs[pixels] = (key, build(frame, scale, ("format", pixels)))
    held[1].push(frame)
    return held[1].pull()


def over_black(picture: np.ndarray) -> np.ndarray:
  """uint8 [h, w, 4], alpha last and not multiplied in, to uint8 [h, w, 3]."""
  alpha = picture[..., 3:].astype(np.uint16)
  return ((picture[..., :3] * alpha + 127) // 255).astype(np.uint8)


def _key(frame: Any) -> tuple:
  return (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)


def build(frame: Any, *filters: tuple[str, str]) -> Graph:
  """A chain of filters for frames like this one."""
  graph = Graph()
  graph.threads = 1
  width, height, pixels, matrix, colour_range = _key(frame)
  source = (
    f"video_size={width}x{height}:pix_fmt={pixels}:time_base=1/1000000:pixel_aspect=1/1"
    f":colorspace={matrix}:range={colour_range}"
  )
  nodes = [graph.add(*node) for node in (("buffer", source), *filters)]
  graph.link_nodes(*nodes, graph.add("buffersink")).configure()
  return graph


class Deinterlacer:
  """Makes whole frames of interlaced ones (bwdif); others pass. It holds three frames."""

  def __init__(self):
    self._graph: Graph | None = None
    self._key = ()
    self._waiting: list[Any] = []  # what belongs to the frames in the graph

  def push(self, item: Any, frame: Any) -> list[tuple[Any, Any]]:
    """Takes an (item, frame), gives those that are ready, in order."""
    done = [] if self._graph is None or self._key == _key(frame) else self.flush()
    if self._graph is None:
      if not frame.interlaced_frame:
        return [*done, (item, frame)]
      self._graph, self._key = build(frame, ("bwdif", "send_frame:auto:interlaced")), _key(frame)
    self._waiting.append(item)
    self._graph.push(frame)
    return done + self._ready()

  def flush(self) -> list[tuple[Any, Any]]:
    """Gives what is still inside, and forgets it."""
    if self._graph is None:
      return []
    self._graph.push(None)
    done = self._ready()
    self._graph, self._waiting = None, []
    return done

  def _ready(self) -> list[tuple[Any, Any]]:
    done = []
    while self._waiting and self._graph is not None:
      try:
        frame = self._graph.pull()
      except (error.BlockingIOError, error.EOFError):
        break
      done.append((self._waiting.pop(0), frame))
    return done

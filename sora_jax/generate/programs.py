"""Which shapes are compiled to encode clips of given shapes: few programs for any number of them.

A program is (rows, frames of a chunk, whether it begins a video, height, width). Three things keep
their number down, tried in this order until there are at most MAX_PROGRAMS:

1. nothing: every shape has its own, whole or in chunks as long as PIXELS_AT_ONCE allows;
2. chunks of few lengths: 1+k·time_factor frames, k a power of two (or of 4, or of 16), as many as a
   clip needs; clips of one size and different lengths then share a batch;
3. pictures cut into tiles of few sizes. A tile overlaps its neighbours by twice the encoder's
   radius, and what lies within the radius of an edge that is not the picture's own is taken from
   the neighbour. The sizes that lose most by it stay whole, while there are programs for them.

All three give the same latents, up to rounding: the codec is causal in time and local in space.
"""

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import numpy as np

from data_pipeline.errors import BadInput

MAX_PROGRAMS = 64  # of one job
PIXELS_AT_ONCE = 2**20  # frames x height x width x rows of a batch, on each device
_LADDER_FRAMES = 17  # of a row, at most: what is left of PIXELS_AT_ONCE then gives more rows
_OVERHEAD = 2**14  # pixels that could be encoded while a chunk is handed over
_COMPILING = 2**24  # pixels that could be encoded while a program is compiled
_STEPS = (2, 4, 16, 0)  # ratio of a chunk's lengths to the next; 0: the shortest alone
_TILES = (0.0, 1.2, 1.5, 2.0, 4.0, math.inf)  # ratio of a tile's sides to the next; 0: no tiles

Shape = tuple[int, int, int]  # frames, height, width in pixels


def encoder_radius(codec: dict) -> int | None:
  """Latents to each side that a latent depends on beyond the pixels it covers; None if unknown.

  Args:
    codec: settings of `make_codec`. Downsampling has kernels of its stride, so only the 3x3
      convolutions of the blocks look aside, each by one cell of its level.
  """
  if codec["name"] == "space_to_depth":
    return 0
  if codec["name"] != "vae":
    return None
  pixels, side = 0, 1
  for (_, stride), blocks in zip(codec["strides"], codec["blocks"], strict=True):
    side *= stride
    pixels += side * blocks
  return -(-pixels // side)


def plan_batch(shape: Shape, time_factor: int, rows: int, devices: int = 1) -> tuple[int, int]:
  """Clips of a batch, and frames of each of their chunks; the first chunk has one frame more.

  A device holds at most PIXELS_AT_ONCE pixels, or 1 + time_factor frames where those are more.
  Chunks are as long as that allows, and a clip that is cut is alone on its device: a long clip does
  not wait for others of its shape.

  Args:
    shape: (frames, height, width) to encode.
    time_factor: frames of a latent.
    rows: the most clips.
    devices: that share a batch; the clips are a multiple of them.
  """
  frames, height, width = shape
  room = PIXELS_AT_ONCE // (height * width)  # frames
  chunk_frames = max(1, (room - 1) // time_factor) * time_factor
  if frames > 1 + chunk_frames:
    return devices, chunk_frames
  return _round_up(max(1, min(rows, devices * room // frames)), devices), chunk_frames


def _round_up(count: int, multiple: int) -> int:
  return -(-count // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Programs:
  """How shapes are cut to be encoded.

  Attributes:
    time_factor, space_factor: of the codec.
    rows: the most clips of a batch.
    devices: that share a batch.
    radius: of `encoder_radius`; None forbids tiles.
    steps: latents of a chunk after a video's first one, descending; () for whole chunks (1.).
    tiles: sides of tiles in latents, ascending; () for whole pictures.
    uncut: (height, width) in pixels that are encoded whole all the same.
    shared: rows of a batch by shape, for long clips that are fewer than the devices: several of
      these share a clip, each has a band of its pictures.
  """

  time_factor: int
  space_factor: int
  rows: int
  devices: int
  radius: int | None
  steps: tuple[int, ...] = ()
  tiles: tuple[int, ...] = ()
  uncut: frozenset[tuple[int, int]] = frozenset()
  shared: Mapping[Shape, int] = dataclasses.field(default_factory=dict)

  def rows_of(self, shape: Shape) -> int:
    """Rows of the batches of (pieces of) this shape."""
    if not self.steps:
      rows = plan_batch(shape, self.time_factor, self.rows, self.devices)[0]
      return self.shared.get(shape, rows)
    return self._ladder(shape)[0] * self.devices

  def group_of(self, shape: Shape) -> Shape:
    """What may stand in one batch; in a ladder the length does not matter."""
    return (0, *shape[1:]) if self.steps else shape

  def chunks_of(self, shape: Shape) -> list[int]:
    """Frames of the chunks of a piece, in order."""
    frames = shape[0]
    if not self.steps:
      _, chunk = plan_batch(shape, self.time_factor, self.rows, self.devices)
      edges = [0, *range(1 + chunk, frames, chunk), frames]
      return [b - a for a, b in pairwise(edges)]
    limit, left = self._ladder(shape)[1], (frames - 1) // self.time_factor
    latents = []
    for step in (step for step in self.steps if step <= limit):
      latents += [step] * (left // step)
      left %= step
    first, *others = latents or [0]
    return [1 + first * self.time_factor, *(step * self.time_factor for step in others)]

  def _ladder(self, shape: Shape) -> tuple[int, int]:
    """Rows on a device, and the most latents of a chunk: of a size, whatever the length."""
    room = PIXELS_AT_ONCE // (shape[1] * shape[2])
    rows = min(max(1, room // _LADDER_FRAMES), -(-self.rows // self.devices))
    return rows, max(1, (room // rows - 1) // self.time_factor)

  def pieces_of(self, shape: Shape) -> list[tuple["Span", "Span"]]:
    """The picture's tiles as (rows, columns), in latents; one when it is encoded whole."""
    rows, columns = self._sides_of(shape)
    return [(row, column) for row in rows for column in columns]

  def _sides_of(self, shape: Shape) -> list[tuple["Span", ...]]:
    sides = [side // self.space_factor for side in shape[1:]]
    if not self.tiles or shape[1:] in self.uncut:
      return [(Span(0, side, 0, side),) for side in sides]
    return [cut_side(side, self.tiles, self.radius or 0) for side in sides]

  def programs_of(self, shape: Shape) -> set[tuple]:
    """All programs that clips of this shape need."""
    piece, _ = self.piece_of(shape)
    chunks, rows = self.chunks_of(piece), self.rows_of(piece)
    return {(rows, frames, i == 0, *piece[1:]) for i, frames in enumerate(chunks)}

  def piece_of(self, shape: Shape) -> tuple[Shape, int]:
    """Shape in pixels of a clip's pieces, which are alike, and how many there are."""
    rows, columns = self._sides_of(shape)
    height, width = ((side[0].stop - side[0].start) * self.space_factor for side in (rows, columns))
    return (shape[0], height, width), len(rows) * len(columns)

  def cost_of(self, shape: Shape) -> int:
    """Pixels that are encoded for a clip, with what its chunks cost beside."""
    piece, count = self.piece_of(shape)
    return count * (math.prod(piece) + _OVERHEAD * len(self.chunks_of(piece)))


@dataclasses.dataclass(frozen=True)
class Span:
  """One side of a tile: [start, stop) is encoded, [first, last) of it is kept."""

  start: int
  stop: int
  first: int
  last: int


@functools.lru_cache(2**14)
def cut_side(side: int, tiles: tuple[int, ...], radius: int) -> tuple[Span, ...]:
  """Covers a side with tiles of one size, the one of `tiles` that costs least.

  Inner edges of a tile lie at least `radius` outside of what is kept of it.
  """

  def count(tile: int) -> int:
    return 1 if tile == side else -(-(side - 2 * radius) // (tile - 2 * radius))

  fitting = [t for t in tiles if t == side or 2 * radius < t < side]
  tile = min(fitting, key=lambda t: (count(t) * t, -t))
  last = count(tile) - 1
  starts = [round(i * (side - tile) / max(1, last)) for i in range(last + 1)]
  cuts = [0, *((b + a + tile) // 2 for a, b in pairwise(starts)), side]
  return tuple(
    Span(start, start + tile, *kept) for start, kept in zip(starts, pairwise(cuts), strict=True)
  )


def choose_programs(shapes: np.ndarray, whole: Programs, patch_side: int) -> Programs:
  """The cheapest way to encode clips of these shapes with at most MAX_PROGRAMS programs.

  Args:
    shapes: int [n,3] frames, height and width in pixels, those of every clip or rendition.
    whole: with neither `steps` nor `tiles`: it is taken whenever it has few enough programs.
    patch_side: named in the complaint.
  Raises:
    BadInput: there is none.
  """
  unique, counts = np.unique(shapes, axis=0, return_counts=True)
  clips = [(f, h, w) for f, h, w in unique.tolist()]
  if count_programs(clips, whole) <= MAX_PROGRAMS:
    return _share_long(dict(zip(clips, counts.tolist(), strict=True)), whole)
  fitting = [way for way in _ways(clips, whole) if count_programs(clips, way) <= MAX_PROGRAMS]
  if not fitting:
    raise _too_many(clips, int(counts.sum()), whole, patch_side)
  numbers = dict(zip(clips, counts.tolist(), strict=True))
  ways = [_keep_common(numbers, way) if way.tiles else way for way in fitting]
  return min(ways, key=lambda way: _cost(numbers, way))


def _share_long(numbers: dict[Shape, int], whole: Programs) -> Programs:
  """Lets the devices share long clips that are fewer than they, in bands of whole latents."""
  shared = {}
  for shape, number in numbers.items():
    for rows in range(number, whole.devices):
      bands, rest = divmod(whole.devices, rows)
      if not rest and shape[1] % (bands * whole.space_factor) == 0:
        shared[shape] = rows
        break
  long = {shape: rows for shape, rows in shared.items() if len(whole.chunks_of(shape)) > 1}
  return dataclasses.replace(whole, shared=long) if long else whole


def _cost(numbers: dict[Shape, int], way: Programs) -> int:
  """Pixels encoded for all clips, with what chunks and programs cost beside."""
  encoded = sum(number * way.cost_of(shape) for shape, number in numbers.items())
  return encoded + _COMPILING * count_programs(numbers, way)


def _keep_common(numbers: dict[Shape, int], way: Programs) -> Programs:
  """Leaves whole the sizes that are tiled at most expense, while there are programs for them."""
  whole = dataclasses.replace(way, tiles=())
  saved, needed = defaultdict(int), defaultdict(set)
  for shape, number in numbers.items():
    saved[shape[1:]] += number * (way.cost_of(shape) - whole.cost_of(shape))
    needed[shape[1:]] |= whole.programs_of(shape)
  programs = set().union(*(way.programs_of(shape) for shape in numbers))
  uncut = set()
  for size in sorted(saved, key=lambda size: (-saved[size], size)):
    gains = saved[size] > _COMPILING * len(needed[size])
    if gains and len(programs | needed[size]) <= MAX_PROGRAMS:
      programs |= needed[size]
      uncut.add(size)
  return dataclasses.replace(way, uncut=frozenset(uncut))


def count_programs(shapes: Iterable[Shape], way: Programs) -> int:
  """Programs that these shapes need, counted until they are too many."""
  found = set()
  for shape in shapes:
    found |= way.programs_of(shape)
    if len(found) > MAX_PROGRAMS:
      break
  return len(found)


def _ways(shapes: list[Shape], whole: Programs) -> Iterator[Programs]:
  longest = max((frames - 1) // whole.time_factor for frames, _, _ in shapes)
  sides = sorted({side // whole.space_factor for shape in shapes for side in shape[1:]})
  for tile_ratio in _TILES if whole.radius is not None else _TILES[:1]:
    tiles = _choose_tiles(sides, tile_ratio, whole.radius or 0) if tile_ratio else ()
    for ratio in _STEPS:
      steps = tuple(ratio**i for i in reversed(range(20)) if ratio**i <= max(1, longest))
      yield dataclasses.replace(whole, steps=steps if ratio else (1,), tiles=tiles)


def _choose_tiles(sides: list[int], ratio: float, radius: int) -> tuple[int, ...]:
  """Every side too short for tiles, and a geometric row of tiles from the shortest other one."""
  tiles = [side for side in sides if side <= 2 * radius]
  others = [side for side in sides if side > 2 * radius]
  tile = others[0] if others else math.inf
  while others and tile <= others[-1]:
    tiles.append(int(tile))
    tile = max(tile + 1, math.ceil(tile * ratio)) if ratio < math.inf else math.inf
  return tuple(tiles)


def _too_many(shapes: list[Shape], clips: int, whole: Programs, patch_side: int) -> BadInput:
  sizes = len({shape[1:] for shape in shapes})
  side = whole.space_factor * patch_side
  return BadInput(
    f"encode: the {clips} clips have {sizes} sizes after cropping to multiples of {side} pixels, "
    f"and need more than the {MAX_PROGRAMS} programs that are compiled"
    + (" (this codec's pictures cannot be cut into tiles)." if whole.radius is None else ".")
    + " Raise --patch-side, or give renditions a size (encode.renditions.NAME.pixels)."
  )

"""Encodes many clips in batches of few shapes, over the devices of this process.

A clip is one piece, or several tiles (`generate.programs`). A batch holds pieces of one size and
goes through the VAE chunk by chunk; the latents of a clip are put together as its pieces come.
"""

import copy
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from sora_jax.generate.programs import Programs, Shape, Span
from sora_jax.parallel.mesh import make_mesh, replicated
from sora_jax.parallel.place import PIXELS

_WAITING = 2  # chunks that are read ahead
_THREADS = 4  # clips of a batch that are read at once

# (number of the clip, frames of each chunk) -> its frames, uint8 [size,height,width,3] a chunk.
Load = Callable[[int, Sequence[int]], Iterator[np.ndarray]]


class Piece(NamedTuple):
  """A clip, or a tile of it: number of the clip, its rows and columns in latents."""

  clip: int
  row: Span
  column: Span


class Batch(NamedTuple):
  """Pieces of one size, frames of their chunks, and the rows that a program has for them."""

  pieces: list[Piece]
  chunks: list[int]
  rows: int


def plan_batches(shapes: Sequence[Shape], programs: Programs) -> list[Batch]:
  """Batches for clips of these shapes, (frames, height, width) in pixels, in their order.

  Clips of one length stay in their order; where lengths may mix, a batch has the length of its
  longest clip, and clips of near lengths are put together.
  """
  groups: dict[Shape, list[tuple[int, Piece]]] = {}
  for clip, shape in enumerate(shapes):
    group = groups.setdefault(programs.group_of(programs.piece_of(shape)[0]), [])
    group += [(shape[0], Piece(clip, *place)) for place in programs.pieces_of(shape)]
  batches = []
  for (_, height, width), group in groups.items():
    group.sort(key=lambda item: item[0])
    rows = programs.rows_of((group[0][0], height, width))
    for first in range(0, len(group), rows):
      some = group[first : first + rows]
      chunks = programs.chunks_of((some[-1][0], height, width))
      batches.append(Batch([piece for _, piece in some], chunks, rows))
  return batches


class Placed:
  """A frozen VAE on the devices that share a batch: its parameters on each of them.

  Args:
    vae: has `encode_stream` and `params`: a `FrozenVAE`.
    devices: of this process.
  """

  def __init__(self, vae, devices: Sequence):
    self._vae, self._devices = vae, devices
    self._is_default = len(devices) == 1 and devices[0] == jax.local_devices()[0]
    self._copies: dict[int, tuple] = {}  # by devices along `data`: sharding of pixels, and VAE

  def encode_stream(self, chunks: Iterable[np.ndarray]) -> Iterator:
    """As the VAE's, of uint8 [rows,F,H,W,3]: rows divide over the devices, fewer rows than these
    are shared in bands of pictures (`Programs.shared`).
    """
    if self._is_default:
      yield from self._vae.encode_stream(chunks)
      return
    chunks = iter(chunks)
    first = next(chunks)
    sharding, vae = self._on(math.gcd(len(first), len(self._devices)))
    chunks = itertools.chain([first], chunks)
    yield from vae.encode_stream(jax.device_put(chunk, sharding) for chunk in chunks)

  def _on(self, data: int) -> tuple:
    if data not in self._copies:
      mesh = make_mesh(data=data, context=-1, devices=self._devices)
      vae = copy.copy(self._vae)
      vae.params = jax.device_put(self._vae.params, replicated(mesh))
      self._copies[data] = NamedSharding(mesh, PIXELS), vae
    return self._copies[data]


def encode_batches(
  vae, batches: Iterable[Batch], shapes: Sequence[Shape], load: Load, programs: Programs
) -> Iterator[tuple[int, np.ndarray]]:
  """Encodes batches; the next one is read while one is computed.

  Args:
    vae: has `encode_stream`: a `FrozenVAE`, or `Placed`.
    batches: of `plan_batches`.
    shapes: of the clips, (frames, height, width) in pixels.
    load: reads a clip.
    programs: of the batches.
  Yields:
    (number of the clip, normalised latent float32 [f,h,w,c]), as they are complete.
  """
  whole, parts = _Latents(shapes, programs), []
  for batch, part in _one_behind(_dispatch(vae, batches, load, programs.space_factor)):
    parts.append(np.asarray(part))
    if len(parts) == len(batch.chunks):
      yield from whole.add(batch, np.concatenate(parts, axis=1))
      parts = []


def _dispatch(vae, batches: Iterable[Batch], load: Load, factor: int) -> Iterator[tuple]:
  """Pairs of (batch, latents of a chunk of it), which may still be in the making."""
  for batch, chunks in _read(batches, load, factor):
    for part in vae.encode_stream(chunks):
      yield batch, part


def _one_behind(items: Iterator) -> Iterator:
  """Holds every item back until the next one is under way."""
  late = next(items, None)
  for item in items:
    yield late
    late = item
  if late is not None:
    yield late


class _Latents:
  """Latents of clips of which some pieces are still to come."""

  def __init__(self, shapes: Sequence[Shape], programs: Programs):
    self._shapes, self._programs = shapes, programs
    self._open: dict[int, tuple[np.ndarray, set[Piece]]] = {}

  def add(self, batch: Batch, encoded: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Puts a batch in its places and gives out the clips that are complete now."""
    for piece, latent in zip(batch.pieces, encoded, strict=False):  # the rest fills the batch up
      if piece.clip not in self._open:
        self._open[piece.clip] = self._begin(piece.clip, latent)
      whole, left = self._open[piece.clip]
      row, column = piece.row, piece.column
      whole[:, row.first : row.last, column.first : column.last] = latent[
        : len(whole),
        row.first - row.start : row.last - row.start,
        column.first - column.start : column.last - column.start,
      ]
      left.discard(piece)
      if not left:
        del self._open[piece.clip]
        yield piece.clip, whole

  def _begin(self, clip: int, latent: np.ndarray) -> tuple[np.ndarray, set[Piece]]:
    shape, factor = self._shapes[clip], self._programs.space_factor
    frames = 1 + (shape[0] - 1) // self._programs.time_factor
    size = (frames, shape[1] // factor, shape[2] // factor, latent.shape[-1])
    pieces = {Piece(clip, *place) for place in self._programs.pieces_of(shape)}
    return np.empty(size, latent.dtype), pieces


def _read(batches: Iterable[Batch], load: Load, factor: int) -> Iterator[tuple[Batch, Iterator]]:
  """Pairs of (batch, its chunks), which are read by a thread ahead of their use."""

  def chunks_of_all() -> Generator[tuple[Batch, np.ndarray]]:
    with ThreadPoolExecutor(_THREADS) as pool:
      for batch in batches:
        yield from ((batch, chunk) for chunk in _chunks(batch, load, factor, pool))

  ahead = read_ahead(chunks_of_all(), _WAITING)
  try:
    for batch, chunk in ahead:
      yield batch, _rest(chunk, ahead, len(batch.chunks) - 1)
  finally:
    ahead.close()


def _rest(chunk: np.ndarray, ahead: Iterator, count: int) -> Iterator[np.ndarray]:
  yield chunk
  for _ in range(count):
    yield next(ahead)[1]


def _chunks(batch: Batch, load: Load, factor: int, pool) -> Iterator[np.ndarray]:
  """The chunks of a batch, uint8 [rows,F,H,W,3]; its last piece fills what rows are left."""
  streams = {clip: load(clip, batch.chunks) for clip in {piece.clip for piece in batch.pieces}}
  row, column = batch.pieces[0].row, batch.pieces[0].column
  size = (row.stop - row.start) * factor, (column.stop - column.start) * factor
  for frames in batch.chunks:
    pictures = dict(zip(streams, pool.map(next, streams.values()), strict=True))
    out = np.empty((batch.rows, frames, *size, 3), np.uint8)
    for i in range(batch.rows):
      if i >= len(batch.pieces):
        out[i] = out[i - 1]
        continue
      piece = batch.pieces[i]
      top, left = piece.row.start * factor, piece.column.start * factor
      out[i] = pictures[piece.clip][:, top : top + size[0], left : left + size[1]]
    yield out


def read_ahead(items: Generator, count: int) -> Generator:
  """Passes `items` on while a thread makes the next ones, `count` of them at most.

  What the thread meets is raised here. When this iterator is closed, so is `items`.
  """
  queue: Queue[tuple[str, Any]] = Queue(count)
  stop = Event()

  def put(item: tuple[str, Any]) -> bool:
    while not stop.is_set():
      try:
        queue.put(item, timeout=0.1)
        return True
      except Full:
        pass
    return False

  def work() -> None:
    try:
      for item in items:
        if not put(("item", item)):
          return
      put(("end", None))
    except BaseException as error:
      put(("error", error))
    finally:
      items.close()

  thread = Thread(target=work, daemon=True)
  thread.start()
  try:
    while True:
      try:
        what, value = queue.get(timeout=1.0)
      except Empty:
        continue
      if what == "error":
        raise value
      if what == "end":
        return
      yield value
  finally:
    stop.set()
    thread.join()

"""Finds clips that show the same: copies at another size, bit rate, brightness, of another file.

A frame becomes the 64 bits of its perceptual hash (pHash: Zauner 2010, "Implementation and
benchmarking of perceptual image hash functions"; the bits are those of the ImageHash package). A
clip is a handful of them. What follows is made for a keyed, parallel stage, and none of it depends
on the order of anything:

    keys       of a clip: near clips nearly always share one. Group by them.
    find_pairs in a group: the near pairs.
    resolve    all pairs: which clips go, and for which one's sake.

Not found: mirrored, turned, heavily cropped copies, and copies that begin at another time of a
moving scene.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.curate.picture import grey, opencv

_SIDE, _KEPT = 32, 8  # pixels a side of the frame that is transformed; coefficients a side
_PARTS = 5  # of a hash; a key is two of them: equal when at most 3 bits differ, and often beyond
_MEASURED_AGAINST = 64  # clips of one group, the best ones, that every other is compared with
_FLAT = 2.0  # grey levels of deviation below which a frame has no structure to recognise


class Print(NamedTuple):
  """What is known of a clip when copies are looked for.

  Attributes:
    id: of the clip.
    source: it was cut from.
    hashes: of its frames, in order; () for a clip that is flat throughout: it is near to none.
    pixels, frames, bytes: of the clip as it is written; more is better.
  """

  id: str
  source: str
  hashes: tuple[int, ...]
  pixels: int
  frames: int
  bytes: int

  @property
  def rank(self) -> tuple:
    """Sorts the better clip first: larger, longer, more bytes (less compressed); then by id."""
    return -self.pixels, -self.frames, -self.bytes, self.id


def read_print(clip: Mapping[str, Any]) -> Print:
  """Of a clip as the summary of its source has it (`cut.cut_source`)."""
  return Print(
    id=clip["id"],
    source=clip["source"],
    hashes=tuple(int(value, 16) for value in clip["phash"]),
    pixels=clip["width"] * clip["height"],
    frames=clip["frames"],
    bytes=clip["bytes"],
  )


def hash_frame(frame: np.ndarray) -> int | None:
  """Perceptual hash of a frame, uint8 RGB [H,W,3]: 64 bits; None for a flat one.

  The lowest 8 x 8 coefficients of the cosine transform of the frame at 32 x 32, each above their
  median or not; first row first, first bit highest.
  """
  cv2 = opencv()
  small = cv2.resize(grey(frame), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
  if small.std() < _FLAT:
    return None
  low = (_COSINES @ small @ _COSINES.T).round(6)  # equal whatever the order of the sums
  bits = (low > np.median(low)).ravel()
  return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _cosines() -> np.ndarray:
  """The first rows of the matrix of the cosine transform of type II, [8,32]."""
  n = np.arange(_SIDE)
  return 2 * np.cos(np.pi * np.arange(_KEPT)[:, None] * (2 * n + 1) / (2 * _SIDE))


_COSINES = _cosines()


def keys(hashes: Sequence[int]) -> list[int]:
  """Keys of a clip, sorted: integers of 32 bits, ten for each different hash at most."""
  edges = [64 * i // _PARTS for i in range(_PARTS + 1)]
  found = set()
  for value in hashes:
    parts = [
      value >> low & (1 << high - low) - 1 for low, high in zip(edges, edges[1:], strict=False)
    ]
    for number, (i, j) in enumerate(itertools.combinations(range(_PARTS), 2)):
      found.add((number << 26) | (parts[i] << 13) | parts[j])
  return sorted(found)


def distance(a: Sequence[int], b: Sequence[int]) -> float:
  """Bits that differ, a mean over frames: each with the one most like it in the other clip.

  The larger of both directions, so that one common frame is not enough. 64 when one has no hashes.
  """
  if not a or not b:
    return 64.0
  rows = [[(x ^ y).bit_count() for y in b] for x in a]
  columns = zip(*rows, strict=True)
  return max(sum(map(min, rows)) / len(a), sum(map(min, columns)) / len(b))


def find_pairs(
  group: Iterable[Print], *, max_distance: float, within_source: bool
) -> Iterator[tuple[str, str]]:
  """Pairs of ids, the better clip first, that are near, among clips that share a key.

  Of a large group only the 64 best are compared with all, so that the work grows with its size and
  not with its square.

  Args:
    group: in any order; a clip may come several times.
    max_distance: bits, of the 64 of a frame.
    within_source: also pairs of one source, such as two windows of a shot in which little moves.
  """
  clips = sorted(set(group), key=lambda clip: clip.rank)
  for number, better in enumerate(clips[:_MEASURED_AGAINST]):
    for worse in clips[number + 1 :]:
      if better.source == worse.source and not within_source:
        continue
      if distance(better.hashes, worse.hashes) <= max_distance:
        yield better.id, worse.id


def resolve(pairs: Iterable[tuple[str, str]], clips: Iterable[Print]) -> dict[str, str]:
  """Decides which clips go: from the best to the worst, each that is near to one that stays.

  So of a chain of copies, each near to the next only, not all but one go.

  Args:
    pairs: near ones, in any order, repeated or not.
    clips: at least those of the pairs.
  Returns:
    For every clip that goes, the best one of those near to it that stay.
  """
  known = {clip.id: clip for clip in clips}
  near: dict[str, set[str]] = {}
  for a, b in pairs:
    near.setdefault(a, set()).add(b)
    near.setdefault(b, set()).add(a)
  gone: dict[str, str] = {}
  kept: set[str] = set()
  for name in sorted(near, key=lambda name: known[name].rank):
    stays = [other for other in near[name] if other in kept]
    if stays:
      gone[name] = min(stays, key=lambda other: known[other].rank)
    else:
      kept.add(name)
  return gone

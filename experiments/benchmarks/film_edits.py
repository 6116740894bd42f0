"""Films with known cuts: pieces of a real film's shots, joined in another order.

The film is Big Buck Bunny (`experiments/film.py` fetches it). CUTS are its cuts: those that two
detectors agree on, the others looked at frame by frame. Pieces lie well within shots and outside
of GRADUAL, so every join of two is a cut, and nothing else is one.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data_pipeline.curate.media import frames, probe

WIDTH, HEIGHT, FPS = 1280, 720, 24
CUTS = (
  285, 378, 553, 1145, 1346, 1456, 1531, 1666, 1711, 1763, 1813, 1919, 2154, 2194, 2394, 2494,
  2704, 2831, 2901, 2963, 3045, 3513, 3578, 3744, 3860, 3895, 3919, 3989, 4032, 4069, 4227, 4266,
  4332, 4463, 4544, 4612, 4672, 4697, 4726, 4796, 4900, 4942, 4979, 5013, 5079, 5131, 5292, 5307,
  5371, 5430, 5518, 5579, 5809, 5844, 6018, 6048, 6088, 6128, 6168, 6208, 6228, 6268, 6308, 6348,
  6388, 6488, 6623, 6670, 6713, 6753, 6833, 7013, 7093, 7131, 7325, 7400, 7500, 7546, 7613, 7661,
  7732, 7769, 8024, 8085, 8154, 8945, 9009, 9080, 9148, 9379, 9420, 9468, 9507, 9575, 9584, 9593,
  9719, 9795, 9850, 9891, 9987, 10016, 10081, 10097, 10125, 10184, 10234, 10260, 10303, 10339,
  10409, 10453, 10468, 10574, 10613, 10637, 10842, 10999, 11312, 11349, 11524, 11560, 11612,
  11671, 13942, 14314,
)  # fmt: skip
# Fades, dissolves, an iris, and credits that all look the same.
GRADUAL = ((0, 40), (590, 860), (7160, 7232), (11040, 11105), (11700, 13945))
MARGIN = 4  # frames between a piece and the next cut
SHORTEST, LONGEST = 17, 48  # frames of a piece: 0.7 to 2 seconds
_CHOICES = 20  # pieces of which the one that looks most like the last is taken


class Piece(NamedTuple):
  """Frames start <= k < stop of the film, every `step`-th, with something that happens in them."""

  shot: int
  start: int
  stop: int
  step: int = 1
  event: str = ""

  @property
  def frames(self) -> int:
    return len(range(self.start, self.stop, self.step))


def stretches() -> list[tuple[int, int]]:
  """What lies within a shot and in no gradual transition."""
  edges = [0, *CUTS, 14_315]
  found = []
  for start, stop in zip(edges[:-1], edges[1:], strict=True):
    parts = [(start + MARGIN, stop - MARGIN)]
    for low, high in GRADUAL:
      parts = [
        part
        for begin, end in parts
        for part in ((begin, min(end, low)), (max(begin, high), end))
        if part[1] > part[0]
      ]
    found += parts
  return found


def re_edit(looks: np.ndarray, count: int, seed: int, events: tuple[str, ...] = ()) -> list[Piece]:
  """Pieces in an order that makes `count` cuts, half of them between pieces that look alike.

  Args:
    looks: of every frame of the film, [frames, n]; near ones look alike.
    count: of joins.
    seed: of lengths, places and order.
    events: one of them happens in every piece, in turn.
  """
  rng = np.random.default_rng(seed)
  whole = stretches()
  done: list[Piece] = []
  while len(done) <= count:
    event = events[len(done) % len(events)] if events else ""
    drawn = [_draw(rng, whole, event) for _ in range(_CHOICES)]
    others = [piece for piece in drawn if not done or piece.shot != done[-1].shot]
    if done and rng.random() < 0.5:
      last = looks[done[-1].stop - 1]
      others.sort(key=lambda piece: float(np.abs(looks[piece.start] - last).sum()))
    done += others[:1]
  return done


def _draw(rng, whole: list[tuple[int, int]], event: str) -> Piece:
  """A piece; long shots are drawn no more often than short ones."""
  step = int(rng.integers(2, 4)) if event == "fast" else 1
  length = (int(rng.integers(36, 49)) if event else int(rng.integers(SHORTEST, LONGEST + 1))) * step
  while True:
    shot = int(rng.integers(len(whole)))
    low, high = whole[shot]
    if high - low >= length:
      start = int(rng.integers(low, high - length + 1))
      return Piece(shot, start, start + length, step, event)


def film_looks(film: Path, folder: Path) -> np.ndarray:
  """How the colours of every frame are distributed, [frames, 24]; kept in the folder."""
  kept = folder / "looks.npy"
  if not kept.exists():
    with open(film, "rb") as file:
      looks = np.stack([_colours(frame) for frame in frames(file, size=(64, 36))])
    folder.mkdir(parents=True, exist_ok=True)
    np.save(kept, looks)
  return np.load(kept)


def _colours(frame: np.ndarray) -> np.ndarray:
  parts = [np.bincount(frame[..., i].ravel() >> 5, minlength=8) for i in range(3)]
  return np.concatenate(parts) / frame[..., 0].size


def edited(film: Path, pieces: list[Piece], seed: int) -> Iterator[np.ndarray]:
  """The frames of an edit, uint8 RGB [720,1280,3]."""
  rng = np.random.default_rng([seed, 1])
  with open(film, "rb") as file:
    info = probe(file)
    for piece in pieces:
      shown = frames(file, info, start=piece.start, stop=piece.stop, size=(WIDTH, HEIGHT))
      taken = [frame for i, frame in enumerate(shown) if i % piece.step == 0]
      yield from EVENTS[piece.event](taken, rng) if piece.event else taken


# ---- what happens in a piece, and is no cut


def _window(frame: np.ndarray, x: float, y: float, share: float) -> np.ndarray:
  """A part of the frame, a `share` of its sides wide, whose corner is at x, y in 0..1 of the rest;
  as large as the frame.
  """
  width, height = share * WIDTH, share * HEIGHT
  left, top = x * (WIDTH - width), y * (HEIGHT - height)
  matrix = np.array([[1 / share, 0, -left / share], [0, 1 / share, -top / share]])
  return cv2.warpAffine(frame, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)


def _flash(taken: list[np.ndarray], rng) -> list[np.ndarray]:
  """One to three frames white, nearly white, much brighter, or black."""
  start, length = int(rng.integers(8, len(taken) - 10)), int(rng.integers(1, 4))
  strength, light = ((1.0, 255), (0.85, 255), (0.5, 255), (1.0, 0))[int(rng.integers(4))]
  lit = list(taken)
  for i in range(start, start + length):
    lit[i] = (taken[i] * (1 - strength) + light * strength).astype(np.uint8)
  return lit


def _pan(taken: list[np.ndarray], rng) -> list[np.ndarray]:
  """Half of the picture's width, whipped over it: 5 to 12 % of what is seen a frame, blurred."""
  count = int(rng.integers(9, 21))
  start = int(rng.integers(8, len(taken) - count - 6))
  path = np.clip((np.arange(len(taken)) - start) / count, 0, 1)
  x, y = (path, np.full_like(path, 0.5)) if rng.random() < 0.7 else (np.full_like(path, 0.5), path)
  if rng.random() < 0.5:
    x, y = 1 - x, 1 - y
  kernel = (max(1, WIDTH // count // 2), 1) if y[0] == y[-1] else (1, max(1, HEIGHT // count // 2))
  seen = [_window(frame, a, b, 0.5) for frame, a, b in zip(taken, x, y, strict=True)]
  return [
    cv2.blur(frame, kernel) if 0 < at < 1 else frame for frame, at in zip(seen, path, strict=True)
  ]


def _shake(taken: list[np.ndarray], rng) -> list[np.ndarray]:
  """A camera that jumps by up to 8 % of the picture from frame to frame."""
  start, count = int(rng.integers(8, 14)), int(rng.integers(8, 16))
  at = np.full((len(taken), 2), 0.5)
  at[start : start + count] = rng.random((count, 2))
  return [_window(frame, a, b, 0.92) for frame, (a, b) in zip(taken, at, strict=True)]


def _zoom(taken: list[np.ndarray], rng) -> list[np.ndarray]:
  """To a third of the picture within 6 to 12 frames, or back from it."""
  start, count = int(rng.integers(8, 14)), int(rng.integers(6, 13))
  path = np.clip((np.arange(len(taken)) - start) / count, 0, 1)
  path = path if rng.random() < 0.5 else 1 - path
  return [_window(frame, 0.5, 0.5, 3.0**-at) for frame, at in zip(taken, path, strict=True)]


def _passer(taken: list[np.ndarray], rng) -> list[np.ndarray]:
  """Somebody near the camera walks by within 5 to 12 frames, half as wide as the picture."""
  count, light = int(rng.integers(5, 13)), rng.integers(0, 256, 3).tolist()
  start = int(rng.integers(8, len(taken) - count - 6))
  axes = (int(WIDTH * rng.uniform(0.2, 0.3)), int(HEIGHT * rng.uniform(0.5, 0.9)))
  crossed = []
  for i, frame in enumerate(taken):
    x = int((i - start + 1) / (count + 1) * (WIDTH + 2 * axes[0])) - axes[0]
    shown = frame.copy()
    if start <= i < start + count:
      cv2.ellipse(shown, (x, HEIGHT * 2 // 3), axes, 0, 0, 360, light, -1)
    crossed.append(shown)
  return crossed


def _fast(taken: list[np.ndarray], rng) -> list[np.ndarray]:
  """The film twice or three times as fast: frames were left out before."""
  return taken


EVENTS: dict[str, Callable] = dict(
  flash=_flash, pan=_pan, shake=_shake, zoom=_zoom, passer=_passer, fast=_fast
)

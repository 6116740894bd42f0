"""GIFs: delays as in browsers, pictures as in ffmpeg, no frame without a place."""

import io
from fractions import Fraction

import numpy as np
import pytest
from gif_files import Part, write_gif

from data_pipeline.curate.container import Limits
from data_pipeline.curate.gif import SlowedGif
from data_pipeline.curate.media import frames, probe

PALETTE = [(250, 0, 0), (0, 200, 0), (0, 0, 150), (90, 90, 90)]


def full(index):
  return np.full((8, 8), index, np.uint8)


def read(path, **limits):
  with open(path, "rb") as file:
    info = probe(file, Limits(**limits))
    shown = list(frames(file, info, limits=Limits(**limits)))
    for start in range(1, info.frames, 7):
      assert np.array_equal(
        list(frames(file, info, start=start, stop=start + 3)), shown[start:][:3]
      )
    return info, np.stack(shown)


def places(ours):
  """Output frames at which another picture begins."""
  changes = (np.abs(np.diff(ours.astype(int), axis=0)).max((1, 2, 3)) > 0).nonzero()[0]
  return [0, *(int(change) + 1 for change in changes)]


def test_delays_are_those_of_browsers(tmp_path):
  """0 and 10 ms are shown for 100 ms, 20 ms and more as they say."""
  delays = [0, 1, 2, 3, 1, 10, 0]
  parts = [Part(full(i % 4), delay) for i, delay in enumerate(delays)]
  info, ours = read(write_gif(tmp_path / "a.gif", (8, 8), PALETTE, parts))
  shown = [10, 10, 2, 3, 10, 10, 10]
  starts = np.cumsum([0, *shown]) / 100
  assert (info.source_frames, info.dropped) == (7, 0)
  assert info.seconds == pytest.approx(starts[-1], abs=0.5 / float(info.fps))
  assert places(ours) == [round(float(start * info.fps)) for start in starts[:-1]]


@pytest.mark.parametrize("seed", range(6))
def test_no_frame_is_lost_to_mixed_delays(tmp_path, seed):
  rng = np.random.default_rng(seed)
  delays = rng.choice([[3, 10], [2, 7, 50], [4, 6, 100], [5, 5, 20], [2, 3], [9, 10, 11]][seed], 30)
  parts = [Part(full(i % 4), int(delay)) for i, delay in enumerate(delays)]
  path = write_gif(tmp_path / "a.gif", (8, 8), PALETTE, parts)
  info, ours = read(path)
  assert info.dropped == 0 and len(places(ours)) == 30
  wanted = np.cumsum([0, *delays[:-1]]) / 100 * float(info.fps)
  assert np.abs(np.array(places(ours)) - wanted).max() <= 0.51


def test_what_a_limit_of_the_rate_drops_is_counted(tmp_path):
  parts = [Part(full(i % 4), delay) for i, delay in enumerate([2, 2, 2, 10, 2, 2, 10, 10])]
  path = write_gif(tmp_path / "a.gif", (8, 8), PALETTE, parts)
  info, ours = read(path, max_fps=10)
  starts = np.cumsum([0, 2, 2, 2, 10, 2, 2, 10])
  slots = {int(start * info.fps / 100 + Fraction(1, 2)) for start in starts.tolist()}
  assert info.fps <= 10 and info.dropped == 8 - len(slots) > 0
  assert len(places(ours)) <= len(slots)


CASES = {
  "left": [Part(full(1)), Part(full(2)[:4, :4], place=(2, 2)), Part(full(3)[:2, :3])],
  "cleared": [
    Part(full(1), transparent=0),
    Part(full(2)[:4, :4], disposal=2, transparent=0),
    Part(full(3)[:4, :4], place=(4, 4), transparent=0),
  ],
  "restored": [
    Part(full(1)),
    Part(full(2)[:4, :4], disposal=3),
    Part(full(3)[:4, :4], place=(4, 4)),
  ],
  "cleared_once": [
    Part(full(1), disposal=2, transparent=0),
    Part(full(2)[:4, :4], transparent=0),
    Part(full(3)[:4, :4], place=(4, 4), transparent=0),
  ],
}


def by_hand(name) -> np.ndarray:
  """Palette indices [3,8,8] that are seen, -1 where nothing is: black."""
  seen = np.full((3, 8, 8), -1)
  for number, part in enumerate(CASES[name]):
    if number:
      before = CASES[name][number - 1]
      seen[number] = seen[number - 1]
      left, top = before.place
      height, width = before.indices.shape
      area = np.s_[top : top + height, left : left + width]
      if before.disposal == 2:
        seen[number][area] = -1
      if before.disposal == 3:
        seen[number][area] = seen[number - 2][area]
    left, top = part.place
    height, width = part.indices.shape
    seen[number, top : top + height, left : left + width] = part.indices
  return seen


@pytest.mark.parametrize("name", CASES)
def test_frames_are_disposed_as_the_specification_says(tmp_path, name):
  path = write_gif(tmp_path / "a.gif", (8, 8), PALETTE, CASES[name])
  info, ours = read(path)
  assert (info.fps, info.frames) == (10, 3)
  colours = np.uint8([*PALETTE, (0, 0, 0)])
  assert np.array_equal(ours, colours[by_hand(name)])


def test_a_slowed_file_is_the_file_but_for_short_delays(tmp_path):
  rng = np.random.default_rng(0)
  delays = [0, 1, 1, 2, 255, 256, 257, 1, None, 0]
  pictures = [rng.integers(0, 4, (40, 30), np.uint8) for _ in delays]
  parts = [Part(picture, delay) for picture, delay in zip(pictures, delays, strict=True)]
  data = write_gif(tmp_path / "a.gif", (30, 40), PALETTE, parts).read_bytes()
  slow = [Part(part.indices, 10 if part.delay in (0, 1) else part.delay) for part in parts]
  wanted = write_gif(tmp_path / "b.gif", (30, 40), PALETTE, slow).read_bytes()
  for size in (1, 7, 64, 1 << 20):
    file = SlowedGif(io.BytesIO(data))
    assert b"".join(iter(lambda: file.read(size), b"")) == wanted  # noqa: B023
  file = SlowedGif(io.BytesIO(data))
  for place in rng.integers(0, len(data), 50).tolist():
    assert file.seek(place, 0) == place == file.tell()
    assert file.read(9) == wanted[place : place + 9]
  for stop in range(0, len(data), 37):
    SlowedGif(io.BytesIO(data[:stop])).read(-1)

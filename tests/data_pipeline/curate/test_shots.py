import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from pictures import shifted, texture, warped

from data_pipeline.curate import media, shots
from data_pipeline.curate.picture import Bars, dark_bars, grey
from data_pipeline.errors import BadInput

SHAPE = (72, 128)
THRESHOLDS = {"flow": 0.3, "adaptive": 3.0, "content": 27.0}


def moving(lengths, speed=1.0, shape=SHAPE):
  """Shots of textures that move to the right by `speed` pixels a frame."""
  for seed, length in enumerate(lengths):
    picture = texture(seed, 120, 600)
    for i in range(length):
      yield shifted(picture, speed * i, 0, shape)


def find(frames, detector="flow", threshold=None, **changes):
  own = THRESHOLDS.get(detector, 0.5) if threshold is None else threshold
  settings = dict(detector=detector, threshold=own, min_content=15.0, min_seconds=0.0)
  return shots.find_shots(frames, 24, **{**settings, **changes})


def edges(lengths):
  ends = np.cumsum([0, *lengths]).tolist()
  return list(zip(ends[:-1], ends[1:], strict=True))


@pytest.mark.parametrize("detector", THRESHOLDS)
@pytest.mark.parametrize(
  "lengths",
  [(30,), (17, 40, 25), (1, 30, 20), (2, 20), (30, 2), (30, 1), (1,), (8, 9, 10, 11), (5, 4, 3, 9)],
)
def test_finds_every_hard_cut_at_its_frame(detector, lengths):
  assert find(moving(lengths), detector) == edges(lengths)


@pytest.mark.parametrize("detector", THRESHOLDS)
def test_a_cut_sooner_than_asked_after_another_is_none(detector):
  assert find(moving((30, 8, 30)), detector, min_seconds=0.5) == [(0, 30), (30, 68)]
  assert find(moving((8, 30)), detector, min_seconds=0.5) == [(0, 38)]


def like_shots(seed, count):
  """Shots of 0.7 to 2 seconds of one palette that move in many ways, and where they begin.

  They pan, tilt, zoom, stand still, or something crosses them.
  """
  rng = np.random.default_rng(seed)
  frames, starts = [], []
  for number in range(count):
    picture, kind = texture(1000 * seed + number, 240, 420), number % 5
    length, speed = int(rng.integers(17, 49)), rng.uniform(-3, 3, 2)
    starts.append(len(frames))
    for i in range(length):
      right, down = (speed * i * (kind < 2)).tolist()
      frame = warped(picture, 1 + 0.01 * i * (kind == 2), right, down / 2, SHAPE)
      if kind == 4:
        cv2.circle(frame, (int(i * 128 / length), 40), 18, (200, 60, 20), -1)
      frames.append(frame)
  return frames, [*starts, len(frames)]


@pytest.mark.parametrize("seed", [0, 1])
def test_finds_cuts_between_shots_of_like_statistics(seed):
  frames, ends = like_shots(seed, 25)
  assert find(frames) == list(zip(ends[:-1], ends[1:], strict=True))


@pytest.mark.parametrize("seed", [1, 2])
def test_finds_cuts_between_a_few_small_things_on_one_background(seed):
  rng, frames, starts = np.random.default_rng(seed), [], []
  for _ in range(30):
    starts.append(len(frames))
    things = [(rng.uniform([20, 15], [108, 57]), rng.uniform(-1, 1, 2)) for _ in range(3)]
    sizes, colours = rng.integers(5, 12, 3), rng.integers(0, 255, (3, 3))
    for i in range(int(rng.integers(17, 30))):
      frame = np.full((*SHAPE, 3), 90, np.uint8)
      for (place, speed), size, colour in zip(things, sizes, colours, strict=True):
        cv2.circle(frame, np.int32(place + speed * i).tolist(), int(size), colour.tolist(), -1)
      frames.append(frame)
  found = {start for start, _ in find(frames)}
  assert found <= set(starts) and len(found) >= 27


# ---- no cuts


@pytest.mark.parametrize("speed", [2.0, 6.0, 12.0])
def test_takes_a_fast_pan_for_one_shot(speed):
  assert find(moving((40,), speed=speed)) == [(0, 40)]
  if speed < 12:
    assert find(moving((40,), speed=speed), "adaptive") == [(0, 40)]


def whip(start, stop):
  """A camera that stands still, whips over the scene, blurred, and stands still again."""
  picture = texture(3, 120, 600)
  at = np.interp(np.arange(50), [20, 30], [start, stop])
  for i, place in enumerate(at):
    frame = shifted(picture, place, 0, SHAPE)
    yield cv2.blur(frame, (int(abs(stop - start) / 20), 1)) if 20 < i < 30 else frame


@pytest.mark.parametrize("start, stop", [(-80, 80), (100, -60)])
def test_takes_a_whipped_pan_for_one_shot(start, stop):
  assert find(whip(start, stop)) == [(0, 50)]


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("light", [0, 128, 255])
def test_a_flash_is_no_cut(length, light):
  frames = list(moving((40,)))
  for i in range(20, 20 + length):
    frames[i] = np.full_like(frames[i], light)
  assert find(frames) == [(0, 40)]


def test_a_flash_costs_cuts_of_the_adaptive_detector_unless_they_are_too_close():
  frames = list(moving((40,)))
  frames[20] = np.full_like(frames[20], 255)
  assert find(frames, "adaptive") == [(0, 20), (20, 21), (21, 40)]
  assert find(frames, "adaptive", min_seconds=0.5) == [(0, 20), (20, 40)]


@pytest.mark.parametrize("length", [1, 2])
def test_a_flash_on_a_cut_leaves_one_cut(length):
  frames = list(moving((30, 30)))
  for i in range(30, 30 + length):
    frames[i] = np.full_like(frames[i], 255)
  (first, _), (start, stop) = find(frames)
  assert first == 0 and 30 <= start <= 30 + length and stop == 60


@pytest.mark.parametrize("right, down", [(4, 0), (10, 3), (-7, -7)])
def test_a_picture_that_freezes_and_jumps_on_is_no_cut(right, down):
  picture = texture(6, 120, 240)
  still, moved = shifted(picture, 0, 0, SHAPE), shifted(picture, right, down, SHAPE)
  assert find([still] * 15 + [moved] * 15) == [(0, 30)]


@pytest.mark.parametrize("seed, scale", [(0, 1.5), (3, 1.35)])
def test_a_picture_that_jumps_nearer_is_no_cut(seed, scale):
  picture = texture(seed, 240, 420)  # what is seen near was seen from afar
  far, near = warped(picture, 1, 0, 0, SHAPE), warped(picture, scale, 0, 0, SHAPE)
  assert find([far] * 15 + [near] * 15) == [(0, 30)]


def test_a_shaking_camera_a_light_and_somebody_who_walks_by_are_no_cuts():
  rng, picture = np.random.default_rng(0), texture(5, 120, 200)
  shaken = [shifted(picture, *rng.uniform(-5, 5, 2), SHAPE) for _ in range(30)]
  still = shifted(picture, 0, 0, SHAPE)
  lit = [np.uint8(still * share) for share in (1.0, 0.9, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
  crossed = [still.copy() for _ in range(14)]
  for i, frame in enumerate(crossed[3:11]):
    cv2.ellipse(frame, (18 * i, 50), (30, 45), 0, 0, 360, (30, 10, 10), -1)
  frames = [*[still] * 9, *lit, *[still] * 9, *crossed, *[still] * 9]
  assert find(shaken) == [(0, 30)]
  assert find(frames) == [(0, len(frames))]


def test_a_fade_is_no_cut():
  a = list(moving((60,)))
  share = np.interp(np.arange(60), [15, 45], [1, 0.02])
  faded = [np.uint8(frame * k) for frame, k in zip(a, share, strict=True)]
  assert find(faded) == [(0, 60)]


# ---- copies have the cuts of the original


def pad(frame, rows, columns, level=0):
  return cv2.copyMakeBorder(
    frame, rows, rows, columns, columns, cv2.BORDER_CONSTANT, value=(level,) * 3
  )


def noisy(frame, deviation, seed=0):
  noise = np.random.default_rng(seed).normal(0, deviation, frame.shape)
  return np.clip(frame + noise, 0, 255).round().astype(np.uint8)


COPIES = {
  "grey": lambda f: cv2.cvtColor(grey(f), cv2.COLOR_GRAY2RGB),
  "dark": lambda f: np.uint8(f * 0.2),
  "darker": lambda f: np.uint8(f * 0.1 + 4),
  "pale": lambda f: np.uint8(200 + f * 0.2),
  "letterbox": lambda f: pad(f, 20, 0),
  "pillars": lambda f: pad(f, 0, 60),
  "narrow in a wide frame": lambda f: pad(f, 4, 140),
  "bars all around, not black": lambda f: pad(f, 10, 30, 16),
  "noisy bars": lambda f: noisy(pad(f, 18, 20, 6), 1.5),
  "dark and grey with pillars": lambda f: pad(COPIES["grey"](COPIES["dark"](f)), 0, 60),
  "half the size": lambda f: cv2.resize(f, (64, 36), interpolation=cv2.INTER_AREA),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_has_the_cuts_of_its_original(copy):
  frames, ends = like_shots(2, 9)
  assert find(map(COPIES[copy], frames)) == list(zip(ends[:-1], ends[1:], strict=True))


CODECS = {
  "crf 32": "-c:v libx264 -preset veryfast -crf 32 -pix_fmt yuv420p",
  "hevc of 10 bits": "-c:v libx265 -preset ultrafast -crf 30 -pix_fmt yuv420p10le -x265-params "
  "log-level=error:pools=none",
  "av1 of 10 bits": "-c:v libsvtav1 -preset 12 -crf 45 -pix_fmt yuv420p10le -svtav1-params lp=1",
  "dark grey pillars, crf 32": "-vf hue=s=0,lutyuv=y=16+(val-16)/5,pad=176:72:24:0:black -c:v "
  "libx264 -preset veryfast -crf 32 -pix_fmt yuv420p",
}


@pytest.mark.parametrize("codec", CODECS)
def test_an_encoded_copy_has_the_cuts_of_its_original(codec, make, tmp_path):
  frames, ends = like_shots(3, 9)
  original = make.write(tmp_path / "film.mkv", frames)
  path = tmp_path / "copy.mkv"
  make.ffmpeg("-i", original, *CODECS[codec].split(), path)
  with open(path, "rb") as file:
    assert find(media.frames(file)) == list(zip(ends[:-1], ends[1:], strict=True))


@pytest.mark.parametrize("detector", ["adaptive", "content"])
def test_bars_take_nothing_from_the_differences_of_pyscenedetects_rules(detector):
  frames, _ = like_shots(4, 8)
  plain = find(frames, detector)
  assert len(plain) > 4
  assert find([pad(frame, 0, 90) for frame in frames], detector) == plain
  assert find([noisy(pad(frame, 20, 90, 6), 1.0) for frame in frames], detector) == plain


FILM = Path(os.environ.get("SORA_FILM", "runs/film/.clips.film/bbb.mp4"))


@pytest.mark.skipif(not FILM.is_file(), reason="sora data --config=experiments/film.py brings it")
def test_a_minute_of_the_real_film_and_its_copies_have_the_cuts_seen_by_eye():
  from experiments.benchmarks.film_edits import CUTS

  with open(FILM, "rb") as file:
    film = list(media.frames(file, start=4400, stop=5600, size=(256, 144)))
  expected = [cut - 4400 for cut in CUTS if 4400 < cut < 5600]
  assert len(expected) == 19
  for copy in ("half the size", "dark and grey with pillars", "letterbox"):
    assert [start for start, _ in find(map(COPIES[copy], film))[1:]] == expected


# ---- bars


@pytest.mark.parametrize("gain", [1.0, 0.3, 0.1])
def test_dark_bars_are_told_beside_the_pictures_contrast(gain):
  picture = texture(0, 72, 96)
  barred = pad(picture, 6, 16)
  assert dark_bars(grey((barred * gain).astype(np.uint8))) == Bars(6, 16, 6, 16)
  assert dark_bars(grey((picture * gain).astype(np.uint8))) == Bars()


def test_what_is_dark_and_has_structure_or_is_bright_and_even_is_no_bar():
  frame = texture(0, 72, 96)
  sky = frame.copy()
  sky[:20] = 240
  night = frame.copy()
  night[:20] = (np.arange(96) % 8 * 4)[:, None]
  assert dark_bars(grey(sky)) == dark_bars(grey(night)) == Bars()
  assert dark_bars(np.full((40, 60), 7, np.uint8)) is None
  assert dark_bars(np.zeros((40, 60), np.uint8)) is None


# ---- PySceneDetect's rules


def theirs(path, detector, content=15.0):
  import scenedetect

  judge = {
    "content": lambda: scenedetect.ContentDetector(threshold=27.0, min_scene_len=0),
    "adaptive": lambda: scenedetect.AdaptiveDetector(
      adaptive_threshold=3.0, min_content_val=content, min_scene_len=0
    ),
  }[detector]()
  return [(start.frame_num, end.frame_num) for start, end in scenedetect.detect(path, judge)]


@pytest.mark.parametrize("detector", ["adaptive", "content"])
def test_agrees_with_pyscenedetect_reading_the_video_itself(tmp_path, detector):
  frames, ends = like_shots(5, 10)
  path = str(tmp_path / "cuts.avi")
  out = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 24, SHAPE[::-1])
  for frame in frames:
    out.write(np.ascontiguousarray(frame[:, :, ::-1]))
  out.release()
  seen = cv2.VideoCapture(path)
  read = [np.ascontiguousarray(seen.read()[1][:, :, ::-1]) for _ in frames]
  found = find(read, detector)
  assert found == theirs(path, detector) and len(found) > 5


@pytest.mark.parametrize("seed", range(4))
def test_the_adaptive_rule_is_pyscenedetects_on_changes_of_any_size(seed):
  from scenedetect import FrameTimecode
  from scenedetect.detectors import AdaptiveDetector

  rng = np.random.default_rng(seed)
  steps = rng.choice([0, 10, 20, 60, 90], 300) * rng.choice([1, 1, 1.5], 300)
  levels = np.abs((np.cumsum(steps) % 508) - 254).astype(np.uint8)  # to and fro, of even colour
  frames = [np.full((36, 64, 3), level, np.uint8) for level in levels]
  judge = AdaptiveDetector(adaptive_threshold=3.0, min_content_val=15.0, min_scene_len=0)
  theirs = [
    cut.frame_num
    for i, frame in enumerate(frames)
    for cut in judge.process_frame(FrameTimecode(i, fps=24.0), frame)
  ]
  ours = [start for start, _ in find(frames, "adaptive")]
  assert [cut for cut in ours if 2 <= cut < 298] == [cut for cut in theirs if cut >= 2]
  assert len(theirs) > 5


def test_no_frames_have_no_shots():
  for detector in THRESHOLDS:
    assert find([], detector) == []


def test_refuses_an_unknown_detector():
  with pytest.raises(BadInput, match="detector='magic' is unknown. Use one of flow, adaptive"):
    find([], "magic", 1.0)


# ---- TransNetV2: the network itself is replaced, its windows and what is made of them are not


def scenes_of(predictions):
  """`predictions_to_scenes` of TransNetV2's authors (inference/transnetv2.py), ends exclusive."""
  scenes, t, t_prev, start = [], -1, 0, 0
  for i, t in enumerate(predictions):
    if t_prev == 1 and t == 0:
      start = i
    if t_prev == 0 and t == 1 and i != 0:
      scenes.append((start, i + 1))
    t_prev = t
  if t == 0:
    scenes.append((start, i + 1))
  return scenes


class Network:
  """Sees a change where the red of the next frame is another one; it needs 25 frames around."""

  windows: list = []

  def predict(self, frames):
    assert frames.shape == (100, 27, 48, 3) and frames.dtype == np.uint8
    red = frames[:, 0, 0, 0].astype(int)
    self.windows.append(red.tolist())
    change = np.append(red[1:] != red[:-1], False).astype(float)
    change[:25] = change[75:] = 1.0  # whoever looks there, sees changes everywhere
    return change


@pytest.fixture
def network(monkeypatch):
  monkeypatch.setattr(shots, "TransNet", Network)
  monkeypatch.setattr(Network, "windows", [])
  return Network


@pytest.mark.parametrize("lengths", [(1,), (40,), (50,), (25, 26), (60, 77), (99, 2, 48, 51, 30)])
def test_the_network_sees_every_frame_once_in_the_middle_of_a_window(network, lengths):
  reds = np.repeat(np.arange(len(lengths)) * 40, lengths)
  frames = (np.full((54, 96, 3), red, np.uint8) for red in reds)
  found = find(frames, "transnetv2")
  assert found == edges(lengths)
  middle = [value for window in network.windows for value in window[25:75]]
  assert middle[: len(reds)] == reds.tolist()
  assert len(network.windows) == -(-len(reds) // 50)


@pytest.mark.parametrize("seed", range(20))
def test_shots_between_changes_are_those_of_the_networks_authors(seed):
  rng = np.random.default_rng(seed)
  changes = rng.random(60) < rng.choice([0.05, 0.3, 0.8])
  changes[0] &= seed % 2 == 0
  assert shots.shots_between(changes.tolist(), 0) == scenes_of(changes.astype(int))


def test_a_gradual_transition_belongs_to_no_shot():
  changes = [False] * 5 + [True] * 4 + [False] * 6
  assert shots.shots_between(changes, 0) == [(0, 6), (9, 15)]
  assert shots.shots_between(changes, 6) == [(0, 6), (9, 15)]
  assert shots.shots_between(changes, 7) == []

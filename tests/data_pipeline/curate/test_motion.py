import numpy as np
import pytest
from pictures import shifted, texture, warped

from data_pipeline.curate.motion import CAMERA, MotionMeter, fit_camera, name_camera

SHAPE = (144, 256)
DIAGONAL = float(np.hypot(*SHAPE))
PICTURE = texture(0, 700, 900)


def measure(frames, fps=24, min_camera=0.004):
  meter = MotionMeter(fps)
  count = 0
  for frame in frames:
    meter.add(frame)
    count += 1
  return meter.measure(0, count, min_camera=min_camera)


def slide(right, down, count=13, shape=SHAPE):
  return [shifted(PICTURE, right * i, down * i, shape) for i in range(count)]


@pytest.mark.parametrize(
  "right, down, word",
  [
    (1, 0, "pan left"),  # the scene moves to the right: the camera turns to the left
    (-2, 0, "pan right"),
    (0, 1.5, "pan up"),
    (0, -3, "pan down"),
    (3, 1, "pan left"),
  ],
)
def test_a_texture_that_moves_k_pixels_a_frame_has_that_motion(right, down, word):
  scores, camera = measure(slide(right, down))
  speed = 24 / DIAGONAL
  assert camera == word
  assert scores["motion"] == pytest.approx(np.hypot(right, down) * speed, rel=0.05)
  assert scores["pan_x"] == pytest.approx(-right * speed, abs=0.02 * speed)
  assert scores["pan_y"] == pytest.approx(-down * speed, abs=0.02 * speed)
  assert abs(scores["zoom"]) < 0.02


@pytest.mark.parametrize("growth, word", [(1.01, "zoom in"), (1 / 1.01, "zoom out")])
def test_zoom_has_its_rate_and_moves_outwards_from_the_centre(growth, word):
  start = 1.0 if growth > 1 else 1.2
  frames = [warped(PICTURE, start * growth**i, 0, 0, SHAPE) for i in range(13)]
  scores, camera = measure(frames)
  assert camera == word
  assert scores["zoom"] == pytest.approx(12 * (growth**2 - 1), rel=0.05)
  y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
  radius = np.hypot(y - (SHAPE[0] - 1) / 2, x - (SHAPE[1] - 1) / 2).mean() / DIAGONAL
  assert scores["motion"] == pytest.approx(radius * abs(12 * (growth**2 - 1)), rel=0.07)
  assert np.hypot(scores["pan_x"], scores["pan_y"]) < 0.003


def test_a_still_picture_has_no_motion_and_noise_hardly_any():
  still = [PICTURE[:144, :256]] * 13
  scores, camera = measure(still)
  assert scores["motion"] == 0 and camera == "static"
  rng = np.random.default_rng(0)
  noisy = [np.clip(f + rng.normal(0, 1, f.shape), 0, 255).astype(np.uint8) for f in still]
  scores, camera = measure(noisy)
  assert scores["motion"] < 0.002 and camera == "static"


def test_an_object_moves_before_a_static_camera():
  background, thing = PICTURE[:144, :256], texture(1, 40, 60)
  frames = []
  for i in range(25):
    frame = background.copy()
    frame[50:90, 20 + 4 * i : 80 + 4 * i] = thing
    frames.append(frame)
  scores, camera = measure(frames)
  share = 40 * 60 / (144 * 256)
  assert camera == "static"
  assert 0.7 < scores["motion"] / (share * 4 * 24 / DIAGONAL) < 1.6


def test_shaking_has_no_direction():
  frames = [shifted(PICTURE, 4 * (-1) ** (i // 2), 0, SHAPE) for i in range(24)]
  scores, camera = measure(frames)
  assert camera == "unsteady" and scores["motion"] > 0.1


@pytest.mark.parametrize("fps", [6, 12, 24, 60])
def test_motion_is_a_second_s_whatever_the_rate(fps):
  scores, _ = measure(slide(24 / fps, 0, count=2 * fps), fps)
  assert scores["motion"] == pytest.approx(24 / DIAGONAL, rel=0.05)


def test_motion_does_not_depend_on_the_size():
  small = [f[::2, ::2] for f in slide(2, 0)]
  assert measure(small)[0]["motion"] == pytest.approx(measure(slide(2, 0))[0]["motion"], rel=0.05)


def test_a_range_sees_nothing_of_what_lies_outside():
  meter = MotionMeter(24)
  still, fast = [PICTURE[:144, :256]] * 24, slide(8, 0, 24)
  for frame in [*fast, *still, *fast]:
    meter.add(frame)
  for start, stop in ((24, 48), (25, 47), (30, 41)):
    assert meter.measure(start, stop, min_camera=0.004)[0]["motion"] == 0
  assert meter.measure(20, 48, min_camera=0.004)[0]["motion"] > 0.1


def test_one_frame_has_no_motion_to_measure():
  assert measure([PICTURE[:144, :256]]) == ({}, "")


@pytest.mark.parametrize("shape", [(1, 1), (2, 256), (256, 3), (20, 20)])
def test_tiny_and_thin_frames_are_measured(shape):
  frames = [shifted(PICTURE, i, 0, shape) for i in range(9)]
  scores, camera = measure(frames)
  assert np.isfinite(list(scores.values())).all() and camera in CAMERA


def test_the_camera_is_fitted_to_most_points_not_to_all():
  rng = np.random.default_rng(0)
  points = rng.uniform(-0.4, 0.4, 500) + 1j * rng.uniform(-0.2, 0.2, 500)
  moved = (0.02 - 0.01j) + (0.05 + 0.03j) * points
  moved[:150] = 0.3 + 0.2j  # three in ten follow something else
  shift, turn = fit_camera(points, moved)
  assert abs(shift - (0.02 - 0.01j)) < 1e-4 and abs(turn - (0.05 + 0.03j)) < 1e-3


def test_words_for_the_camera():
  def name(x=0.0, y=0.0, zoom=0.0, whole=0.1):
    return name_camera(np.array([[x, y, zoom, whole]]), 0.01)

  assert name(whole=0.009) == "static"
  assert name(x=0.1) == "pan right" and name(x=-0.1) == "pan left"
  assert name(y=0.1) == "pan down" and name(y=-0.1) == "pan up"
  assert name(zoom=0.4) == "zoom in" and name(zoom=-0.4) == "zoom out"
  assert name(x=0.04) == "unsteady"
  assert set(CAMERA) >= {name(), name(x=1.0)}

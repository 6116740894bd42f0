"""Encoded clips: they come back, by any window, in bounded memory, and never as something else."""

import io
import itertools
import os
import pickle
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from data_pipeline import rgb
from data_pipeline.errors import BadInput
from data_pipeline.rgb import Area
from data_pipeline.video import EncodedVideo, as_frames, window_of
from data_pipeline.video_writer import encode_video, exact_rate

ROOT = Path(__file__).parents[2]


def moving(frames, height, width, seed=0):
  """A smooth picture that drifts, and a bright square: uint8 [F,H,W,3]."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:height, :width]
  waves = rng.uniform(0.01, 0.08, (3, 2))
  video = np.empty((frames, height, width, 3), np.uint8)
  for f, c in itertools.product(range(frames), range(3)):
    video[f, ..., c] = 127 + 100 * np.sin(waves[c, 0] * (y + f) + waves[c, 1] * (x - 2 * f))
    video[f, f % height : f % height + 4, : width // 3, c] = 40 * (c + 2)
  return video


def encode(video, codec="h264", quality=12, fps=8.0):
  _, height, width, _ = video.shape
  size = dict(width=width, height=height, fps=fps)
  return encode_video(iter(video), codec=codec, quality=quality, **size)


def error_of(a, b):
  return np.abs(a.astype(int) - b).mean()


SIZES = [(1, 1, 1), (3, 2, 2), (5, 47, 33), (2, 1, 64), (2, 64, 1), (70, 48, 64)]


@pytest.mark.parametrize("shape", SIZES)
def test_lossless_is_exact(shape):
  video = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
  encoded = encode(video, "lossless", None)
  assert encoded.shape == video.shape and encoded.dtype == video.dtype
  np.testing.assert_array_equal(encoded.decode(), video)


@pytest.mark.parametrize("shape", SIZES)
def test_h264_is_close_at_any_size(shape):
  video = moving(*shape)
  encoded = encode(video)
  found = encoded.decode()
  assert found.shape == video.shape == encoded.shape and found.dtype == np.uint8
  assert error_of(found, video) < 3
  assert encoded.nbytes == len(encoded.data)


def test_colours_stay():
  colours = [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
  video = np.zeros((2, 16, 16 * len(colours), 3), np.uint8)
  for i, colour in enumerate(colours):
    video[:, :, 16 * i : 16 * i + 16] = colour
  inside = encode(video, quality=4).decode()[:, 4:12].reshape(2, 8, -1, 16, 3)[:, :, :, 4:12]
  assert np.abs(inside - np.array(colours)[:, None]).max() <= 2


def test_another_program_reads_the_same(tmp_path):
  """ffmpeg, by the tags in the file: frames, rate, size, colours."""
  video = moving(30, 48, 64)
  for codec, bound in (("h264", 0.5), ("lossless", 0)):
    encoded = encode(video, codec, 10, fps=Fraction(30000, 1001))
    path = tmp_path / f"{codec}.mp4"
    path.write_bytes(encoded.data)
    flags = "accurate_rnd+bicubic+full_chroma_int+full_chroma_inp"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", path, "-vf", f"scale=flags={flags}"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    found = np.frombuffer(done.stdout, np.uint8).reshape(video.shape)
    assert error_of(found, encoded.decode()) <= bound
    said = done.stderr.decode()
    assert "29.97 fps" in said and "64x48" in said
    assert ("bt709" if codec == "h264" else "gbr") in said and "x264 - core" not in said


@pytest.mark.parametrize("codec", ["h264", "lossless"])
def test_any_window_is_that_of_the_whole(codec):
  video = moving(150, 16, 16)
  encoded = encode(video, codec)
  whole = encoded.decode()
  for start in range(0, 150, 7):
    for length in (1, 2, 17):
      stop = min(start + length, 150)
      np.testing.assert_array_equal(encoded.window(start, stop), whole[start:stop])
  np.testing.assert_array_equal(window_of(encoded, 149, 150), whole[149:])
  np.testing.assert_array_equal(window_of(whole, 3, 5), whole[3:5])


@pytest.mark.parametrize("codec", ["h264", "lossless"])
@pytest.mark.parametrize(("height", "width"), [(70, 102), (33, 241), (160, 64), (5, 3)])
def test_any_area_is_that_of_the_whole(codec, height, width):
  rng = np.random.default_rng(height)
  video = rng.integers(0, 256, (3, height, width, 3), dtype=np.uint8)
  encoded = encode(video, codec, 4)
  whole = encoded.decode()
  for _ in range(200):
    h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    area = Area(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    found = window_of(encoded, 1, 3, area)
    np.testing.assert_array_equal(found, window_of(whole, 1, 3, area), err_msg=str(area))
  for sides in ((0, 0, height + 1, 1), (-1, 0, 1, 1), (0, width, 1, 1), (0, 0, 0, 1)):
    with pytest.raises(ValueError, match="is no part of a picture"):
      next(encoded.frames(0, 1, Area(*sides)))


@pytest.mark.parametrize(("height", "width"), [(70, 102), (34, 242), (160, 64), (6, 4)])
def test_planes_have_the_values_of_packed_pixels(height, width):
  """swscale converts planes by other instructions than `rgb24`, the format that everyone reads."""
  rng = np.random.default_rng(width)
  planes = rng.integers(0, 256, (height * 3 // 2, width), np.uint8)
  frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
  interpolation = rgb._SCALER["interpolation"]
  packed = frame.reformat(
    format="rgb24",
    interpolation=interpolation,
    src_colorspace="ITU709",
    src_color_range="MPEG",
    dst_color_range="JPEG",
  )
  np.testing.assert_array_equal(rgb.ToRGB(Area(0, 0, height, width))(frame), packed.to_ndarray())


@pytest.mark.parametrize(
  "fps", [0.01, 1, np.float32(8), 23.976, Fraction(24000, 1001), Fraction(2**40, 2**35 + 1), 999.5]
)
def test_any_rate(fps):
  video = moving(20, 16, 16)
  encoded = encode(video, fps=fps)
  whole = encoded.decode()
  assert error_of(whole, video) < 4  # x264 spends less on frames that are shown shorter
  np.testing.assert_array_equal(encoded.window(13, 16), whole[13:16])
  with av.open(io.BytesIO(encoded.data)) as container:
    assert container.streams.video[0].average_rate == pytest.approx(exact_rate(fps), rel=1e-5)


def test_chunks_are_the_whole_in_pieces():
  video = moving(11, 16, 16)
  encoded = encode(video, "lossless")
  assert [len(piece) for piece in encoded.chunks([1, 4, 6])] == [1, 4, 6]
  np.testing.assert_array_equal(np.concatenate(list(encoded.chunks([1, 4, 6]))), video)
  np.testing.assert_array_equal(next(encoded.chunks([3, 4])), video[:3])
  np.testing.assert_array_equal(np.concatenate(list(encoded.chunks([3, 4]))), video[:7])
  for sizes in ([12], [5, 7], [0], [-1]):
    with pytest.raises(ValueError, match="size=.* is not in 1.."):
      list(encoded.chunks(sizes))
  with pytest.raises(ValueError, match="are no part of 11 frames"):
    encoded.window(3, 12)


def test_arrays_pass_through_and_videos_are_pickled():
  video = moving(2, 8, 8)
  assert as_frames(video) is video
  encoded = encode(video, "lossless")
  copy = pickle.loads(pickle.dumps(encoded))
  assert copy == encoded and len(repr(encoded)) < 100
  np.testing.assert_array_equal(as_frames(copy), video)


ALIKE = """
import collections, hashlib, os, sys
sys.path.insert(0, {tests!r})
import numpy as np
from test_video import encode, moving
os.sched_setaffinity(0, {cores})
rng, found = np.random.default_rng({seed}), collections.Counter()
for height, width in ((50, 70), (48, 64), (33, 47)):
  video = moving(12, height, width)
  for _ in range(5):
    stirred = [rng.bytes(size) for size in rng.integers(1000, 100_000, 400)]  # memory is not zero
    del stirred
    for codec in ("h264", "lossless"):
      found[height, codec, hashlib.sha256(encode(video, codec, 23).data).hexdigest()] += 1
print(found)
"""


def test_the_same_bytes_in_any_process():
  """Whatever the number of cores, and whatever lay in the memory that the encoder is given."""
  outputs, cores = set(), list(os.sched_getaffinity(0))
  for seed, some in enumerate((cores[:1], cores)):
    code = ALIKE.format(tests=str(Path(__file__).parent), cores=set(some), seed=seed)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    outputs.add(done.stdout)
  assert len(outputs) == 1 and outputs.pop().count(": 5") == 6


STREAMS = """
import os, sys
import numpy as np
from data_pipeline.video_writer import encode_video
def held(name):
  with open("/proc/self/status") as file:
    return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024
frame = np.random.default_rng(0).integers(0, 99, (360, 640, 3), dtype=np.uint8)
def frames(count):
  for i in range(count):
    yield np.roll(frame, i, 0) // 16
settings = dict(width=640, height=360, fps=24.0, codec="h264", quality=40)
list(encode_video(frames(80), **settings).chunks([10] * 8))
before = held("VmHWM")
video = encode_video(frames(240), **settings)
for piece in video.chunks([10] * 24):
  assert piece.shape == (10, 360, 640, 3)
print(held("VmHWM") - before - video.nbytes / 2**20)
"""


def test_streams_in_bounded_memory():
  """240 frames are 166 MB; encoding and reading them takes no more than 80 do."""
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", STREAMS]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
  assert float(done.stdout) < 30, done.stdout


@pytest.mark.parametrize(
  "shape, why",
  [
    ((12, 16, 16, 3), "it holds 11 frames"),
    ((10, 16, 16, 3), "it holds 11 frames"),
    ((11, 16, 18, 3), "a frame is 16x16"),
    ((11, 13, 16, 3), "a frame is 16x16"),
  ],
)
def test_another_shape_is_seen(shape, why):
  encoded = EncodedVideo(encode(moving(11, 16, 16)).data, shape)
  with pytest.raises(
    BadInput, match=f"bytes is not {shape[0]} frames of .*{why}.*Copy the dataset"
  ):
    encoded.decode()


def test_damaged_data_is_seen():
  encoded = encode(moving(11, 16, 16), "lossless")
  for data in (b"", b"no video", encoded.data[:100], encoded.data[:-200], encoded.data[200:]):
    with pytest.raises(BadInput, match="bytes is not 11 frames of 16x16"):
      EncodedVideo(data, encoded.shape).decode()


@pytest.mark.parametrize(
  "settings, text",
  [
    (dict(codec="av1"), "codec='av1' is not one of h264, lossless"),
    (dict(width=0), "0x8 is not within 1..16384"),
    (dict(height=16_385), "8x16385 is not within"),
    (dict(quality=52), "quality=52 is no rate factor"),
    (dict(quality=None), "quality=None is no rate factor"),
    (dict(fps=0.0), "fps=0.0 is not between"),
    (dict(fps=float("nan")), "fps=nan is not between"),
    (dict(width=9), r"frame 0 is uint8 \(8, 8, 3\), not uint8 \(8, 9, 3\)"),
    (dict(frames=[]), "there is no frame to encode"),
    (dict(frames=[np.zeros((8, 8, 3), np.float32)]), r"frame 0 is float32"),
  ],
)
def test_refuses_what_cannot_be_encoded(settings, text):
  base = dict(frames=moving(2, 8, 8), width=8, height=8, fps=8.0, codec="h264", quality=20)
  with pytest.raises(BadInput, match=text):
    encode_video(**(base | settings))

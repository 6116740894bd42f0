"""Written files against a decoder that is not ours to configure: PyAV's defaults, and PIL."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import BadInput
from sora_jax.generate import media

RED_GREEN_BLUE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)


def smooth_video(frames=5, height=32, width=48, seed=0):
  """Slowly varying colours, which 4:2:0 keeps."""
  t, y, x = np.meshgrid(*(np.linspace(0, 3, n) for n in (frames, height, width)), indexing="ij")
  phases = np.random.default_rng(seed).uniform(0, 6, 3)
  return np.stack([127 + 120 * np.sin(t + y + x + phase) for phase in phases], -1).astype(np.uint8)


def mean_error(a, b):
  return np.abs(a.astype(int) - b.astype(int)).mean()


@pytest.mark.parametrize("fps", [8, 7.5, 24000 / 1001, Fraction(30000, 1001)])
@pytest.mark.parametrize("frames", [1, 2, 17])
def test_mp4_keeps_frames_and_rate(tmp_path, frames, fps):
  video = smooth_video(frames)
  media.write_mp4(tmp_path / "v.mp4", video, fps)
  back, rate = media.read_mp4(tmp_path / "v.mp4")
  assert back.shape == video.shape and back.dtype == np.uint8
  assert rate == Fraction(fps).limit_denominator(1001)
  assert mean_error(back, video) < 3


@pytest.mark.parametrize("height, width", [(31, 48), (32, 47), (31, 47), (1, 1)])
def test_odd_sides_come_back_as_they_were(tmp_path, height, width):
  video = smooth_video(3, height, width)
  media.write_mp4(tmp_path / "v.mp4", video, 8)
  with av.open(str(tmp_path / "v.mp4")) as container:
    coded = container.streams.video[0]
    assert (coded.height, coded.width) == (height + height % 2, width + width % 2)
  back, _ = media.read_mp4(tmp_path / "v.mp4")
  assert back.shape == video.shape
  assert mean_error(back, video) < 4


def test_same_video_same_bytes_and_no_encoder_name(tmp_path):
  video = smooth_video(9)
  for name in ("a.mp4", "b.mp4"):
    media.write_mp4(tmp_path / name, video, 8)
  first = (tmp_path / "a.mp4").read_bytes()
  assert first == (tmp_path / "b.mp4").read_bytes()
  assert b"x264" not in first and b"Lavf" not in first
  assert first.index(b"moov") < first.index(b"mdat")  # plays before it is wholly loaded
  media.write_mp4(tmp_path / "b.mp4", smooth_video(9, seed=1), 8)
  assert first != (tmp_path / "b.mp4").read_bytes()


def test_saturated_colours_survive(tmp_path):
  """Flat fields must come back within rounding: a wrong matrix or range is off by tens."""
  video = RED_GREEN_BLUE.repeat(16, 0).repeat(16, 0)[None, :, None].reshape(1, 4, 16, 16, 3)
  video = np.concatenate(list(video[0]), axis=1)[None].repeat(3, 0)
  media.write_mp4(tmp_path / "v.mp4", video, 8)
  back, _ = media.read_mp4(tmp_path / "v.mp4")
  cells = np.abs(back.astype(int) - video).reshape(3, 16, 4, 16, 3)
  assert cells[:, 4:12, :, 4:12].max() <= 3


def test_colour_samples_sit_where_the_stream_says(tmp_path):
  """Any decoder gets slopes of colour right: siting them half a pixel off costs 2.4 levels."""
  video = smooth_video()
  media.write_mp4(tmp_path / "v.mp4", video, 8, crf=1)
  with av.open(str(tmp_path / "v.mp4")) as container:
    plain = [f.to_ndarray(format="rgb24", interpolation=media.SCALING) for f in container.decode()]
  assert mean_error(np.stack(plain), video) < 1.2
  assert mean_error(media.read_mp4(tmp_path / "v.mp4")[0], video) < 1.2


def test_stream_says_which_colours_it_means(tmp_path):
  media.write_mp4(tmp_path / "v.mp4", smooth_video(), 8)
  with av.open(str(tmp_path / "v.mp4")) as container:
    stream = container.streams.video[0]
    frame = next(container.decode(stream))
  assert frame.format.name == "yuv420p"
  assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (1, 1, 1)  # BT.709
  assert frame.color_range == 1  # limited


@pytest.mark.parametrize("write", [media.write_mp4, media.write_png])
def test_path_that_cannot_be_written_is_bad_input(tmp_path, write):
  pixels, rest = (smooth_video(), [8]) if write is media.write_mp4 else (smooth_video()[0], [])
  (tmp_path / "file").write_text("kept")
  for path, text in [
    (tmp_path / "none" / "v.mp4", "no folder to go to"),
    (tmp_path / "file" / "v.mp4", "no folder to go to"),
    (tmp_path, "no plain file"),
    (tmp_path / ("x" * 300), "too long"),
  ]:
    with pytest.raises(BadInput, match=text):
      write(path, pixels, *rest)
  assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_failed_write_leaves_the_old_file(tmp_path):
  (tmp_path / "v.mp4").write_text("old")
  with pytest.raises(RuntimeError), media.replacing(tmp_path / "v.mp4") as temporary:
    temporary.write_text("half")
    raise RuntimeError
  assert (tmp_path / "v.mp4").read_text() == "old"
  assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_impossible_rate_is_bad_input(tmp_path, fps):
  with pytest.raises(BadInput, match="fps="):
    media.write_mp4(tmp_path / "v.mp4", smooth_video(), fps)
  assert not list(tmp_path.iterdir())


def test_float_pixels_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"float64 .* is not uint8 \[F,H,W,3\]"):
    media.write_mp4(tmp_path / "v.mp4", smooth_video() / 255, 8)


def test_unreadable_video_is_bad_input(tmp_path):
  (tmp_path / "v.mp4").write_bytes(b"not a video" * 100)
  for name in ("v.mp4", "missing.mp4"):
    with pytest.raises(BadInput, match=name):
      media.read_mp4(tmp_path / name)


def test_truncated_video_is_bad_input(tmp_path):
  media.write_mp4(tmp_path / "v.mp4", smooth_video(17), 8)
  whole = (tmp_path / "v.mp4").read_bytes()
  (tmp_path / "v.mp4").write_bytes(whole[: len(whole) // 4])
  with pytest.raises(BadInput, match="v.mp4"):
    media.read_mp4(tmp_path / "v.mp4")


def test_png_is_lossless(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
  media.write_png(tmp_path / "i.png", image)
  with Image.open(tmp_path / "i.png") as back:
    assert np.array_equal(np.asarray(back), image)


def test_grid_places_scales_and_holds():
  short, long = np.full((1, 2, 4, 3), 100, np.uint8), np.full((3, 4, 2, 3), 200, np.uint8)
  sheet = media.grid([short, long, short], columns=2, scale=3, pad=1)
  assert sheet.shape == (3, 1 + 2 * 13, 1 + 2 * 13, 3)
  for frame in sheet:  # the short clip stands still, the long one fills its cell's height
    assert np.all(frame[4:10, 1:13] == 100) and np.all(frame[1:4, 1:13] == media.BACKGROUND)
    assert np.all(frame[1:13, 17:23] == 200) and np.all(frame[1:13, 14:17] == media.BACKGROUND)
    assert np.all(frame[14:, 14:] == media.BACKGROUND)  # the empty cell
    assert np.all(frame[17:23, 1:13] == 100)


def test_grid_draws_each_caption_under_its_clip():
  clips = [np.zeros((2, 8, 32, 3), np.uint8)] * 2
  plain = media.grid(clips, columns=2, scale=2)
  sheet = media.grid(clips, columns=2, scale=2, captions=["a red disc falls down", ""])
  label = sheet[:, 4 + 16 : -4]
  assert sheet.shape[1] > plain.shape[1]
  assert np.any(label[:, :, :68] == media.INK) and not np.any(label[:, :, 68:] == media.INK)
  with pytest.raises(ValueError, match="1 captions for 2 videos"):
    media.grid(clips, columns=2, captions=["one"])


def test_strip_shows_first_and_last_frame():
  video = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8)
  row = media.strip(video, 3, pad=2)
  assert row.shape == (4, 3 * 6 + 2 * 2, 3)
  assert [row[0, x, 0] for x in (0, 8, 16)] == [0, 4, 8]

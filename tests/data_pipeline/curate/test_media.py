"""Frames, rates, rotation and colours of good files, against the ffmpeg program."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from data_pipeline.curate.child import run_in_child
from data_pipeline.curate.container import Limits
from data_pipeline.curate.media import HELD_BYTES, HELD_FRAMES, frames, probe
from data_pipeline.curate.types import Refused

TAGS = {
  "bt709": ("-colorspace", "bt709"),
  "bt601": ("-colorspace", "smpte170m"),
  "bt2020": ("-colorspace", "bt2020nc"),
}
INTERLACED = ("-vf", "interlace,format=yuv420p", "-flags", "+ildct+ilme", "-c:v", "mpeg2video")
QUIET = ("-x265-params", "log-level=error")


def read(path, **options):
  with open(path, "rb") as file:
    info = probe(file)
    return info, np.stack(list(frames(file, info, **options)))


def converted(matrix, colour_range, pix_fmt):
  """ffmpeg's options for a video with a matrix and a range, tagged with them."""
  scale = f"scale=out_color_matrix={matrix}:out_range={colour_range},format={pix_fmt}"
  return ("-vf", scale, *TAGS[matrix], "-color_range", colour_range)


FILES = {
  "h264.mp4": ("25", 2, "libx264", ("-pix_fmt", "yuv420p")),
  "ntsc_film.mkv": ("24000/1001", 4, "libx264", ("-pix_fmt", "yuv420p")),
  "ntsc.mp4": ("30000/1001", 3, "libx264", ("-pix_fmt", "yuv420p")),
  "fragmented.mp4": ("25", 2, "libx264", ("-movflags", "frag_keyframe+empty_moov")),
  "late.mp4": ("25", 2, "libx264", ("-output_ts_offset", "5", "-pix_fmt", "yuv420p")),
  "open_gop.ts": (
    "25",
    4,
    "libx264",
    ("-pix_fmt", "yuv420p", "-x264-params", "open-gop=1:keyint=30"),
  ),
  "hevc10.mp4": ("25", 1, "libx265", ("-pix_fmt", "yuv420p10le", *QUIET)),
  "mpeg2.mpg": ("25", 2, "mpeg2video", ()),
  "xvid.avi": ("25", 2, "mpeg4", ("-bf", "2")),
  "motion_jpeg.avi": ("25", 1, "mjpeg", ()),
  "prores.mov": ("25", 1, "prores_ks", ()),
  "vp8.webm": ("25", 4, "libvpx", ("-b:v", "50k", "-auto-alt-ref", "1", "-lag-in-frames", "16")),
  "vp9.webm": ("25", 1, "libvpx-vp9", ("-b:v", "100k", "-cpu-used", "8")),
  "flash.flv": ("25", 2, "flv", ()),
  "windows.wmv": ("25", 2, "wmv2", ()),
  "animation.gif": ("10", 2, "gif", ()),
  "animation.apng": ("10", 2, "apng", ("-plays", "0", "-f", "apng")),
  "raw.y4m": ("25", 1, "rawvideo", ("-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe")),
  "raw.h264": ("25", 2, "libx264", ("-pix_fmt", "yuv420p")),
}


@pytest.mark.parametrize("name", FILES)
def test_frames_agree_with_ffmpeg(media, make, name):
  rate, seconds, codec, options = FILES[name]
  path = media(name, *make.pattern(rate=rate, seconds=seconds), "-c:v", codec, *options)
  info, ours = read(path)
  theirs = make.reference(path, 64, 48)
  assert (info.width, info.height, info.fps) == (64, 48, Fraction(rate))
  assert info.frames == info.source_frames == len(ours) == len(theirs)
  assert info.seconds == pytest.approx(len(theirs) / float(Fraction(rate)))
  assert not info.is_variable_rate and not info.damage and not info.is_picture
  assert np.abs(ours.astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("matrix", TAGS)
@pytest.mark.parametrize("colour_range", ["tv", "pc"])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le", "yuv444p10le"])
def test_colours_agree_with_ffmpeg(media, make, matrix, colour_range, pix_fmt):
  name = f"{matrix}_{colour_range}_{pix_fmt}.mkv"
  options = converted(matrix, colour_range, pix_fmt)
  path = media(name, *make.pattern("66x50", 5, 0.4), "-c:v", "ffv1", *options)
  info, ours = read(path)
  difference = np.abs(ours.astype(int) - make.reference(path, 66, 50))
  assert (info.pix_fmt, info.colour_range) == (pix_fmt, colour_range)
  assert difference.max() <= 3 and difference.mean() < 0.1


@pytest.mark.parametrize("matrix", ["bt709", "bt601"])
def test_colours_agree_with_the_standard(make, tmp_path, matrix):
  """By hand from BT.709 and BT.601: Y'=150, Cb=80, Cr=40 of limited range."""
  raw = np.repeat(np.uint8([150, 80, 40]), 32 * 32).tobytes()
  (tmp_path / "raw").write_bytes(raw)
  source = ("-f", "rawvideo", "-pix_fmt", "yuv444p", "-s", "32x32", "-i", tmp_path / "raw")
  tags = (*TAGS[matrix], "-color_range", "tv")
  make.ffmpeg(*tags, *source, "-c:v", "libx264", "-qp", "0", *tags, tmp_path / "a.mp4")
  y, cb, cr = (150 - 16) / 219, (80 - 128) / 224, (40 - 128) / 224
  kr, kb = (0.2126, 0.0722) if matrix == "bt709" else (0.299, 0.114)
  red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
  expected = [red, (y - kr * red - kb * blue) / (1 - kr - kb), blue]
  expected = np.clip(np.array(expected) * 255, 0, 255)
  assert np.abs(read(tmp_path / "a.mp4")[1] - expected).max() <= 2


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("flip", [(), ("-display_hflip",), ("-display_vflip",)])
def test_rotation_agrees_with_ffmpeg(media, make, tmp_path, degrees, flip):
  stored = media("stored.mp4", *make.pattern(seconds=0.4), *make.X264)
  path = tmp_path / "turned.mp4"
  make.ffmpeg("-display_rotation", degrees, *flip, "-i", stored, "-c", "copy", path)
  info, ours = read(path)
  assert (info.width, info.height) == ((48, 64) if degrees % 180 else (64, 48))
  theirs = make.reference(path, info.width, info.height)
  difference = np.abs(ours.astype(int) - theirs)  # chroma is interpolated before or after turning
  assert difference.max() <= 8 and difference.mean() < 0.1
  assert bool(info.is_mirrored) == bool(flip)


def test_interlaced_frames_are_made_whole(media, make):
  path = media("interlaced.ts", *make.pattern("64x64", 50, 1), *INTERLACED)
  info, ours = read(path)
  assert info.is_interlaced and info.fps == 25
  whole = make.reference(path, 64, 64, "-vf", "bwdif=send_frame:auto:interlaced")
  combed = make.reference(path, 64, 64)
  assert len(ours) == len(whole) == 25
  assert np.abs(ours[1:].astype(int) - whole[1:]).max() <= 2
  assert np.abs(ours[1:].astype(int) - combed[1:]).mean() > 1


@pytest.mark.parametrize("name", [*FILES, "interlaced.ts"])
def test_every_frame_is_the_same_from_wherever_reading_starts(media, make, name):
  """For times that are believed, and for frames that are counted."""
  if name == "interlaced.ts":
    path = media(name, *make.pattern("64x64", 50, 1), *INTERLACED)
  else:
    rate, seconds, codec, options = FILES[name]
    path = media(name, *make.pattern(rate=rate, seconds=seconds), "-c:v", codec, *options)
  with open(path, "rb") as file:
    sure = probe(file)
    whole = list(frames(file, sure))
    believed = probe(file, trusts=True)
    assert believed.timing.frames == sure.timing.frames == len(whole)
    for info in (sure, believed):
      for k in range(info.frames):
        assert np.array_equal(next(frames(file, info, start=k)), whole[k]), (name, k)
      slices = frames(file, info, start=7, stop=12)
      assert np.array_equal(np.stack(list(slices)), np.stack(whole[7:12]))


def test_sizes_are_resized_as_ffmpeg_does(media, make):
  path = media("h264.mp4", *make.pattern(), "-c:v", "libx264", "-pix_fmt", "yuv420p")
  scale = "scale=30:22:flags=bicubic+accurate_rnd+full_chroma_int"
  theirs = make.reference(path, 30, 22, "-vf", scale)
  assert np.abs(read(path, size=(30, 22))[1].astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("size", [(65, 49), (1, 1), (3, 1)])
@pytest.mark.parametrize("pix_fmt", ["bgr0", "yuv444p"])
def test_odd_sides(make, tmp_path, size, pix_fmt):
  width, height = size
  picture = np.full((height, width, 3), (200, 100, 50), np.uint8)
  info, ours = read(make.write(tmp_path / "a.mkv", [picture] * 3, pix_fmt=pix_fmt))
  assert (info.width, info.height, len(ours)) == (width, height, 3)
  assert np.abs(ours - np.float32(picture)).max() <= (0 if pix_fmt == "bgr0" else 2)


def test_alpha_is_laid_over_black(make, tmp_path):
  picture = np.zeros((4, 4, 4), np.uint8)
  picture[:] = (200, 100, 50, 128)
  Image.fromarray(picture).save(tmp_path / "a.png")
  Image.fromarray(picture).save(tmp_path / "a.webp", lossless=True)
  make.ffmpeg("-i", tmp_path / "a.png", "-c:v", "ffv1", "-pix_fmt", "bgra", tmp_path / "a.mkv")
  for name in ("a.png", "a.webp", "a.mkv"):
    info, ours = read(tmp_path / name)
    assert info.has_alpha and np.array_equal(ours[0, 0, 0], (100, 50, 25)), name


def test_repeated_frames_are_one_array_that_cannot_be_changed(make, tmp_path):
  path = make.write(tmp_path / "a.mkv", make.greys(3), [0, 40, 200])
  with open(path, "rb") as file:
    found = list(frames(file))
  assert found[1] is found[2] and found[1] is not found[0]
  with pytest.raises(ValueError, match="read-only"):
    found[0][:] = 0


# ---- pictures and animations


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif"])
def test_a_picture_is_one_frame(tmp_path, name):
  Image.new("RGB", (33, 21), (10, 200, 90)).save(tmp_path / name)
  info, ours = read(tmp_path / name)
  assert info.is_picture and (info.frames, info.width, info.height) == (1, 33, 21)
  assert np.abs(ours[0] - np.float32((10, 200, 90))).max() <= 5


def test_a_photograph_is_set_upright(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # turn clockwise
  picture = np.zeros((16, 32, 3), np.uint8)
  picture[:, :16] = 255
  Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif)
  info, ours = read(tmp_path / "a.jpg")
  assert (info.width, info.height) == (16, 32)
  assert ours[0, :12].min() > 240 and ours[0, 20:].max() < 15


def test_grey_of_16_bits(tmp_path):
  Image.fromarray(np.full((8, 8), 0x8080, np.uint16)).save(tmp_path / "a.png")
  assert (read(tmp_path / "a.png")[1] == 0x80).all()


@pytest.mark.parametrize("name", ["a.webp", "a.gif"])
def test_animations_keep_their_times(tmp_path, name):
  pictures = [Image.new("RGB", (16, 16), (40 * i, 0, 0)) for i in range(4)]
  options = {"save_all": True, "append_images": pictures[1:], "duration": [100, 300, 100, 200]}
  pictures[0].save(tmp_path / name, **options, **({"lossless": True} if name == "a.webp" else {}))
  info, ours = read(tmp_path / name)
  assert (info.fps, info.frames, info.source_frames) == (10, 7, 4)
  assert [round(int(frame[0, 0, 0]) / 40) for frame in ours] == [0, 1, 1, 1, 2, 3, 3]
  assert info.is_variable_rate and not info.is_picture


# ---- bounds


def refusal(path, **limits) -> str:
  with open(path, "rb") as file, pytest.raises(Refused) as caught:
    list(frames(file, limits=Limits(**limits)))
  return caught.value.reason


def test_limits(media, make):
  path = media("h264.mp4", *make.pattern(), "-c:v", "libx264", "-pix_fmt", "yuv420p")
  assert refusal(path, max_side=63) == "too_large"
  assert refusal(path, max_pixels=64 * 48 - 1) == "too_large"
  assert refusal(path, max_seconds=1.9) == "too_long"
  assert refusal(path, max_frames=49) == "too_many_frames"
  with open(path, "rb") as file:
    info = probe(file, Limits(max_fps=24))
    assert (info.fps, info.frames) == (Fraction(25, 2), 25)
    assert probe(file, Limits(max_side=64, max_seconds=2, max_frames=50)).frames == 50


def test_a_size_that_changes_within_the_file_is_limited(make, tmp_path):
  """The second half of a stream is larger than allowed."""
  for name, size in (("a", "32x32"), ("b", "128x128")):
    make.ffmpeg(*make.pattern(size, seconds=0.4), *make.X264, tmp_path / f"{name}.h264")
  both = tmp_path / "both.h264"
  both.write_bytes((tmp_path / "a.h264").read_bytes() + (tmp_path / "b.h264").read_bytes())
  assert refusal(both) == "size_change"  # see test_looks
  assert refusal(both, max_side=100) in ("too_large", "damaged")


@pytest.mark.parametrize("seconds", [1, 4])
def test_memory_does_not_grow_with_the_file(functions, media, make, seconds):
  options = ("-c:v", "libx264", "-preset", "ultrafast", "-refs", "4", "-pix_fmt", "yuv420p")
  path = media(f"hd{seconds}.mp4", *make.pattern("1280x720", 10, seconds), *options)
  bound = HELD_FRAMES * 1280 * 720 * 3 // 2 + 4 * 1280 * 720 * 3 + HELD_BYTES
  grown, count = run_in_child(functions.peak_growth, path, seconds=60, memory_bytes=1 << 30)
  assert count == 10 * seconds
  assert grown < bound

"""Pictures and animations: what is shown is what other programs and the file's own parts say."""

import io
import sys
from fractions import Fraction

import numpy as np
import pytest
from heif_files import (
  ALPHA_PROPERTY,
  HEVC_ALPHA_PROPERTY,
  alpha_of,
  clap,
  coded,
  grid,
  imir,
  irot,
  write_heif,
)
from PIL import Image

from data_pipeline.curate import stills
from data_pipeline.curate.container import Limits
from data_pipeline.curate.media import frames, probe
from data_pipeline.curate.types import Refused

HEVC = ("-c:v", "libx265", "-tag:v", "hvc1", "-x265-params", "log-level=error:lossless=1")
CODECS = {
  "avif": ("-c:v", "libaom-av1", "-cpu-used", "8", "-crf", "10"),
  "heic": HEVC,
}
BRANDS = {"avif": "avif mif1 miaf", "heic": "heic mif1 miaf"}
FORMS = pytest.mark.parametrize("form", ["avif", "heic"])


def read(path):
  with open(path, "rb") as file:
    info = probe(file)
    shown = list(frames(file, info))
    for start in range(1, len(shown), 3):
      part = list(frames(file, info, start=start, stop=start + 4))
      assert np.array_equal(part, shown[start : start + 4])
    return info, np.stack(shown)


def refusal(path) -> Refused:
  with open(path, "rb") as file, pytest.raises(Refused) as caught:
    list(frames(file))
  return caught.value


def smooth(number: int) -> np.ndarray:
  """uint8 [64,64,3] without edges, at which decoders' chroma differs."""
  x, y = np.meshgrid(np.arange(64), np.arange(64))
  return np.uint8(np.stack([x + 40 * number, 250 - y - 40 * number, x + y + 60], -1))


@pytest.fixture(scope="module")
def tiles(make, tmp_path_factory):
  """Five coded pictures of each form, the last a grey one for alpha, and how ffmpeg shows them."""
  folder = tmp_path_factory.mktemp("tiles")
  made = {}
  for form, codec in CODECS.items():
    paths = [folder / f"{form}{number}.mp4" for number in range(5)]
    for number, path in enumerate(paths):
      (folder / "raw").write_bytes(smooth(number % 4).tobytes())
      raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x64", "-i", folder / "raw")
      look = ("-vf", "scale=out_range=pc,format=gray", "-color_range", "pc")
      grey = look if number == 4 else ("-pix_fmt", "yuv420p")
      make.ffmpeg(*raw, *grey, *codec, path)
    made[form] = paths, [make.reference(path, 64, 64)[0].astype(int) for path in paths]
  return made


@pytest.fixture
def mosaic(tiles, tmp_path):
  """`mosaic(form, *properties, width=, height=)`: a file of four tiles, and the whole picture."""

  def made(form, *properties, width=128, height=128):
    paths, shown = tiles[form]
    items = [coded(path, is_hidden=True) for path in paths[:4]]
    top = grid(2, 2, width, height, (2, 3, 4, 5), *properties)
    path = write_heif(tmp_path / f"a.{form}", [top, *items], brands=BRANDS[form])
    rows = [np.concatenate(shown[i : i + 2], axis=1) for i in (0, 2)]
    return path, np.concatenate(rows)[:height, :width]

  return made


def check(path, wanted):
  info, ours = read(path)
  assert info.is_picture and (info.width, info.height) == wanted.shape[1::-1]
  difference = np.abs(ours[0] - wanted)
  # at the edges of tiles chroma is interpolated, or not
  assert np.quantile(difference, 0.9) <= 4 and difference.mean() < 1.5


@FORMS
@pytest.mark.parametrize("width, height", [(128, 128), (118, 96)])
def test_tiles_make_one_picture(mosaic, form, width, height):
  path, whole = mosaic(form, width=width, height=height)
  check(path, whole)
  with open(path, "rb") as file:
    assert probe(file).pictures == 1


@FORMS
@pytest.mark.parametrize(
  "properties, change",
  [
    ((irot(1),), lambda x: np.rot90(x, 1)),
    ((irot(2),), lambda x: np.rot90(x, 2)),
    ((imir(0),), lambda x: x[::-1]),
    ((imir(1),), lambda x: x[:, ::-1]),
    ((irot(1), imir(1)), lambda x: np.rot90(x, 1)[:, ::-1]),
    ((clap(64, 32, -20, 8),), lambda x: x[52:84, 22:86]),
    ((clap(64, 32, -20, 8), irot(3)), lambda x: np.rot90(x[52:84, 22:86], 3)),
  ],
)
def test_what_turns_and_crops_a_picture_is_applied(mosaic, form, properties, change):
  path, whole = mosaic(form, *properties)
  check(path, change(whole))


@FORMS
def test_alpha_in_an_item_of_its_own_is_laid_over_black(tiles, tmp_path, form):
  paths, shown = tiles[form]
  alpha = ALPHA_PROPERTY if form == "avif" else HEVC_ALPHA_PROPERTY
  items = [coded(paths[0]), coded(paths[4], alpha, **alpha_of(1))]
  path = write_heif(tmp_path / "a", items, brands=BRANDS[form])
  check(path, shown[0] * shown[4].mean(-1, keepdims=True) / 255)
  with open(path, "rb") as file:
    info = probe(file)
  assert info.has_alpha and info.pictures == 1


@FORMS
def test_of_several_pictures_the_primary_one_is_taken(tiles, tmp_path, form):
  paths, shown = tiles[form]
  items = [coded(path) for path in paths[:3]]
  path = write_heif(tmp_path / "a", items, primary=2, brands=BRANDS[form])
  check(path, shown[1])
  with open(path, "rb") as file:
    assert probe(file).pictures == 3


@FORMS
def test_general_brands_are_read_by_what_they_are_compatible_with(tiles, tmp_path, form):
  paths, shown = tiles[form]
  brands = f"mif1 {form} miaf"
  check(write_heif(tmp_path / "a", [coded(paths[1])], brands=brands), shown[1])


def test_pictures_that_cannot_be_read_are_named(tiles, mosaic, make, tmp_path, monkeypatch):
  path = write_heif(tmp_path / "a", [coded(tiles["avif"][0][0])], brands="mif1 miaf")
  assert refusal(path).reason == "no_decoder"  # AV1 without the brand of AVIF
  for form in CODECS:
    path, _ = mosaic(form)
    data = path.read_bytes()
    path.write_bytes(data[: -len(data) // 3])
    found = refusal(path)
    assert found.reason == "damaged" and "0x" not in found.detail and "<" not in found.detail
  make.ffmpeg(*make.pattern(seconds=0.04), "-c:v", "libjxl", tmp_path / "a.jxl")
  assert str(refusal(tmp_path / "a.jxl")) == "no_decoder: JPEG XL"
  stills._register_heif.cache_clear()
  monkeypatch.setitem(sys.modules, "pi_heif", None)
  assert "pip install 'sora_jax[data]'" in str(refusal(mosaic("heic")[0]))


def test_every_cut_of_the_boxes_is_a_picture_or_a_reason(mosaic, tmp_path):
  path, _ = mosaic("avif", clap(64, 32, 0, 0), irot(1))
  data = path.read_bytes()
  for seed in range(60):
    rng = np.random.default_rng(seed)
    broken = bytearray(data)
    for place in rng.integers(0, 700, 3):  # the boxes
      broken[place] = rng.integers(256)
    (tmp_path / "b").write_bytes(broken[: rng.integers(20, len(data))] if seed % 2 else broken)
    with open(tmp_path / "b", "rb") as file:
      try:
        assert len(list(frames(file))) == 1
      except Refused as refused:
        assert refused.reason in ("damaged", "not_video", "no_decoder", "too_large", "no_video")


# ---- sequences


def test_a_sequence_of_avif_keeps_alpha_and_times(tmp_path):
  pictures = [np.full((64, 64, 4), (40 * i, 200 - 30 * i, 50, 255 - 40 * i)) for i in range(5)]
  images = [Image.fromarray(picture.astype(np.uint8)) for picture in pictures]
  options = dict(save_all=True, append_images=images[1:], quality=95, subsampling="4:4:4")
  images[0].save(tmp_path / "a.avif", duration=[100, 200, 100, 300, 100], **options)
  info, ours = read(tmp_path / "a.avif")
  assert (info.fps, info.frames, info.source_frames, info.has_alpha) == (10, 8, 5, True)
  for shown, number in zip(ours, [0, 1, 1, 2, 3, 3, 3, 4], strict=True):
    wanted = pictures[number][..., :3] * pictures[number][..., 3:] / 255
    assert np.abs(shown - wanted).max() <= 5


def test_sequences_agree_with_ffmpeg(make, tmp_path):
  forms = (("a.avif", CODECS["avif"], 1), ("b.mp4", (*HEVC, "-brand", "msf1"), 0))
  for name, codec, stream in forms:  # ffmpeg has an AVIF's still picture for a stream, too
    path = tmp_path / name
    make.ffmpeg(*make.pattern("64x64", 24, 0.5), "-pix_fmt", "yuv444p", *codec, path)
    info, ours = read(path)
    assert (info.fps, info.frames) == (24, 12)
    assert np.abs(ours.astype(int) - make.reference(path, 64, 64, "-map", f"0:{stream}")).max() <= 4


def test_alpha_in_a_track_of_its_own_is_refused(make, tmp_path):
  path = tmp_path / "a.mp4"
  both = (*make.pattern(seconds=0.4), "-map", "0", "-map", "0", "-pix_fmt", "yuv420p")
  make.ffmpeg(*both, *HEVC, "-brand", "hevc", path)
  assert read(path)[0].frames == 10
  data = path.read_bytes()
  place = data.rindex(b"vide", 0, data.index(b"VideoHandler", data.index(b"VideoHandler") + 1))
  path.write_bytes(data[:place] + b"auxv" + data[place + 4 :])
  assert refusal(path).reason == "alpha"


def test_an_animated_webp_is_disposed_and_laid_over_black(tmp_path):
  rng = np.random.default_rng(0)
  pictures = []
  for _ in range(4):
    picture = np.zeros((20, 30, 4), np.uint8)
    picture[rng.integers(10) :, rng.integers(15) :] = rng.integers(1, 256, 4)
    pictures.append(picture)
  images = [Image.fromarray(picture) for picture in pictures]
  images[0].save(
    tmp_path / "a.webp",
    save_all=True,
    append_images=images[1:],
    lossless=True,
    exact=True,
    duration=[50, 0, 10, 100],
  )
  info, ours = read(tmp_path / "a.webp")
  assert (info.fps, info.source_frames, info.dropped, info.has_alpha) == (10, 4, 0, True)
  starts = [(ms * 10 + 500) // 1000 for ms in (0, 50, 150, 250)]  # 100 ms for 10 ms and less
  for start, picture in zip(starts, pictures, strict=True):
    alpha = picture[..., 3:] / 255
    assert np.abs(ours[start] - picture[..., :3] * alpha).max() <= 1


@pytest.mark.parametrize("profile_bytes", [0, 400, 200_000])
def test_an_animated_png_is_one_whatever_stands_before(make, tmp_path, profile_bytes):
  pictures = [Image.new("RGB", (16, 16), (50 * i, 9, 9)) for i in range(5)]
  profile = np.random.default_rng(0).bytes(profile_bytes) or None
  path = tmp_path / "a.png"
  options = dict(save_all=True, append_images=pictures[1:], icc_profile=profile)
  pictures[0].save(path, duration=[100, 0, 10, 20, 100], **options)
  info, ours = read(path)
  assert (info.format, info.source_frames, info.dropped) == ("apng", 5, 0)
  assert info.frames == round(info.fps * Fraction(42, 100))  # 100 + 100 + 100 + 20 + 100 ms
  wanted = [int(picture.getpixel((0, 0))[0]) for picture in pictures]
  assert list(dict.fromkeys(ours[:, 0, 0, 0].tolist())) == wanted
  times = [np.flatnonzero(ours[:, 0, 0, 0] == value)[0] / info.fps for value in wanted]
  assert times == pytest.approx([0, 0.1, 0.2, 0.3, 0.32], abs=0.5 / float(info.fps))


def test_a_png_whose_first_picture_is_no_frame(make, tmp_path):
  pictures = [Image.new("RGB", (16, 16), (50 * i, 9, 9)) for i in range(4)]
  options = dict(save_all=True, append_images=pictures[1:], default_image=True)
  pictures[0].save(tmp_path / "a.png", duration=100, **options)
  info, ours = read(tmp_path / "a.png")
  assert info.frames == 3 and ours[:, 0, 0, 0].tolist() == [50, 100, 150]


def test_frames_of_png_are_blended_as_the_specification_says(tmp_path):
  rng = np.random.default_rng(1)
  pictures = [rng.integers(0, 256, (16, 16, 4), np.uint8) for _ in range(4)]
  images = [Image.fromarray(picture) for picture in pictures]
  images[0].save(
    tmp_path / "a.png", save_all=True, append_images=images[1:], duration=100, blend=1, disposal=0
  )
  canvas, wanted = images[0], [images[0]]
  for image in images[1:]:
    canvas = Image.alpha_composite(canvas, image)
    wanted.append(canvas)
  _, ours = read(tmp_path / "a.png")
  for shown, picture in zip(ours, map(np.asarray, wanted), strict=True):
    assert np.abs(shown - picture[..., :3] * (picture[..., 3:] / 255)).max() <= 3


# ---- other pictures


def test_a_stream_of_jpeg_pictures_is_a_video_and_a_photograph_with_a_preview_is_none(tmp_path):
  def picture(level, size=(32, 16), **options):
    data = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(data, "JPEG", **options)
    return data.getvalue()

  exif = Image.Exif()
  exif[0x010E] = "\xff\xd9\xff\xd8\xff"  # a description
  files = {
    "stream": picture(0) + picture(60) + picture(120),
    "stuffed": picture(0) + bytes(6) + picture(60) + bytes(3) + picture(120),
    "one": picture(60, exif=exif),
    "preview": picture(60) + picture(60, (16, 8)),
    "trailing": picture(60) + bytes(300),
  }
  found = {}
  for name, data in files.items():
    with io.BytesIO(data) as file:
      info = probe(file)
      found[name] = (info.is_picture, [int(f[0, 0, 0]) for f in frames(file, info)])
  assert found.pop("stream") == found.pop("stuffed") == (False, [0, 60, 120])
  assert set(map(str, found.values())) == {"(True, [60])"}
  with io.BytesIO() as file:  # several pictures with an index of them
    pictures = [Image.new("RGB", (32, 16), (9, 9, 9))] * 3
    pictures[0].save(file, "MPO", save_all=True, append_images=pictures[1:])
    assert probe(file).is_picture


def test_an_animation_of_too_many_pixels_is_a_bomb():
  with io.BytesIO() as file:
    picture = Image.new("RGB", (256, 256))
    others = [Image.new("RGB", (256, 256), (30 * i, 0, 0)) for i in range(1, 9)]
    picture.save(file, "WEBP", save_all=True, append_images=others, duration=100, lossless=True)
    assert probe(file).source_frames == 9
    with pytest.raises(Refused, match="more than 8 frames of 256x256") as caught:
      probe(file, Limits(free_pixels=256 * 256 * 8, pixels_per_byte=0.0))
    assert caught.value.reason == "bomb"


def test_jpeg_2000_is_read(tmp_path):
  picture = smooth(2)
  for name in ("a.jp2", "a.j2k"):
    Image.fromarray(picture).save(tmp_path / name)
    assert np.array_equal(read(tmp_path / name)[1][0], picture)


def test_of_pages_the_first_is_taken_and_the_others_are_told(tmp_path):
  pages = [Image.fromarray(smooth(number)) for number in range(3)]
  pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
  pages[0].save(tmp_path / "a.mpo", save_all=True, append_images=pages[1:], quality=95)
  for name in ("a.tif", "a.mpo"):
    info, ours = read(tmp_path / name)
    assert (info.pictures, info.frames, info.is_picture) == (3, 1, True)
    assert np.abs(ours[0].astype(int) - smooth(0)).mean() < 2


def test_previews_are_no_pages_and_never_the_picture(tmp_path):
  whole, small = Image.fromarray(smooth(0)), Image.fromarray(smooth(1)[:16, :16])
  for image, is_small in ((whole, 0), (small, 1)):
    image.encoderinfo = {"tiffinfo": {254: is_small}}
  whole.save(tmp_path / "a.tif", save_all=True, append_images=[small], tiffinfo={254: 0})
  with Image.open(tmp_path / "a.tif") as image:
    image.seek(1)
    assert image.tag_v2[254] == 1
  info, ours = read(tmp_path / "a.tif")
  assert info.pictures == 1 and np.array_equal(ours[0], smooth(0))
  small.save(tmp_path / "b.tif", save_all=True, append_images=[whole], tiffinfo={254: 1})
  assert refusal(tmp_path / "b.tif").reason == "no_decoder"
  (tmp_path / "c.cr2").write_bytes(b"II*\0\x10\0\0\0CR\x02\0" + (tmp_path / "a.tif").read_bytes())
  assert refusal(tmp_path / "c.cr2").reason == "no_decoder"


def test_channels_of_32_bits_are_refused(tmp_path):
  for kind in (np.float32, np.int32):
    Image.fromarray(np.full((8, 8), 0.5).astype(kind)).save(tmp_path / "a.tif")
    assert refusal(tmp_path / "a.tif").reason == "colours"


def test_colours_of_16_bits_agree_with_ffmpeg(make, tmp_path):
  for pixels in ("rgb48be", "rgba64be", "gray16be"):
    path = tmp_path / f"{pixels}.png"
    make.ffmpeg(*make.pattern(seconds=0.04), "-pix_fmt", pixels, "-frames:v", 1, path)
    assert np.abs(read(path)[1][0].astype(int) - make.reference(path, 64, 48)[0]).max() <= 2


def test_a_transparent_colour_is_laid_over_black(tmp_path):
  palette = Image.new("P", (8, 8), 1)
  palette.putpalette([10, 20, 30, 200, 100, 50])
  palette.save(tmp_path / "a.png", transparency=bytes([255, 128]))
  Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / "b.png", transparency=(200, 100, 50))
  for name, wanted in (("a.png", (100, 50, 25)), ("b.png", (0, 0, 0))):
    info, ours = read(tmp_path / name)
    assert info.has_alpha and np.array_equal(ours[0, 0, 0], wanted)


def test_grey_of_16_bits_is_set_upright_too(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # turn clockwise
  picture = np.zeros((16, 32), np.uint16)
  picture[:, :16] = 0xFFFF
  Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
  info, ours = read(tmp_path / "a.png")
  assert (info.width, info.height) == (16, 32)
  assert (ours[0, :16] == 255).all() and (ours[0, 16:] == 0).all()

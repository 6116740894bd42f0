"""Alpha of videos: laid over black wherever it lies, or the source is refused by name."""

from types import SimpleNamespace

import numpy as np
import pytest
from av.codec.codec import UnknownCodecError

from data_pipeline.curate import decoder
from data_pipeline.curate.media import frames, probe
from data_pipeline.curate.types import Refused

FADED = "format=rgba,geq=r='r(X,Y)':g='g(X,Y)':b='b(X,Y)':a='mod(4*X+10*N,256)'"
BESIDE = {
  "vp8.webm": ("libvpx", "-pix_fmt", "yuva420p", "-auto-alt-ref", 0, "-crf", 4, "-b:v", "2M"),
  "vp9.webm": ("libvpx-vp9", "-pix_fmt", "yuva420p", "-auto-alt-ref", 0, "-crf", 10),
  "vp9.mkv": ("libvpx-vp9", "-pix_fmt", "yuva420p", "-auto-alt-ref", 0, "-g", 4, "-b:v", "1M"),
}
WITHIN = {
  "prores.mov": ("prores_ks", "-pix_fmt", "yuva444p10le"),
  "animation.mov": ("qtrle", "-pix_fmt", "argb"),
  "png.mov": ("png", "-pix_fmt", "rgba"),
  "ffv1.mkv": ("ffv1", "-pix_fmt", "yuva420p"),
}


@pytest.fixture
def faded(media, make):
  def made(name, codec, *options):
    pattern = make.pattern(rate=10, seconds=1)
    return media(f"faded_{name}", *pattern, "-vf", FADED, "-c:v", codec, *options)

  return made


def read(path):
  with open(path, "rb") as file:
    info = probe(file)
    shown = list(frames(file, info))
    for start in (1, 6):
      assert np.array_equal(list(frames(file, info, start=start)), shown[start:])
    return info, np.stack(shown)


@pytest.mark.parametrize("name", [*BESIDE, *WITHIN])
def test_alpha_is_laid_over_black(faded, make, name):
  codec, *options = BESIDE.get(name) or WITHIN[name]
  path = faded(name, codec, *options)
  info, ours = read(path)
  assert info.has_alpha and (info.frames, info.fps) == (10, 10)
  with_alpha = ("-c:v", codec) if name in BESIDE else ()
  scale = ("-sws_flags", "bicubic+accurate_rnd+full_chroma_int", "-fps_mode", "passthrough")
  raw = make.ffmpeg(*with_alpha, "-i", path, *scale, "-f", "rawvideo", "-pix_fmt", "rgba", "-")
  theirs = np.frombuffer(raw, np.uint8).reshape(10, 48, 64, 4).astype(int)
  assert np.ptp(theirs[..., 3]) > 200
  assert np.abs(ours - theirs[..., :3] * theirs[..., 3:] / 255).max() <= 2


def test_without_libvpx_alpha_is_refused(faded, monkeypatch):
  def missing(name, mode):
    raise UnknownCodecError(name)

  codec, *options = BESIDE["vp9.webm"]
  path = faded("vp9.webm", codec, *options)
  monkeypatch.setattr(decoder, "Codec", missing)
  with open(path, "rb") as file, pytest.raises(Refused, match="alpha: alpha of vp9"):
    probe(file)


@pytest.mark.parametrize("name", ["a.mov", "a.mkv", "a.ts"])
@pytest.mark.parametrize("pixels", ["yuva420p", "yuv420p"])
def test_a_second_layer_of_hevc_is_refused(make, tmp_path, name, pixels):
  path = tmp_path / name
  quiet = ("-x265-params", "log-level=error")
  make.ffmpeg(*make.pattern(seconds=0.4), "-c:v", "libx265", *quiet, "-pix_fmt", pixels, path)
  if pixels == "yuv420p":
    assert read(path)[0].frames == 10
    return
  with open(path, "rb") as file, pytest.raises(Refused, match="alpha: .* second layer of HEVC"):
    probe(file)


@pytest.mark.parametrize("kept", range(25))
def test_a_setup_of_hevc_may_be_cut_anywhere(kept):
  setup = (b"\1" * 25)[:kept]

  class Packet(bytes):
    size = property(len)
    stream = SimpleNamespace(codec_context=SimpleNamespace(name="hevc", extradata=setup))

  decoder.refuse_layer(Packet(b"\0\0\1\x4e\1\4"))


def test_an_apng_with_a_named_profile_is_safe(functions, tmp_path):
  """PyAV frees the profile's name twice if its side data is looked at: the process would die."""
  from PIL import Image

  from data_pipeline.curate.child import run_in_child

  pictures = [Image.new("RGB", (16, 16), (50 * i, 9, 9)) for i in range(4)]
  options = dict(save_all=True, append_images=pictures[1:], icc_profile=bytes(3000))
  pictures[0].save(tmp_path / "a.png", duration=100, **options)
  _, count = run_in_child(
    functions.peak_growth, tmp_path / "a.png", seconds=60, memory_bytes=1 << 30
  )
  assert count == 4

"""Streams in which size, pixel aspect or orientation change: no frame is ever squeezed."""

import numpy as np
import pytest

from data_pipeline.curate.media import frames, parts, probe
from data_pipeline.curate.types import Refused

X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-pix_fmt", "yuv420p", "-g", "5")
TURNED = ("-bsf:v", "h264_metadata=display_orientation=insert:rotate=90")
PIECES = {
  "larger": (("64x48", ()), ("128x96", ())),
  "taller": (("64x48", ()), ("48x64", ())),
  "wider_pixels": (("64x48", ("-aspect", "4:3")), ("64x48", ("-aspect", "16:9"))),
  "turned": (("64x48", ()), ("64x48", TURNED)),
  "there_and_back": (("64x48", ()), ("96x48", ()), ("64x48", ())),
}


@pytest.fixture
def joined(make, tmp_path):
  """`joined(name, suffix)`: the paths of the pieces, and of the stream of them all."""

  def made(name, suffix):
    paths = [tmp_path / f"{number}.{suffix}" for number in range(len(PIECES[name]))]
    for piece, (size, options) in zip(paths, PIECES[name], strict=True):
      make.ffmpeg(*make.pattern(size, 25, 0.4), *X264, *options, piece)
    path = tmp_path / f"all.{suffix}"
    path.write_bytes(b"".join(piece.read_bytes() for piece in paths))
    if suffix == "ts":  # as one recording: counters and times go on
      (tmp_path / "list").write_text("".join(f"file {piece.name}\n" for piece in paths))
      make.ffmpeg("-f", "concat", "-i", tmp_path / "list", "-c", "copy", path)
    return paths, path

  return made


def read(path, **options):
  with open(path, "rb") as file:
    info = probe(file)
    return info, list(frames(file, info, **options))


# what ffmpeg turns has a frame without a time in MPEG-TS
BOTH = [(name, suffix) for name in PIECES for suffix in ("h264", "ts")]
BOTH.remove(("turned", "ts"))


@pytest.mark.parametrize("name, suffix", BOTH)
def test_both_sides_of_a_change_are_kept_as_they_are(joined, name, suffix):
  paths, path = joined(name, suffix)
  count = len(paths)
  check_parts(paths, path, count, trusts=False)
  check_parts(paths, path, count, trusts=True)


def check_parts(paths, path, count, trusts):
  with open(path, "rb") as file:
    info = probe(file, trusts=trusts)
    assert info.frames == 10 * count
    found = [
      (part, list(shown))
      for part, shown in parts(file, info, 0, info.frames, lambda p: (p.width, p.height))
    ]
    assert [len(shown) for _, shown in found] == [10] * count
    for number, ((part, shown), piece) in enumerate(zip(found, paths, strict=True)):
      alone, wanted = read(piece)
      assert (part.width, part.height) == (alone.width, alone.height)
      assert (part.rotation, part.pixel_aspect) == (alone.rotation, alone.pixel_aspect)
      assert np.array_equal(shown, wanted)
      start = 10 * number
      again = list(frames(file, part, start=start + 3, stop=start + 10))
      assert np.array_equal(again, wanted[3:])
      small = list(frames(file, part, start=start, stop=start + 10, size=(16, 12)))
      assert np.array_equal(small, list(read(piece, size=(16, 12))[1]))


@pytest.mark.parametrize("name", ["larger", "turned", "wider_pixels"])
def test_frames_end_where_they_change(joined, name):
  _, path = joined(name, "ts")
  with open(path, "rb") as file:
    info = probe(file)
    found = []
    with pytest.raises(Refused, match="size_change: frame 10"):
      for frame in frames(file, info):
        found.append(frame)
    assert len(found) == 10
    if name == "larger":
      with pytest.raises(Refused, match="size_change: frame 12"):
        next(frames(file, info, start=12))


def test_streams_that_change_all_the_time_are_cut_off(joined, monkeypatch):
  from data_pipeline.curate import looks

  monkeypatch.setattr(looks, "_MOST_PARTS", 2)
  _, path = joined("there_and_back", "ts")
  with open(path, "rb") as file:
    info, count = probe(file), 0
    with pytest.raises(Refused, match="size_change"):
      for _, shown in parts(file, info, 0, info.frames, lambda part: (16, 12)):
        count += len(list(shown))
  assert count == 20

"""Files that were trimmed, joined or damaged: what is in them, against frames that bear numbers."""

import io
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.curate.container import Limits
from data_pipeline.curate.cut import cut_source
from data_pipeline.curate.decode import NO_TIME, Misread
from data_pipeline.curate.frame_index import find_whole
from data_pipeline.curate.frame_times import settle
from data_pipeline.curate.media import frames, probe
from data_pipeline.curate.settings import read_settings
from data_pipeline.curate.sources import find_sources
from data_pipeline.curate.types import Refused
from experiments import curate_default

H264 = ("-c:v", "libx264", "-preset", "fast", "-pix_fmt", "yuv420p", "-bf", "2")
MPEG2 = ("-c:v", "mpeg2video", "-q:v", "3", "-bf", "2")
VP8 = ("-c:v", "libvpx", "-b:v", "500k", "-deadline", "realtime")
VP9 = ("-c:v", "libvpx-vp9", "-b:v", "500k", "-deadline", "realtime", "-cpu-used", "8")
HEVC = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:no-open-gop=1")
CODECS = {"mp4": H264, "mkv": H264, "ts": H264, "avi": H264, "flv": H264, "asf": H264, "h264": H264}
CODECS |= {"mpg": MPEG2, "webm": VP8, "ogv": ("-c:v", "libtheora", "-q:v", "6")}
CODECS |= {"xvid.avi": ("-c:v", "mpeg4", "-vtag", "XVID", "-q:v", "2", "-bf", "2")}
CODECS |= {"xvid.asf": ("-c:v", "mpeg4", "-q:v", "2", "-bf", "2"), "hevc.mp4": HEVC}
CODECS |= {"vp9.mp4": VP9, "mjpeg.avi": ("-c:v", "mjpeg", "-q:v", "3")}
WMV = ("-c:v", "wmv2", "-q:v", "2")
CODECS |= {"wmv.asf": WMV}


@pytest.fixture(scope="session")
def film(make, tmp_path_factory):
  """`film(name, count, first, group)`: a video whose frames bear `count` numbers from `first`."""
  folder = tmp_path_factory.mktemp("numbered")

  def made(name, count=100, first=0, group=25, options=()):
    path = folder / f"{count}_{first}_{group}_{len(options)}.{name}"
    if not path.exists():
      codec = CODECS.get(name, CODECS[name.rpartition(".")[2]])
      make.numbered(path, count, first, *codec, "-g", group, *options)
    return path

  return made


def parts_of(make, path, *, trusts=False, limits=None):
  """Runs of numbers in each part of a file, its losses, and what reading said of it."""
  limits = limits or Limits()
  with open(path, "rb") as file:
    info = probe(file, limits, trusts=trusts)
    numbers = [
      make.read_numbers(list(frames(file, info, start=a, stop=b, limits=limits)))
      for a, b in info.timing.parts
    ]
  return [make.runs(found) for found in numbers], info


def starts_agree(path, rng, tries=12):
  """Checks that a frame is the same from wherever reading starts."""
  with open(path, "rb") as file:
    info = probe(file)
    whole = {}
    for a, b in info.timing.parts:
      whole |= dict(enumerate(frames(file, info, start=a, stop=b), a))
    for k in rng.choice(list(whole), min(tries, len(whole)), replace=False).tolist():
      assert np.array_equal(next(frames(file, info, start=k)), whole[k]), k


# ---- trimmed, or edited without encoding


@pytest.mark.parametrize("seconds, group", [(1.4, 30), (0.52, 25), (2.0, 12), (3.24, 100)])
@pytest.mark.parametrize("name", ["mp4", "mkv", "ts"])
def test_trimmed_files_show_what_ffmpeg_shows(make, film, tmp_path, name, seconds, group):
  path = tmp_path / f"trimmed.{name}"
  make.ffmpeg("-ss", seconds, "-i", film("mp4", 100, 0, group), "-c", "copy", path)
  theirs = make.runs(make.read_numbers(make.reference(path, 64, 48)))
  for trusts in (True, False):
    ours, info = parts_of(make, path, trusts=trusts)
    assert ours == [theirs] and not info.timing.losses
  starts_agree(path, np.random.default_rng(0), 6)


def with_edits(data: bytes, edits: list[tuple[int, int]]) -> bytes:
  """An MP4 whose only edit list is replaced by one of (frames, first frame) at 25 a second.

  The new list is as long as the old box and a free box behind it allow: moov has to be last.
  """
  at = data.index(b"edts") - 4
  size = struct.unpack(">I", data[at : at + 4])[0]
  entries = b"".join(
    struct.pack(">IiI", 40 * count, 512 * first + 1024, 0x10000) for count, first in edits
  )
  box = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
  box = struct.pack(">I4s", 8 + len(box), b"edts") + box
  grown = len(box) - size
  data = data[:at] + box + data[at + size :]
  for name in (b"moov", b"trak"):
    place = data.index(name) - 4
    length = struct.unpack(">I", data[place : place + 4])[0]
    data = data[:place] + struct.pack(">I", length + grown) + data[place + 4 :]
  return data


@pytest.mark.parametrize("edits", [[(30, 10), (30, 60)], [(20, 55), (25, 5)], [(40, 31)]])
def test_edit_lists_of_several_pieces(make, film, tmp_path, edits):
  path = tmp_path / "edited.mp4"
  path.write_bytes(with_edits(film("mp4").read_bytes(), edits))
  theirs = make.read_numbers(make.reference(path, 64, 48))
  assert make.runs(theirs) == [(first, first + count - 1) for count, first in edits]
  ours, info = parts_of(make, path)
  assert sum(ours, []) == make.runs(theirs) and not info.timing.losses
  starts_agree(path, np.random.default_rng(0))


# ---- without presentation times


@pytest.mark.parametrize("group", [12, 30])
@pytest.mark.parametrize("name", ["avi", "asf", "xvid.avi", "xvid.asf", "wmv.asf", "h264"])
def test_frames_without_presentation_times_come_in_order(make, film, name, group):
  path = film(name, 60, 0, group)
  ours, info = parts_of(make, path)
  assert ours == [[(0, 59)]] and (info.fps, info.frames) == (25, 60)
  starts_agree(path, np.random.default_rng(0))
  try:
    assert parts_of(make, path, trusts=True)[0] == [[(0, 59)]]
  except Misread:
    assert name in ("avi", "asf")  # whose times are invented: curation then reads them anew


# ---- joined byte by byte


@pytest.mark.parametrize("name", ["ts", "mpg", "ogv", "avi", "h264"])
def test_joined_recordings_are_all_there(make, film, tmp_path, name):
  path = tmp_path / f"joined.{name}"
  path.write_bytes(b"".join(film(name, 40, 40 * i, 12).read_bytes() for i in range(3)))
  ours, info = parts_of(make, path)
  assert sum(ours, []) in ([(0, 119)], [(0, 39), (40, 79), (80, 119)])
  assert info.frames == 120 and not info.timing.losses
  starts_agree(path, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["mp4", "flv", "asf"])
def test_a_second_file_that_is_not_read_is_told(make, film, tmp_path, name):
  path = tmp_path / f"joined.{name}"
  first = film(name, 40, 0, 12).read_bytes()
  path.write_bytes(first + film(name, 40, 40, 12).read_bytes())
  ours, info = parts_of(make, path)
  assert ours == [[(0, 39)]]
  (loss,) = info.timing.losses
  assert loss[:3] == (40, None, "unread") and f"at byte {len(first)}:" in loss.detail


@pytest.mark.parametrize("name", ["mkv", "webm"])
def test_of_joined_matroska_files_two_are_read(make, film, tmp_path, name):
  path = tmp_path / f"joined.{name}"
  pieces = [film(name, 40, 40 * i, 12).read_bytes() for i in range(3)]
  path.write_bytes(pieces[0] + pieces[1])
  ours, info = parts_of(make, path)
  assert sum(ours, []) == [(0, 39), (40, 79)] and not info.timing.losses
  path.write_bytes(b"".join(pieces))
  ours, info = parts_of(make, path)
  assert sum(ours, []) == [(0, 39), (40, 79)]
  assert [loss[:3] for loss in info.timing.losses] == [(80, None, "unread")]


# ---- a hole in the middle


def punch(data: bytes, start: float, stop: float) -> bytes:
  a, b = int(start * len(data)), int(stop * len(data))
  return data[:a] + bytes(b - a) + data[b:]


@pytest.mark.parametrize("place", [0.45, 0.61])
@pytest.mark.parametrize("name", ["mp4", "mkv", "ts", "mpg", "webm", "flv", "hevc.mp4", "vp9.mp4"])
def test_both_sides_of_a_hole_are_kept_and_nothing_is_frozen(make, film, tmp_path, name, place):
  path = tmp_path / f"hole.{name}"
  path.write_bytes(punch(film(name, 200, 0, 20).read_bytes(), place, place + 0.08))
  ours, info = parts_of(make, path)
  runs = [run for part in ours for run in part]
  assert all(len(part) == 1 for part in ours), "a frame is frozen, or out of place"
  assert runs[0][0] == 0 and runs[-1][1] == 199
  kept = sum(last - first + 1 for first, last in runs)
  assert kept >= 200 * 0.92 - 60  # the hole, and to the next key frame or cluster
  assert {loss.reason for loss in info.timing.losses} == {"damaged"}
  lost = sum(loss.stop - loss.start for loss in info.timing.losses)
  assert kept + lost == info.frames == 200
  starts_agree(path, np.random.default_rng(0), 6)


@pytest.mark.parametrize("name", ["mkv", "ts", "mpg", "ogv", "flv", "avi", "webm"])
def test_what_lies_behind_many_zeros_is_found(make, film, tmp_path, name):
  """More than FFmpeg's demuxers of transport streams and Ogg go through by themselves."""
  path, data = tmp_path / f"hole.{name}", film(name, 200, 0, 20).read_bytes()
  place = int(0.45 * len(data))
  path.write_bytes(data[:place] + bytes(300_000) + data[place:])
  ours, info = parts_of(make, path)
  runs = [run for part in ours for run in part]
  assert runs[0][0] == 0 and runs[-1][1] == 199
  assert {loss.reason for loss in info.timing.losses} == {"damaged"}


def test_motion_jpeg_without_end_marks_is_whole(make, film, tmp_path):
  """As some cameras write it; FFmpeg complains of each picture, and shows all."""
  data, path = bytearray(film("mjpeg.avi", 40).read_bytes()), tmp_path / "endless.avi"
  place = data.index(b"movi") + 4
  while data[place : place + 4] == b"00dc":
    end = place + 8 + int.from_bytes(data[place + 4 : place + 8], "little")
    mark = data.rindex(b"\xff\xd9", place, end)
    data[mark:end] = bytes(end - mark)
    place = end + end % 2
  path.write_bytes(data)
  ours, info = parts_of(make, path)
  assert ours == [[(0, 39)]] and not info.timing.losses


@pytest.mark.parametrize("name, codec", [("avi", "mpeg4"), ("mkv", "libx264"), ("webm", "libvpx")])
@pytest.mark.parametrize("count", [1, 3])
def test_slow_videos_are_not_truncated(make, tmp_path, name, codec, count):
  """Their last frame is a large share of what the header says."""
  path = tmp_path / f"slow.{name}"
  make.ffmpeg(*make.pattern(rate="0.2", seconds=5 * count), "-c:v", codec, path)
  with open(path, "rb") as file:
    info = probe(file)
  assert (info.frames, info.declared_frames, info.damage) == (count, count, "")


@pytest.mark.parametrize("name", ["avi", "h264", "mjpeg.avi", "ogv"])
def test_holes_in_files_without_times_of_their_own(make, film, tmp_path, name):
  path = tmp_path / f"hole.{name}"
  path.write_bytes(punch(film(name, 200, 0, 20).read_bytes(), 0.5, 0.58))
  ours, info = parts_of(make, path)
  assert all(len(part) == 1 for part in ours)
  runs = [part[0] for part in ours if part[0][1] > part[0][0]]
  assert runs[0][0] == 0 and runs[-1][1] == 199 and info.timing.losses
  starts_agree(path, np.random.default_rng(0), 6)


def test_what_follows_a_damaged_page_of_ogg_is_not_believed(make, film, tmp_path):
  """Its last group of pictures is hit: nothing whole follows, and no time leaps."""
  path = tmp_path / "hole.ogv"
  path.write_bytes(punch(film("ogv", 240, 0, 50).read_bytes(), 0.82, 0.87))
  ours, info = parts_of(make, path)
  assert [len(part) for part in ours] == [1] and ours[0][0][0] == 0
  assert ours[0][0][1] < 200 and info.timing.losses[-1].reason == "damaged"


def test_a_clip_never_spans_a_hole(make, film, tmp_path):
  """The whole way: rows and clips of a file with a hole, and of the same film that is whole."""
  folder = tmp_path / "in"
  folder.mkdir()
  (folder / "hole.mkv").write_bytes(punch(film("mkv", 200, 0, 20).read_bytes(), 0.5, 0.58))
  (source,) = find_sources(str(folder))
  config = curate_default.get_config("debug").curate
  config.windows.update(min_seconds=0.2, trim_seconds=0.0)
  summary = cut_source(source, read_settings(config.to_dict()), tmp_path / "spools")
  (row,) = [row for row in summary["rejects"] if row["reason"] == "damaged"]
  spans = [(clip["start_frame"], clip["start_frame"] + clip["frames"]) for clip in summary["clips"]]
  assert 80 < row["start_frame"] < row["end_frame"] < 150
  assert any(stop <= row["start_frame"] for _, stop in spans)
  assert any(start >= row["end_frame"] for start, _ in spans)
  assert all(stop <= row["start_frame"] or start >= row["end_frame"] for start, stop in spans)


STUFFED = {"ts": H264, "3000k.ts": (*H264, "-muxrate", "3000k"), "asf": WMV}
STUFFED |= {"500k.ts": (*H264, "-muxrate", "500k"), "mkv": H264, "flv": H264, "m2ts": H264}


@pytest.mark.parametrize("chosen", ["not(eq(mod(n,20),7))", "lt(n,40)+not(mod(n,20))+gt(n,120)"])
@pytest.mark.parametrize("name", STUFFED)
def test_varying_rates_are_no_holes(make, film, tmp_path, name, chosen):
  """Whatever the container holds besides: tables, clocks, null packets, the rest of a packet."""
  path, chosen = tmp_path / f"a.{name}", ("-vf", f"select='{chosen}'", "-fps_mode", "passthrough")
  make.ffmpeg("-i", film("mp4", 150), *chosen, *STUFFED[name], "-g", 25, path)
  theirs = make.read_numbers(make.reference(path, 64, 48))
  for trusts in (True, False):
    with open(path, "rb") as file:
      info = probe(file, Limits(max_held_seconds=2), trusts=trusts)
      ours = make.read_numbers(list(frames(file, info)))
    assert not info.timing.losses and list(dict.fromkeys(ours)) == theirs


# ---- bombs


def test_a_file_that_unpacks_beyond_all_measure_is_refused(tmp_path):
  """A GIF of 3,000 empty frames of 2048x2048 in 60 kB."""
  frame = b"\x21\xf9\x04\x00\x04\x00\x00\x00" + b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\x00"
  screen = b"GIF89a" + struct.pack("<HHBBB", 2048, 2048, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
  data = screen + frame * 3000 + b";"
  with pytest.raises(Refused, match="2048x2048 pixels in") as caught:
    probe(io.BytesIO(data), Limits(), trusts=True)
  assert caught.value.reason == "bomb"
  assert probe(io.BytesIO(screen + frame * 20 + b";")).source_frames == 20


# ---- the rules themselves


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_invented_times_are_sorted(data):
  """Times in decoding order, of pictures that a decoder reorders by up to two places."""
  count = data.draw(st.integers(1, 60))
  order = np.arange(count)
  for place in data.draw(st.lists(st.integers(0, max(0, count - 3)), max_size=20)):
    if len(set(order[place : place + 3] - order[place : place + 3].min())) == 3:
      order[place : place + 3] = np.sort(order[place : place + 3])[[2, 0, 1][: count - place]]
  stamps, _, seams = settle(40 * order, 10**6)
  assert stamps.tolist() == (40 * np.arange(count)).tolist() and not seams


def test_invented_times_of_which_some_are_told_twice():
  """As FFmpeg writes MPEG-2 without times into MP4."""
  times = 3000 * np.array([1, 2, 1, 4, 3, 6, 5, 8, 7, *range(9, 40)])
  stamps, _, seams = settle(times, 10**6)
  assert stamps.tolist() == (3000 * np.arange(40)).tolist() and not seams


@settings(max_examples=100, deadline=None)
@example([(0, 40), (1435, 40)])  # whose times overlap by less than a decoder reorders
@given(
  st.lists(st.tuples(st.integers(-(10**6), 10**6), st.integers(40, 80)), min_size=1, max_size=5)
)
def test_recordings_are_laid_behind_each_other(pieces):
  times = np.concatenate([start + 40 * np.arange(count) for start, count in pieces])
  stamps, shifts, seams = settle(times, 1500)
  assert (np.diff(stamps) > 0).all() and np.array_equal(stamps, times + shifts)
  ends = np.cumsum([count for _, count in pieces])[:-1].tolist()
  jumps = [end for end in ends if not 0 < times[end] - times[end - 1] <= 1500]
  assert seams == jumps
  assert all(stamps[seam] - stamps[seam - 1] == 40 for seam in seams)


def test_few_missing_times_are_filled():
  times = np.array([0, 40, NO_TIME, 120, 160])
  assert settle(times, 1000)[0].tolist() == [0, 40, 80, 120, 160]


def test_times_that_leap_again_and_again_are_refused():
  times = np.array([10**6 * (i // 3) + 40 * i for i in range(60)])
  with pytest.raises(Refused, match="times leap 19 times in 60 frames"):
    settle(times, 1500)


def test_recordings_whose_times_lie_beyond_all_numbers_are_refused():
  first = -(2**63) + 10
  times = np.array([*range(0, 400, 40), *range(first, first + 400, 40)], np.int64)
  with pytest.raises(Refused) as caught:
    settle(times, 1500)
  assert caught.value.reason == "broken_timestamps"


def test_what_refers_to_a_damaged_packet_is_not_whole():
  """Two groups of I P B B; shown in the order of times. The second P is damaged."""
  packet = np.array([0, 2, 3, 1, 6, 7, 4, 9, 10, 8, 5])  # 4: a key frame with two leading frames
  is_key = np.isin(packet, [0, 4])

  def whole(faults, hidden=(), leading=()):
    given = (np.array(numbers, int) for numbers in (faults, hidden, leading))
    return packet[find_whole(packet, is_key, *given)].tolist()

  assert whole([]) == packet.tolist()
  assert whole([8]) == [0, 2, 3, 1, 6, 7, 4, 5]
  assert whole([3]) == [0, 2, 1, 4, 9, 10, 8, 5]  # what leads the next key frame refers to it
  assert whole([0]) == [4, 9, 10, 8, 5]
  assert whole([6], leading=[6]) == [0, 2, 3, 1, 4, 9, 10, 8, 5]
  assert whole([0], hidden=[1]) == [2, 3, 1, 6, 7, 4, 9, 10, 8, 5]

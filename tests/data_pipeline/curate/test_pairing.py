"""Whose captions a file beside videos holds, in folders and in archives of any order."""

import io
import json
import tarfile
import time

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.curate import pairing
from data_pipeline.curate.notes import Notes
from data_pipeline.curate.sources import find_sources
from data_pipeline.curate.types import Reject, Source
from data_pipeline.errors import BadInput


def write_tar(path, names, mode="w"):
  """An archive in which every caption file says its own name."""
  with tarfile.open(path, mode) as tar:
    for name in names:
      data = said_by(name).encode()
      member = tarfile.TarInfo(name)
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  return path


def said_by(name):
  return json.dumps([name]) if name.lower().endswith(".json") else name


def look(given, notes=None):
  """({name: captions}, {name: reason}), names without that of the archive."""
  found = list(find_sources(str(given), notes=notes))
  last = {one: one.name.rpartition("!")[2] for one in found if isinstance(one, Source)}
  rejects = {one.source.rpartition("!")[2]: one.reason for one in found if isinstance(one, Reject)}
  return {name: list(one.captions) for one, name in last.items()}, rejects


# videos, caption files -> captions of each video, caption files that are alone
CASES = [
  (["clip.v1.mp4", "clip.v2.mp4"], ["clip.v1.txt", "clip.v2.txt"], [[0], [1]]),
  (["a.mp4", "b.mp4"], ["a.mp4.txt", "b.TXT", "a.caption", "b.Json"], [[0, 2], [1, 3]]),
  (["a.MP4"], ["a.en.txt", "a.json", "a.cap"], [[0, 1, 2]]),
  (["x.y.mp4"], ["x.txt"], [[0]]),
  (["a.mp4", "a.seg.mp4"], ["a.seg.txt", "a.txt"], [[1], [0]]),
  (["a.mp4", "a.seg.mp4"], ["a.v3.txt"], [[], []]),
  (["a.webm", "a.jpg"], ["a.txt"], [[0], [0]]),
  (["d/a.mp4"], ["a.txt", "e/a.txt", "d/b.txt"], [[]]),
]


@pytest.mark.parametrize("videos, cars, wanted", CASES)
@pytest.mark.parametrize("where", ["folder", "tar", "tar.gz"])
def test_captions_go_to_the_video_of_their_name(fill, tmp_path, where, videos, cars, wanted):
  if where == "folder":
    fill(tmp_path, {name: said_by(name) for name in videos + cars})
    sources, rejects = look(tmp_path)
  else:
    path = write_tar(tmp_path / f"s.{where}", videos + cars, "w:gz" if "gz" in where else "w")
    sources, rejects = look(path)
  assert sources == {
    video: [cars[i] for i in said] for video, said in zip(videos, wanted, strict=True)
  }
  alone = set(range(len(cars))) - {i for said in wanted for i in said}
  assert rejects == {cars[i]: "stray_captions" for i in alone}


@pytest.mark.parametrize("where", ["folder", "tar"])
def test_captions_that_may_be_of_two_videos_are_bad_input(fill, tmp_path, where):
  names = ["x.v1.mp4", "x.v2.mp4", "x.txt"]
  if where == "folder":
    fill(tmp_path, {name: said_by(name) for name in names})
  else:
    write_tar(tmp_path / "s.tar", names)
  with pytest.raises(BadInput, match=r"in \S*x.txt may be of \S*x.v1 or \S*x.v2. Give each video"):
    look(tmp_path)


def test_webdataset_members_of_one_key_belong_together(tmp_path):
  conventional = ["k1.rgb.mp4", "k1.caption.txt", "k2.rgb.mp4", "k2.caption.txt", "k2.cls"]
  sources, rejects = look(write_tar(tmp_path / "a.tar", conventional))
  assert sources == {"k1.rgb.mp4": ["k1.caption.txt"], "k2.rgb.mp4": ["k2.caption.txt"]}
  assert not rejects
  sources, rejects = look(write_tar(tmp_path / "b.tar", [*conventional, "k2.depth.mp4"]))
  assert sources == {"k1.rgb.mp4": [], "k2.rgb.mp4": [], "k2.depth.mp4": []}
  assert rejects == {"k1.caption.txt": "stray_captions", "k2.caption.txt": "stray_captions"}
  sources, rejects = look(write_tar(tmp_path / "c.tar", ["k.v1.mp4", "k.v1.txt", "k.v2.txt"]))
  assert sources == {"k.v1.mp4": ["k.v1.txt"]} and rejects == {"k.v2.txt": "stray_captions"}


NAMES = [f"d{i % 2}/{stem}" for i in range(3) for stem in ("a.b", "a.c.x", f"k{i}")]
MEMBERS = [f"{name}{ending}" for name in sorted(set(NAMES)) for ending in (".mp4", ".json", ".txt")]


@given(order=st.permutations(MEMBERS))
@settings(max_examples=40, deadline=None)
def test_the_order_of_an_archive_makes_no_difference(tmp_path_factory, order):
  path = write_tar(tmp_path_factory.mktemp("tar") / "s.tar", order)
  sources, rejects = look(path)
  assert not rejects and len(sources) == len(MEMBERS) // 3
  assert all(said == [f"{n[:-4]}.txt", f"{n[:-4]}.json"] for n, said in sources.items())


def test_what_operating_systems_leave_is_neither_video_nor_caption_and_told(fill, tmp_path):
  junk = ["._a.mp4", "._a.txt", ".DS_Store", "Thumbs.db", "__MACOSX/._a.mp4", "__MACOSX/b.mp4"]
  fill(tmp_path / "in", {name: said_by(name) for name in ("a.mp4", "a.txt", *junk)})
  write_tar(tmp_path / "in.tar", ["a.mp4", *junk, "a.txt"])
  for given_, count in ((tmp_path / "in", 5), (tmp_path / "in.tar", 6), (tmp_path / "in/*", 4)):
    notes = Notes()
    sources, rejects = look(given_, notes)
    assert sources == {"a.mp4": ["a.txt"]} and not rejects
    (line,) = notes.lines()
    assert line.startswith(f"{count} files that operating systems leave behind") and "._a" in line


def test_captions_in_archives_that_cannot_be_read_are_told(tmp_path, fill):
  with tarfile.open(tmp_path / "s.tar", "w") as tar:
    for name, data in [
      ("a.txt", b"\xff"),
      ("a.mp4", b"1"),
      ("b.mp4", b"2"),
      ("b.txt", b"x" * 2**21),
    ]:
      member = tarfile.TarInfo(name)
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  sources, rejects = look(tmp_path / "s.tar")
  assert not sources and rejects == {"a.mp4": "bad_side_car", "b.mp4": "too_large"}
  write_tar(tmp_path / "t.TAR", ["a.mp4", "a.txt", "a.txt", "metadata.csv"])
  sources, rejects = look(tmp_path / "t.TAR")
  assert sources == {"a.mp4": ["a.txt"]}
  assert rejects == {"a.txt": "listed_twice", "metadata.csv": "unread_list"}


# ---- side-cars


@pytest.mark.parametrize(
  "car, captions, spans",
  [
    ({"text": "one", "title": "no"}, ["one"], []),
    ({"caption": "one", "start_time": 3, "startTime": 4}, ["one"], []),
    ({"cap": ["one", "two"], "start": 3.5, "end": 9}, ["one", "two"], []),  # of the whole film
    ({"caption": "one", "clips": [[0, 4]], "timestamp": [["0:01", "0:02"]]}, ["one"], []),
    ({"start": [0, 2], "end": [2, 5], "text": ["x", ""]}, [], [(0, 2, ("x",))]),
    (
      {"timestamps": [[0, 2], [2, 3]], "sentences": ["x", "y"]},
      [],
      [(0, 2, ("x",)), (2, 3, ("y",))],
    ),
    ([{"start": 0, "end": "0:01.5", "text": "x"}], [], [(0, 1.5, ("x",))]),
    ([{"text": "x"}, {"text": "y"}], ["x", "y"], []),
    ("[not a list]", ["[not a list]"], []),
  ],
)
def test_objects_beside_a_video(fill, tmp_path, car, captions, spans):
  fill(tmp_path, {"a.mp4": "1", "a.json": json.dumps(car)})
  (source,) = find_sources(str(tmp_path))
  assert isinstance(source, Source), source
  assert list(source.captions) == captions and [tuple(span) for span in source.spans] == spans


def test_keys_of_side_cars_that_are_not_used_are_told(fill, tmp_path):
  fill(tmp_path, {"a.mp4": "1", "a.json": '{"caption": "x", "title": "y", "views": 3}'})
  notes = Notes()
  look(tmp_path, notes)
  assert notes.lines() == ["2 keys of JSON files that are not used (title, views)"]


def test_captions_beside_files_that_a_glob_or_a_name_finds(fill, tmp_path, monkeypatch):
  files = ("a.mp4", "a.txt", "d/b.mp4", "d/b.json", "c.txt")
  fill(tmp_path, {name: said_by(name) for name in files})
  assert look(tmp_path / "a.mp4") == ({"a.mp4": ["a.txt"]}, {})
  everything = {"a.mp4": ["a.txt"], "d/b.mp4": ["d/b.json"]}, {}
  assert look(tmp_path / "**/*.mp4") == everything
  monkeypatch.chdir(tmp_path)
  assert look("**/*.mp4") == look("./**/*.mp4") == everything
  assert look("a.mp4") == look("*.mp4") == ({"a.mp4": ["a.txt"]}, {})


# ---- VideoFolder


def test_videofolder_of_a_bucket(found):
  fs = fsspec.filesystem("memory")
  rows = b"file_name,text\n./a.mp4,one\nd/b.mp4,two\n"
  fs.pipe({"/in/a.mp4": b"1", "/in/d/b.mp4": b"22", "/in/metadata.csv": rows})
  try:
    for given_ in ("memory://in", "memory://in/metadata.csv", "memory://in/**/*.mp4"):
      sources, rejects = found(given_)
      said = [source.captions for source in sources.values()]
      assert said == [("one",), ("two",)] and not rejects
  finally:
    fs.rm("/in", recursive=True)


def test_videofolder(fill, tmp_path, monkeypatch):
  rows = "file_name,text\na.mp4,one\nsub/b.mp4,two\ngone.mp4,three\n"
  jsonl = '{"file_name": "c.mp4", "captions": ["x", "y"]}\n'
  fill(tmp_path, {"t/a.mp4": "1", "t/sub/b.mp4": "2", "t/metadata.csv": rows, "t/a.txt": "zero"})
  fill(tmp_path, {"u/c.mp4": "3", "u/metadata.jsonl": jsonl, "u/other.csv": rows})
  captions = {"t/a.mp4": ["zero", "one"], "t/sub/b.mp4": ["two"], "u/c.mp4": ["x", "y"]}
  rejects = {"t/gone.mp4": "not_found", "u/other.csv": "unread_list"}
  assert look(tmp_path) == (captions, rejects)
  assert look(tmp_path / "t/*.mp4") == ({"a.mp4": ["zero", "one"]}, {})
  assert look(tmp_path / "t/*/b.mp4") == ({"sub/b.mp4": ["two"]}, {})
  monkeypatch.chdir(tmp_path / "t")
  assert look("*.mp4") == look("./*.mp4") == ({"a.mp4": ["zero", "one"]}, {})
  fill(tmp_path, {"u/metadata.jsonl": jsonl + "{"})
  with pytest.raises(BadInput, match="metadata.jsonl: line 2 is not JSON"):
    look(tmp_path)
  fill(tmp_path, {"u/metadata.jsonl": jsonl, "t/metadata.csv": "id,label\n1,2\n"})
  assert look(tmp_path)[1] == {"t/metadata.csv": "unread_list", "u/other.csv": "unread_list"}


def test_many_names_with_dots_are_paired_in_moments():
  """Each caption file is found by halving: looking at all pairs of names would take minutes."""
  names = [f"film.{number:05}" for number in range(3000)]
  cars = [f"{name}.en.txt" for name in names]
  begin = time.process_time()
  pairs = pairing.pair("x", [f"{name}.mp4" for name in names], cars, by_key=False)
  assert time.process_time() - begin < 5
  assert pairs.of == {f"{name}.mp4": [car] for name, car in zip(names, cars, strict=True)}

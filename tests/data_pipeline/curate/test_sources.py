"""What an input's folders and lists hold, and how it is opened."""

import dataclasses
import json
import os

import fsspec
import pytest

from data_pipeline.curate.sources import open_source
from data_pipeline.curate.types import Refused, Span, escape, unescape
from data_pipeline.errors import BadInput


@pytest.mark.parametrize(
  "raw, text",
  [
    (b"a/b.mp4", "a/b.mp4"),
    ("é 漢.mp4".encode(), "é 漢.mp4"),
    (b"a\nb\xff", "a\\x0ab\\xff"),
    (b"a\\x0a", "a\\x5cx0a"),
    ("\u202egnp.mp4".encode(), "\\xe2\\x80\\xaegnp.mp4"),
  ],
)
def test_names_are_printable_and_go_back(raw, text):
  assert escape(raw) == text and text.isprintable()
  assert unescape(text) == raw


# ---- folders


def test_a_folder_with_captions_beside_its_videos(found, fill, content, tmp_path):
  spans = [{"start_seconds": 0, "end_seconds": 1.5, "captions": ["first"]}]
  car = {"captions": ["a  fox"], "license": "CC0-1.0", "spans": spans, "split": "held_out"}
  files = {"b/x.mp4": "1", "b/x.txt": "one\n\n two \n", "a.webm": "22", "a.json": json.dumps(car)}
  fill(tmp_path, files | {"z.mp4": "3", "notes.txt": "n"})
  sources, rejects = found(tmp_path)
  assert list(sources) == ["a.webm", "z.mp4", "b/x.mp4"]
  assert rejects == {"notes.txt": "stray_captions"}
  assert sources["b/x.mp4"].captions == ("one", "two")
  fox = sources["a.webm"]
  assert (fox.captions, fox.licence, fox.split) == (("a fox",), "CC0-1.0", "held_out")
  assert fox.spans == (Span(0.0, 1.5, ("first",)),) and fox.size == 2
  assert content(fox) == b"22"
  assert json.loads(json.dumps(dataclasses.asdict(fox)))["name"] == "a.webm"


def test_a_folder_that_is_named_like_another_kind_of_input_is_a_folder(
  found, fill, tmp_path, monkeypatch
):
  fill(tmp_path, {"tfds:toy/a.mp4": "1", "b[1]*.mp4/c.mp4": "2"})
  monkeypatch.chdir(tmp_path)
  for name, video in (("tfds:toy", "a.mp4"), ("b[1]*.mp4", "c.mp4")):
    assert list(found(name)[0]) == [video]


def test_the_stamp_changes_with_content_and_captions(found, fill, tmp_path):
  fill(tmp_path, {"a.mp4": "1", "a.txt": "one"})
  stamps = [found(tmp_path)[0]["a.mp4"].stamp for _ in range(2)]
  (tmp_path / "a.txt").write_text("two")
  stamps.append(found(tmp_path)[0]["a.mp4"].stamp)
  (tmp_path / "a.mp4").write_text("longer")
  stamps.append(found(tmp_path)[0]["a.mp4"].stamp)
  assert stamps[0] == stamps[1] and len(set(stamps)) == 3


def test_links_pipes_and_loops_are_told_and_not_followed(found, fill, tmp_path):
  outside = tmp_path / "secret"
  outside.write_text("secret")
  folder = tmp_path / "in"
  fill(folder, {"a.mp4": "1"})
  (folder / "loop").symlink_to(folder)
  (folder / "out.mp4").symlink_to(outside)
  (folder / "broken.mp4").symlink_to("nowhere")
  (folder / "a.txt").symlink_to(outside)
  os.mkfifo(folder / "pipe.mp4")
  sources, rejects = found(folder)
  assert list(sources) == ["a.mp4"] and sources["a.mp4"].captions == ()
  links = ("a.txt", "broken.mp4", "loop", "out.mp4")
  assert rejects == {name: "symlink" for name in links} | {"pipe.mp4": "not_a_file"}
  sources, rejects = found(f"{folder}/**/a.*")
  assert list(sources) == ["a.mp4"]
  assert {"a.txt", "loop/a.mp4"} <= set(rejects) and set(rejects.values()) == {"symlink"}


def test_a_file_that_becomes_a_link_or_a_pipe_is_not_opened(found, fill, tmp_path):
  fill(tmp_path, {"a.mp4": "1", "b.mp4": "2", "c.mp4": "3"})
  a, b, c = found(tmp_path)[0].values()
  for name in "abc":
    (tmp_path / f"{name}.mp4").unlink()
  (tmp_path / "a.mp4").symlink_to("/etc/passwd")
  os.mkfifo(tmp_path / "b.mp4")
  for source, reason in ((a, "unreadable"), (b, "not_a_file"), (c, "not_found")):
    with pytest.raises(Refused) as caught, open_source(source):
      pass
    assert caught.value.reason == reason


def test_names_of_any_bytes(found, content, tmp_path):
  raw = os.fsencode(tmp_path) + b"/new\nline\xff\xfe.mp4"
  with open(raw, "wb") as file:
    file.write(b"content")
  with open(raw[:-4] + b".txt", "w") as file:
    file.write("said")
  sources, _ = found(tmp_path)
  (source,) = sources.values()
  assert source.name == "new\\x0aline\\xff\\xfe.mp4" and source.captions == ("said",)
  assert content(source) == b"content"


@pytest.mark.parametrize(
  "name, data",
  [
    ("a.json", "{"),
    ("a.json", "[" * 100_000),
    ("a.json", '{"captions": [1]}'),
    ("a.json", '{"captions": ["\\ud800"]}'),
    ("a.json", '{"split": "mine"}'),
    ("a.json", '{"spans": [{"start_seconds": 2, "end_seconds": 1}]}'),
    ("a.txt", b"\xff\xfe"),
    ("a.txt", b"x" * (1 << 20) + b"y"),
  ],
)
def test_broken_captions_refuse_the_video(found, fill, tmp_path, name, data):
  fill(tmp_path, {"a.mp4": "1", name: data})
  sources, rejects = found(tmp_path)
  assert not sources and rejects["a.mp4"] in ("bad_side_car", "too_large")


def test_globs_and_single_files(found, fill, tmp_path):
  fill(tmp_path, {"a.mp4": "1", "b.avi": "2", "d/c.mp4": "3", "d/c.txt": "said"})
  assert list(found(tmp_path / "*.mp4")[0]) == ["a.mp4"]
  assert list(found(f"{tmp_path}/**/*.mp4")[0]) == ["a.mp4", "d/c.mp4"]
  assert list(found(tmp_path / "b.avi")[0]) == ["b.avi"]
  assert list(found(f"file://{tmp_path}")[0]) == ["a.mp4", "b.avi", "d/c.mp4"]
  with pytest.raises(BadInput, match="finds nothing"):
    found(tmp_path / "*.mov")


def test_urls_of_fsspec(found, content, tmp_path):
  fs = fsspec.filesystem("memory")
  fs.pipe({"/in/a.mp4": b"1", "/in/a.txt": b"said", "/in/d/b.mp4": b"22"})
  try:
    sources, rejects = found("memory://in")
    assert list(sources) == ["a.mp4", "d/b.mp4"] and not rejects
    assert sources["a.mp4"].captions == ("said",)
    assert content(sources["d/b.mp4"]) == b"22"
    assert list(found("memory://in/**/*.mp4")[0]) == ["a.mp4", "d/b.mp4"]
  finally:
    fs.rm("/in", recursive=True)
  with pytest.raises(BadInput, match="cannot be reached"):
    found("nosuchthing://bucket/a")


# ---- lists


def test_a_list_names_files_anywhere(found, fill, content, tmp_path):
  fill(tmp_path, {"in/a.mp4": "1", "other/b.mp4": "22"})
  (tmp_path / "in/c.mp4").symlink_to(tmp_path / "other/b.mp4")
  rows = f"path,short,licence\na.mp4,a fox,CC0-1.0\n{tmp_path}/other/b.mp4,,\nc.mp4,,\n"
  fill(tmp_path, {"in/list.csv": rows + "gone.mp4,,\na.mp4,again,\n../other,,\n"})
  sources, rejects = found(tmp_path / "in/list.csv", caption_columns=("short",))
  b = f"{tmp_path}/other/b.mp4"
  assert list(sources) == ["a.mp4", b, "c.mp4"]
  assert (sources["a.mp4"].captions, sources["a.mp4"].licence) == (("a fox", "again"), "CC0-1.0")
  assert content(sources[b]) == content(sources["c.mp4"]) == b"22"
  assert rejects == {"gone.mp4": "not_found", "../other": "not_a_file"}


def test_a_list_of_json(found, fill, tmp_path):
  rows = [{"path": "a.mp4", "captions": ["one", "two"], "split": "held_out"}, {"video": "b.mp4"}]
  lines = "\n\n".join(map(json.dumps, rows))
  fill(tmp_path, {"a.mp4": "1", "b.mp4": "2", "list.jsonl": lines})
  sources, _ = found(tmp_path / "list.jsonl")
  assert sources["a.mp4"].captions == ("one", "two") and sources["a.mp4"].split == "held_out"
  assert list(sources) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize(
  "name, text, message",
  [
    ("l.csv", "clip\na.mp4\n", "line 1 names no column of files.*header"),
    ("l.jsonl", '{"path": "a"}\n{', "line 2 is not JSON"),
    ("l.jsonl", "[]", "line 1 names no file"),
    ("l.jsonl", '{"path": "a", "captions": 3}', "line 1, column 'captions': '3' is not text"),
  ],
)
def test_a_broken_list_is_bad_input(found, fill, tmp_path, name, text, message):
  fill(tmp_path, {name: text})
  with pytest.raises(BadInput, match=message):
    found(tmp_path / name)

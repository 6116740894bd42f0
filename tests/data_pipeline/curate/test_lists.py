"""What lists of videos become: the columns of the field's datasets, and whatever breaks a list."""

import csv
import io
import json
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.curate.notes import Notes
from data_pipeline.curate.sources import find_sources
from data_pipeline.curate.types import Source, Span
from data_pipeline.errors import BadInput

HUGE = 9**500  # no float is so large
FILES = {name: "1" for name in ("a.mp4", "b.mp4", "v/c.mp4", "-5NN5hdIwTc.mp4")}


def said(path, **options):
  """(captions, spans as plain tuples) of each source of a list."""
  sources = [one for one in find_sources(str(path), **options) if isinstance(one, Source)]
  return {one.name: (list(one.captions), [tuple(span) for span in one.spans]) for one in sources}


def told(path, **options):
  notes = Notes()
  list(find_sources(str(path), notes=notes, **options))
  return "\n".join(notes.lines())


def whole(*captions):
  return list(captions), []


def parts(*spans):
  return [], [(start, end, tuple(captions)) for start, end, *captions in spans]


def lines(*rows):
  return "\n".join(rows) + "\n"


OPEN_SORA = lines(
  "path,text,num_frames,fps", 'a.mp4,"A fox, running.",51,24.0', "v/c.mp4,Rain,9,24"
)
OPEN_SORA_PLAN = [
  {"path": "a.mp4", "cap": ["one", "two"], "resolution": {"height": 720, "width": 1280}},
  {"path": "b.mp4", "cap": ["part"], "fps": 25.0, "num_frames": 50, "cut": [25, 75]},
  {"path": "b.mp4", "cap": "next", "fps": 25.0, "duration": 9.0, "cut": [75, 100]},
]
PANDA = io.StringIO()
csv.writer(PANDA).writerows(
  [
    ["videoID", "url", "timestamp", "caption", "matching_score"],
    [
      "-5NN5hdIwTc",
      "https://www.youtube.com/watch?v=-5NN5hdIwTc",
      str([["0:00:10.760", "0:00:13.460"], ["0:01:02", "1:00:00.5"]]),
      str(['It\'s a dog, "barking".', "A cat"]),
      "[0.43, 0.5]",
    ],
  ]
)
HOWTO = {"a": {"start": [0.5, 2], "end": [2, 4.25], "text": ["cut the onion", "fry it"]}}
INTERNVID = {"YoutubeID": "-5NN5hdIwTc", "Start_timestamp": "00:00:04.505"}
INTERNVID |= {"End_timestamp": "00:00:05,605", "Caption": "a man"}
ACTIVITY = {"b": {"duration": 9, "timestamps": [[0, 4], [4, 8.5]], "sentences": ["He runs.", "He"]}}
OBJECT = [{"start_seconds": 0, "end_seconds": 4, "captions": ["x", "y"]}]


@pytest.mark.parametrize(
  "name, text, wanted",
  [
    ("l.csv", OPEN_SORA, {"a.mp4": whole("A fox, running."), "v/c.mp4": whole("Rain")}),
    (
      "l.json",
      json.dumps(OPEN_SORA_PLAN),
      {"a.mp4": whole("one", "two"), "b.mp4": parts((1.0, 3.0, "part"), (3.0, 4.0, "next"))},
    ),
    (
      "l.csv",
      PANDA.getvalue(),
      {
        "-5NN5hdIwTc.mp4": parts((10.76, 13.46, 'It\'s a dog, "barking".'), (62.0, 3600.5, "A cat"))
      },
    ),
    ("l.json", json.dumps(HOWTO), {"a.mp4": parts((0.5, 2, "cut the onion"), (2, 4.25, "fry it"))}),
    ("l.jsonl", json.dumps(INTERNVID), {"-5NN5hdIwTc.mp4": parts((4.505, 5.605, "a man"))}),
    ("l.json", json.dumps(ACTIVITY), {"b.mp4": parts((0, 4, "He runs."), (4, 8.5, "He"))}),
    (
      "metadata.jsonl",
      '{"file_name": "a.mp4", "text": "one"}\n{"file_name": "v/c.mp4", "text": "two"}',
      {"a.mp4": whole("one"), "v/c.mp4": whole("two")},
    ),
    ("l.csv", "video_file_name,prompt\na.mp4,go\n", {"a.mp4": whole("go")}),
    ("l.csv", "videoid,contentUrl,name\na,https://x.test/a.mp4,A sea\n", {"a.mp4": whole("A sea")}),
    # spelling
    ("L.CSV", "Path, Caption \na.mp4, a fox \n", {"a.mp4": whole("a fox")}),
    ("l.csv", '\ufeffpath, TEXT\na.mp4, "one, two"\n', {"a.mp4": whole("one, two")}),
    ("l.csv", "path;caption\na.mp4;one, two\n", {"a.mp4": whole("one, two")}),
    ("l.csv", "sep=;\r\npath;caption\r\na.mp4;one\r\n", {"a.mp4": whole("one")}),
    ("l.csv", "path\tcaption\na.mp4\tone, two\n", {"a.mp4": whole("one, two")}),
    ("l.tsv", "path,caption\na.mp4,one\n", {"a.mp4": whole("one")}),
    ("l.csv", "path,text\ra.mp4,one\rb.mp4,two\r", {"a.mp4": whole("one"), "b.mp4": whole("two")}),
    ("l.csv", "path,caption\n\na.mp4,one,,\n,\n", {"a.mp4": whole("one")}),
    ("l.csv", "path,caption,caption\na.mp4,one,two\n", {"a.mp4": whole("one", "two")}),
    ("l.csv", f"path,text\na.mp4,{'long ' * 28_000}\n", {"a.mp4": whole(("long " * 28_000)[:-1])}),
    ("l.csv", "path,caption\na.mp4,tëxt\n".encode("utf-16"), {"a.mp4": whole("tëxt")}),
    ("l.NDJSON", '{"path": "a.mp4", "caption": "one"}', {"a.mp4": whole("one")}),
    ("l.json", '{"path": "a.mp4"}\n{"path": "b.mp4"}', {"a.mp4": whole(), "b.mp4": whole()}),
    ("l.json", '{"a.mp4": ["x", "y"], "b": "z"}', {"a.mp4": whole("x", "y"), "b.mp4": whole("z")}),
    ("l.json", '{"info": {}, "data": [{"path": "a.mp4", "cap": "x"}]}', {"a.mp4": whole("x")}),
    ("l.csv", ",path,text,\n0,a.mp4,x\n", {"a.mp4": whole("x")}),
    ("l.csv", "path,text\nv\\c.mp4,x\n a.mp4,y\n", {"v/c.mp4": whole("x"), "a.mp4": whole("y")}),
    ("l.csv", 'text,path\n"one\ntwo, three",a.mp4\n', {"a.mp4": whole("one two, three")}),
    ("l.csv", 'path,text\na.mp4,"one\nsee b.mp4, too"\n', {"a.mp4": whole("one see b.mp4, too")}),
    ("l.csv", 'video_id,text\na,"one\nYes, two"\n', {"a.mp4": whole("one Yes, two")}),
    # rows of one video
    ("l.csv", "path,caption\na.mp4,one\n./a.mp4,two\n", {"a.mp4": whole("one", "two")}),
    (
      "l.csv",
      "path,caption,start,end\na.mp4,one,0,4.5\na.mp4,two,00:00:04.500,1:02.25\na.mp4,all,,\n",
      {"a.mp4": (["all"], [(0.0, 4.5, ("one",)), (4.5, 62.25, ("two",))])},
    ),
    ("l.csv", "path,text,start,duration\na.mp4,hi,1.5,2\n", {"a.mp4": parts((1.5, 3.5, "hi"))}),
    (
      "l.csv",
      "path,text,start_frame,end_frame,fps\na.mp4,hi,10,30,20\n",
      {"a.mp4": parts((0.5, 1.5, "hi"))},
    ),
    # lists in cells
    ("l.tsv", "path\ttext\na.mp4\t['a, b', \"it's\"]\n", {"a.mp4": whole("a, b", "it's")}),
    ("l.tsv", 'path\ttext\na.mp4\t["a", "caf\\u00e9"]\n', {"a.mp4": whole("a", "café")}),
    ("l.tsv", "path\ttext\na.mp4\t['a' 'b']\n", {"a.mp4": whole("a", "b")}),
    ("l.tsv", "path\ttext\na.mp4\t('a', 'b')\n", {"a.mp4": whole("a", "b")}),
    ("l.csv", "path,text\na.mp4,[]\n", {"a.mp4": whole()}),
    ("l.csv", "path,text\na.mp4,[laughs] hello [you]\n", {"a.mp4": whole("[laughs] hello [you]")}),
    ("l.csv", "path,text\na.mp4,(a dog)\n", {"a.mp4": whole("(a dog)")}),
    ("l.csv", "path,text\na.mp4,[1]\n", {"a.mp4": whole("[1]")}),
    ("l.tsv", f"path\tspans\na.mp4\t{json.dumps(OBJECT)}\n", {"a.mp4": parts((0, 4, "x", "y"))}),
    ("l.tsv", f"path\tspans\na.mp4\t{OBJECT}\n", {"a.mp4": parts((0, 4, "x", "y"))}),
    # quotes in tables with tabs
    (
      "l.tsv",
      'path\ttext\na.mp4\t"Go!" she said\nb.mp4\tright 5" "\nv/c.mp4\t"open\n',
      {"a.mp4": whole('"Go!" she said'), "b.mp4": whole('right 5" "'), "v/c.mp4": whole('"open')},
    ),
    (
      "l.tsv",
      'path\ttext\na.mp4\t"say ""go"""\nb.mp4\tx\n',
      {"a.mp4": whole('say "go"'), "b.mp4": whole("x")},
    ),
    ("l.tsv", 'path\ttext\na.mp4\t"one\ttwo"\n', {"a.mp4": whole("one two")}),
    ("l.tsv", '"path"\t"text"\n"a.mp4"\t"one"\n', {"a.mp4": whole("one")}),
    (
      "l.tsv",
      'path\ttext\na.mp4\t"Start\nb.mp4\tEnd"\n',
      {"a.mp4": whole('"Start'), "b.mp4": whole('End"')},
    ),
  ],
)
def test_lists_as_the_field_writes_them(fill, tmp_path, name, text, wanted):
  fill(tmp_path, FILES | {name: text})
  assert said(tmp_path / name) == wanted


@pytest.mark.parametrize(
  "name, text, message",
  [
    ("l.csv", "path,caption\na.mp4,one, two\n", r"line 2, column 'caption': 3 cells, .* 2 \('two'"),
    ("l.csv", "path,caption,fps\na.mp4,one\n", "line 2 ends before column 'fps': it has 2 cells"),
    ("l.csv", 'path,caption\na.mp4,"one\nb.mp4,two\n', "line 2, column 'caption': its quotes"),
    ("l.csv", 'caption,path\n"a","a.mp4"\n"one" x,b.mp4\n', "line 3, column 'caption': its quotes"),
    (
      "l.csv",
      'path,caption\na.mp4,"one\nb.mp4,two"\n',
      "line 2, column 'caption': its cell goes on",
    ),
    ("l.csv", 'text,path\n"one,a.mp4\ntwo",b.mp4\n', "line 2, column 'text': its cell goes on to"),
    ("l.csv", 'path,text\na.mp4,"one\nc.webm,\nb.mp4,two"\n', "its cell goes .* .'c.webm,'"),
    ("l.csv", 'video_id,text\nid1,"one\nid2,two"\n', "its cell goes .* .'id2,two"),
    ("l.csv", '"path","text"\n"a.mp4","one\n"b.mp4","two"\n', "line 2, column 'text': its quotes"),
    ("l.csv", 'path,a,text\na.mp4,x,"b\nb.mp4,"y",z\n', "line 2, column 'text': its quotes"),
    ("l.csv", 'path,caption\na.mp4,"say \\"go\\""\n', "line 2, column 'caption': its quotes"),
    ("l.tsv", 'path\ttext\na.mp4\t"say ""a"""\nb.mp4\t"x\n', "line 3, column 'text': its quotes"),
    ("l.tsv", "path\ttext\na.mp4\tone\ttwo\n", "line 2, column 'text': 3 cells"),
    ("l.csv", "path,caption\na.mp4,o\0ne\n", "line 2 holds a NUL byte"),
    ("l.csv", b"path,caption\na.mp4,caf\xe9\n", "line 2, column 'caption': .* is not UTF-8"),
    ("l.csv", f'path,text\na.mp4,"{"x" * (1 << 24)}\n', "line 2, column 'text': its quotes"),
    ("l.csv", "path,path,text\na.mp4,b.mp4,x\n", "two columns are named 'path'"),
    ("l.csv", "path,name\na.mp4,a fox runs\n", "'name' holds text .'a fox runs'.*'none'"),
    ("l.csv", "a.mp4,a fox runs\n", "line 1 names no column of files"),
    ("l.csv", "", "line 1 names no column of files"),
    ("l.csv", "path,text\na.mp4,['a' b']\n", "line 2, column 'text': .* begins as a list"),
    ("l.csv", "path,text,start\na.mp4,x,1\n", "line 2, column 'start': there is no column of ends"),
    ("l.csv", "path,text,start,end\na.mp4,x,1,\n", "line 2, column 'end': it is empty"),
    ("l.csv", "path,text,start,end\na.mp4,x,2,1\n", "column 'start' and 'end': a part from 2 to 1"),
    ("l.csv", "path,text,start,end\na.mp4,x,now,1\n", "line 2, column 'start': 'now' is no time"),
    ("l.csv", f"path,text,start,end\na.mp4,x,0,{HUGE}:0:0\n", "line 2, column 'end': .* no time"),
    ("l.jsonl", f'{{"path": "a.mp4", "cap": "x", "start": 0, "end": {HUGE}}}', "'end': .* no time"),
    ("l.csv", 'path,text,cut\na.mp4,x,"[0, 9]"\n', "line 2, column 'cut': it counts frames"),
    ("l.csv", "path,spans\na.mp4,0-4\n", "line 2, column 'spans': '0-4' is neither JSON nor"),
    ("l.csv", "path,split\na.mp4,mine\n", "line 2, column 'split': split='mine' is not one of"),
    (
      "l.csv",
      "path,licence\na.mp4,MIT\na.mp4,CC0\n",
      "line 3, column 'licence': 'CC0' of a.mp4 is",
    ),
    ("l.jsonl", '{"path": "a.mp4", "cap": "x", "cap": "y"}', "line 1 .*'cap' is there twice"),
    ("l.json", '[{"path": "a.mp4", "cap": {"en": "x"}}]', "item 1, column 'cap': .* is not text"),
    ("l.json", '{"start": [], "text": []}', "is no list of videos"),
    (
      "l.json",
      '{"a": {"text": ["x"], "start": [0], "end": [1, 2]}}',
      "key 'a', column 'end': 2 tim",
    ),
    ("l.json", '{"a.mp4": {"text": "x"}, "b": 3}', "is no list of videos"),
    ("l.json", "[" * 100_000, "is not JSON"),
    ("l.jsonl", '{"path": "a\\u0000.mp4"}', "line 1 names no file: 'a.x00.mp4' is no path"),
    ("l.jsonl", '{"path": "a\\ud800.mp4"}', "line 1 names no file: 'a.ud800.mp4' is no path"),
    ("l.jsonl", '{"path": "a.mp4", "text": "\\ud800"}', "line 1, column 'text': .* is not UTF-8"),
    ("l.csv", f"path,spans\na.mp4,{'[' * 100_000}\n", "line 2, column 'spans': .* is neither JSON"),
    ("l.csv", "video_id,text\nc,x\n", None),
  ],
)
def test_what_has_no_certain_place_is_bad_input(fill, tmp_path, name, text, message):
  fill(tmp_path, FILES | {"v/c.webm": "2", name: text})
  with pytest.raises(BadInput, match=message or "'c' may be v/c.mp4 or v/c.webm"):
    said(tmp_path / name)


def test_columns_that_are_not_used_are_told_and_others_can_be_named(fill, tmp_path):
  rows = "path,title,summary,label\na.mp4,A name,Very long,7\n"
  fill(tmp_path, {"t.csv": "path,text,start,end\na.mp4,x,0,1\nb.mp4,,0,1\n"} | FILES)
  assert told(tmp_path / "t.csv") == ""
  fill(tmp_path, FILES | {"l.csv": rows, "m.csv": rows.replace("title,", "text,")})
  assert "captions are taken from title" in told(tmp_path / "l.csv")
  assert told(tmp_path / "m.csv").endswith("columns that are not used: summary, label")
  columns = {"caption_columns": ("Summary", "text")}
  assert said(tmp_path / "m.csv", **columns) == {"a.mp4": whole("Very long", "A name")}
  assert said(tmp_path / "l.csv", caption_columns=()) == {"a.mp4": whole()}
  with pytest.raises(BadInput, match=r"no column 'text'. It has path, title, summary, label"):
    said(tmp_path / "l.csv", **columns)


def test_files_that_a_list_names_and_that_are_not_there(fill, found, tmp_path):
  page = "https://www.youtube.com/watch?v=zzz"
  rows = f"video_id,url,path,text\nzzz,{page},,one\n,,gone.mp4,two\na,,,three\n"
  fill(tmp_path, FILES | {"l.csv": rows})
  sources, rejects = found(tmp_path / "l.csv")
  assert list(sources) == ["a.mp4"] and rejects == {"zzz": "not_found", "gone.mp4": "not_found"}
  assert "2 captions of 2 files that are not there" in told(tmp_path / "l.csv")


def test_cells_that_name_files_of_captions(fill, tmp_path):
  fill(tmp_path, FILES | {"t/a (1).txt": "one\ntwo\n"})
  fill(tmp_path, {"l.csv": "image,file_name,caption\nx.jpg,a.mp4,t/a (1).txt\n,b.mp4,see b.txt\n"})
  assert said(tmp_path / "l.csv") == {"a.mp4": whole("one", "two"), "b.mp4": whole("see b.txt")}


# ---- properties

TEXT = st.text(st.sampled_from(string.printable + "é漢\u2028'\"[](),;\t"), min_size=1, max_size=30)
SETTINGS = settings(max_examples=60, deadline=None)


def is_plain(text):
  """Not a list of texts, nor a file of captions."""
  return text.strip()[:1] not in ("[", "(") or text.strip()[-1:] not in ("]", ")")


CAPTIONS = st.lists(TEXT.filter(is_plain), min_size=2, max_size=4)


def read_back(folder, name, data):
  (folder / name).write_bytes(data)
  found = said(folder / name)
  return [found[f"{i}.mp4"][0] for i in range(len(found))]


def in_one_line(texts):
  return [[" ".join(text.split())] if text.split() else [] for text in texts]


@pytest.fixture(scope="module")
def videos(tmp_path_factory, fill):
  folder = tmp_path_factory.mktemp("videos")
  fill(folder, {f"{i}.mp4": "1" for i in range(4)})
  return folder


@pytest.mark.parametrize("delimiter, ending", [(",", "csv"), (";", "csv"), ("\t", "tsv")])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("order", [1, -1])
@given(captions=CAPTIONS)
@SETTINGS
def test_what_csv_writes_comes_back(videos, delimiter, ending, quoting, order, captions):
  file = io.StringIO()
  writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
  rows = [("path", "caption"), *((f"{i}.mp4", text) for i, text in enumerate(captions))]
  writer.writerows(row[::order] for row in rows)
  back = read_back(videos, f"l.{ending}", file.getvalue().encode())
  assert back == in_one_line(captions)


@given(captions=CAPTIONS)
@SETTINGS
def test_tables_without_quotes_come_back(videos, captions):
  captions = ["".join(c for c in text if c not in "\t\r\n") for text in captions]
  captions = [text.replace('""', '"') if text.count('"') > 1 else text for text in captions]
  rows = ["path\tcaption", *(f"{i}.mp4\t{text}" for i, text in enumerate(captions))]
  assert read_back(videos, "l.tsv", "\n".join(rows).encode()) == in_one_line(captions)


@given(captions=CAPTIONS)
@SETTINGS
def test_what_json_writes_comes_back(videos, captions):
  rows = [{"file_name": f"{i}.mp4", "text": text} for i, text in enumerate(captions)]
  wanted = in_one_line(captions)
  assert read_back(videos, "l.jsonl", "\n".join(map(json.dumps, rows)).encode()) == wanted
  assert read_back(videos, "l.json", json.dumps(rows, ensure_ascii=False).encode()) == wanted


@pytest.mark.parametrize("write", [repr, json.dumps])
@given(captions=st.lists(TEXT, min_size=1, max_size=4))
@SETTINGS
def test_lists_in_cells_come_back(videos, write, captions):
  file = io.StringIO()
  csv.writer(file).writerows([("path", "captions"), ("0.mp4", write(captions))])
  wanted = [" ".join(text.split()) for text in captions if text.split()]
  assert read_back(videos, "l.csv", file.getvalue().encode()) == [wanted]


def test_spans_of_a_list_are_spans(fill, found, tmp_path):
  fill(tmp_path, FILES | {"l.csv": "path,text,start,end\na.mp4,x,0,1\n"})
  (source,) = found(tmp_path / "l.csv")[0].values()
  assert source.spans == (Span(0.0, 1.0, ("x",)),) and isinstance(source.spans[0], Span)


def test_a_list_without_captions_says_so(fill, tmp_path):
  fill(tmp_path, FILES | {"l.csv": "path,kind,fps\na.mp4,dance,25\n"})
  assert told(tmp_path / "l.csv").endswith(
    "l.csv: no column holds captions; columns that are not used: kind, fps"
  )


def test_a_key_that_comes_twice_is_found_in_moments(tmp_path, fill):
  """Among 100,000 keys, the last one: comparing each with all others would take a minute."""
  keys = "".join(f'"k{number}": 1, ' for number in range(100_000))
  fill(tmp_path, {"l.jsonl": f'{{{keys} "k99999": 2}}'})
  begin = time.process_time()
  with pytest.raises(BadInput, match="line 1 .*'k99999' is there twice"):
    list(find_sources(str(tmp_path / "l.jsonl")))
  assert time.process_time() - begin < 5

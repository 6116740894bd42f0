"""Captions of a film: their form, and that those of the repository are whole."""

import json
import re
from pathlib import Path

import pytest

from data_pipeline.curate import side_cars
from data_pipeline.errors import BadInput
from data_pipeline.film.captions import read_captions

FACTS = dict(film="Reel", attribution="(c) us", licence="CC-BY-3.0", sha256="ab")
FILM = Path(__file__).parents[3] / "experiments" / "film_captions.jsonl"
SHA256 = "475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0"
SECONDS = 14315 / 24


def part(start=0.0, end=1.0, captions=("A bird.",)) -> dict:
  return dict(start_seconds=start, end_seconds=end, captions=list(captions))


def write(path: Path, *lines) -> Path:
  path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
  return path


def test_reads_facts_and_parts(tmp_path):
  parts = [part(), part(1.0, 2.5, ("A bird.", "It flies \u00e0 gauche."))]
  path = write(tmp_path / "c.jsonl", FACTS, *parts)
  assert read_captions(path, "ab") == {"licence": "CC-BY-3.0: Reel, (c) us", "spans": parts}


def test_curation_reads_what_is_written_beside_the_film():
  words = side_cars.parse(".json", json.dumps(read_captions(FILM, SHA256)).encode())
  assert words.spans[0][:2] == (0.0, 3.958) and words.spans[0].captions[0].startswith("Pink")
  assert not words.captions and words.licence.startswith("CC-BY-3.0: Big Buck Bunny, (c)")


@pytest.mark.parametrize(
  "lines, complaint",
  [
    ([FACTS | {"sha256": "cd"}, part()], "are of the film cd, not of sha256=ab"),
    ([part()], "line of another form .KeyError"),
    ([], "line of another form .IndexError"),
    ([FACTS, "text"], "line of another form .TypeError"),
    ([FACTS, part(1.0, 1.0)], "is no span"),
    ([FACTS, part(-1.0, 1.0)], "is no span"),
    ([FACTS, part(0.0, float("nan"))], "is no span"),
    ([FACTS, part(0.0, float("inf"))], "is no span"),
    ([FACTS, part(captions=())], "is no list of texts"),
    ([FACTS, part(captions=("",))], "is no list of texts"),
    ([FACTS, part(0, 2), part(1, 3)], "start_seconds=1.0 in .* lies before the end_seconds=2.0"),
  ],
)
def test_refuses_lines_of_another_form(tmp_path, lines, complaint):
  with pytest.raises(BadInput, match=complaint):
    read_captions(write(tmp_path / "c.jsonl", *lines), "ab")


def test_refuses_a_file_that_is_not_there_or_no_json(tmp_path):
  with pytest.raises(BadInput, match="cannot be read .No such file"):
    read_captions(tmp_path / "c.jsonl", "ab")
  (tmp_path / "c.jsonl").write_bytes(b"\xff{")
  with pytest.raises(BadInput, match="is not text in UTF-8"):
    read_captions(tmp_path / "c.jsonl", "ab")


def test_the_film_is_captioned_and_attributed():
  found = read_captions(FILM, SHA256)
  assert "(c) copyright 2008, Blender Foundation" in found["licence"]
  assert "www.bigbuckbunny.org" in found["licence"]
  spans = [(one["start_seconds"], one["end_seconds"]) for one in found["spans"]]
  assert spans[-1][1] <= SECONDS + 0.001
  assert sum(end - start for start, end in spans) > 0.99 * SECONDS
  assert all(0.9 < end - start < 11 for start, end in spans)


def test_every_part_of_the_film_has_a_short_and_a_long_caption():
  texts = [one["captions"] for one in read_captions(FILM, SHA256)["spans"]]
  assert all(len(pair) == 2 and len(pair[0]) < len(pair[1]) for pair in texts)
  every = [text for pair in texts for text in pair]
  assert len(set(every)) == len(every)
  assert all(re.fullmatch(r"[A-Z][ -~]+\.", text) and "  " not in text for text in every)

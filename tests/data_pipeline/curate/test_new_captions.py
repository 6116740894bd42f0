"""Mended captions of archives, TFDS rows and endpoints; sources that are known by their content."""

import io
import json
import os
import runpy
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pictures import texture

from data_pipeline import example
from data_pipeline.curate import content, workers
from data_pipeline.curate.content import compare, hash_content
from data_pipeline.curate.job import curate
from data_pipeline.curate.new_captions import replacing_captions
from data_pipeline.curate.settings import read_settings
from data_pipeline.curate.sources import find_sources
from data_pipeline.curate.spool import Work
from data_pipeline.curate.take_down import take_down
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.video_writer import encode_video
from experiments import curate_default

STUB = runpy.run_path(str(Path(__file__).with_name("chat_stub.py")))
PROMPTS = (dict(name="short", text="Describe it briefly.", max_characters=300),)


def settings_of(**captions):
  config = curate_default.get_config("debug").curate.to_dict()
  config["captions"] |= captions
  return read_settings(config)


def replace(given, out, settings):
  with replacing_captions(str(given), out, settings, workers=2) as job:
    job.apply()
    return job.finish()


def captions_of(out):
  clips = Dataset.open(out, kind="clip")
  clips.verify()
  return {record.source: record.captions for record in map(clips.read, range(len(clips)))}


def table(out):
  lines = (out / "sources.jsonl").read_text().splitlines()
  return {row["name"]: row for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def videos():
  """The bytes of two videos by name."""
  found = {}
  for seed, name in enumerate(("a.mp4", "b.c.mp4")):
    picture = texture(seed, 48, 64 + 24)
    frames = (np.ascontiguousarray(picture[:, t : t + 64]) for t in range(24))
    found[name] = encode_video(frames, width=64, height=48, fps=24, codec="h264", quality=20).data
  return found


def write_files(folder, files):
  folder.mkdir(exist_ok=True)
  for name, data in files.items():
    (folder / name).write_bytes(data)
  return folder


def write_tar(path, files, mode="w"):
  with tarfile.open(path, mode) as archive:
    for name, data in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return path


def write_tfds(folder, rows):
  """A prepared dataset of the bytes of files, as tfrecord."""
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  records = [example.serialize({"video": [v], "caption": [c.encode()]}) for v, c in rows]
  size = [len(record).to_bytes(8, "little") + bytes(4) for record in records]
  data = b"".join(n + record + bytes(4) for n, record in zip(size, records, strict=True))
  (folder / "toy-train.tfrecord-00000-of-00001").write_bytes(data)
  split = {"name": "train", "shardLengths": [str(len(rows))], "numBytes": "1"}
  info = {"name": "toy", "fileFormat": "tfrecord", "version": "1.0.0", "splits": [split]}
  (folder / "dataset_info.json").write_text(json.dumps(info))
  text = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}
  features = {"video": {"pythonClassName": "…", "text": {}}, "caption": text}
  (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
  return folder


def test_archives_and_rows_that_are_packed_anew(videos, tmp_path, monkeypatch):
  """Other places, other times, other captions: the videos in them are the same."""
  a, b = videos.items()
  cut = {}
  for kind in ("x.tar", "tfds"):
    out, given = tmp_path / kind / "clips", tmp_path / kind / "x"
    (tmp_path / kind).mkdir()
    if kind == "tfds":
      write_tfds(given, [(a[1], "first"), (b[1], "second")])
      mend = lambda: write_tfds(given, [(a[1], "mended first"), (b[1], "second")])  # noqa: B023, E731
    else:
      given = given.with_name(kind)
      write_tar(given, dict([a, ("a.txt", b"first"), b, ("b.txt", b"second")]))
      files = dict([("a.txt", b"mended first"), a, ("b.txt", b"second"), b])
      mend = lambda: write_tar(given, files)  # noqa: B023, E731
    curate(str(given), out, settings_of(), workers=1)
    assert sorted(captions_of(out).values()) == [("first",), ("second",)]
    mend()
    with monkeypatch.context() as patch:
      patch.setattr(workers, "run_in_child", None)
      with pytest.raises(BadInput, match="1 sources .*sora curate --replace-captions, with the"):
        curate(str(given), out, settings_of(), workers=1)
      cut[kind] = replace(given, out, settings_of())
      assert sorted(captions_of(out).values()) == [("mended first",), ("second",)]
      assert curate(str(given), out, settings_of(), workers=1)["clips"] == 2
  assert {(said["clips"], said["unchanged"], said["sources"]) for said in cut.values()} == {
    (1, 1, 1)
  }


def test_a_content_is_the_same_wherever_it_lies(tmp_path):
  files = {"a": b"one" * 5000, "b": b"two" * 5000}
  plain = write_files(tmp_path / "in", files)
  tars = (write_tar(tmp_path / "x.tar", files), write_tar(tmp_path / "x.tar.gz", files, "w:gz"))
  hashes = [[hash_content(s) for s in find_sources(str(given))] for given in (plain, *tars)]
  assert hashes[0] == hashes[1] == hashes[2] and hashes[0][0] != hashes[0][1]
  assert all(found.startswith("15000-") for found in hashes[0])
  (gone,) = find_sources(str(plain / "a"))
  (plain / "a").unlink()
  assert hash_content(gone) == ""


def test_an_endpoint_is_asked_nothing_twice(videos, tmp_path, monkeypatch):
  given = write_files(tmp_path / "in", videos | {"a.txt": b"A pattern moves."})
  out, work = tmp_path / "clips", Work.of(tmp_path / "clips")
  with STUB["ChatStub"]() as stub:
    monkeypatch.setenv(STUB["VARIABLE"], stub.key)
    chat = {"base_url": stub.url, **STUB["SETTINGS"]}
    settings = settings_of(prompts=PROMPTS, chat=chat, asked="uncaptioned")
    curate(str(given), out, settings, workers=1)
    assert len(stub.requests) == 1
    before, usage = captions_of(out), table(out)["b.c.mp4"]["usage"]
    (given / "b.c.txt").write_text("Said of it.")
    assert replace(given, out, settings)["clips"] == 1 and len(stub.requests) == 1
    assert captions_of(out) == before | {"b.c.mp4": ("Said of it.",)}
    assert table(out)["b.c.mp4"]["usage"] == [0, 0, 0, 0.0]
    (given / "b.c.txt").unlink()
    (given / "a.txt").unlink()
    assert replace(given, out, settings)["clips"] == 2 and len(stub.requests) == 2
    after = captions_of(out)
    assert after["b.c.mp4"] == before["b.c.mp4"] and after["a.mp4"] != before["a.mp4"]
    assert table(out)["b.c.mp4"]["usage"] == usage == table(out)["a.mp4"]["usage"]
    assert curate(str(given), out, settings, workers=1)["usage"]["answers"] == 2
    take_down(out, ["a.mp4"])
    assert len(list(work.answers.glob("??/*.json"))) == 1  # that about it is gone
    write_files(given, {"b.c.txt": b"Said again."})
    replace(given, out, settings)
    shutil.rmtree(work.answers)
    (given / "b.c.txt").unlink()
    state = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
  with pytest.raises(BadInput, match="cannot be asked .*Connection refused"):
    replace(given, out, settings)
  assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == state


def forget(out, *names):
  """Leaves facts out of sources.jsonl that older versions did not keep."""
  rows = [{k: v for k, v in row.items() if k not in names} for row in table(out).values()]
  (out / "sources.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_datasets_of_older_versions_and_those_without_a_work_folder(videos, tmp_path):
  given, out = write_files(tmp_path / "in", videos), tmp_path / "clips"
  curate(str(given), out, settings_of(), workers=1)
  forget(out, "shots", "rate", "content")
  write_files(given, {"a.txt": b"Said first."})
  assert replace(given, out, settings_of())["clips"] == 1  # the spool knows the shots
  assert captions_of(out)["a.mp4"] == ("Said first.",)
  shutil.rmtree(Work.of(out).folder)
  write_files(given, {"a.txt": b"Said again."})
  with pytest.raises(BadInput, match=r"how many shots source 'a\.mp4' has is not known"):
    replace(given, out, settings_of())
  os.utime(given / "a.mp4", (1, 1))
  with pytest.raises(BadInput, match=r"have the names of others .*a\.mp4.* or their files have ch"):
    replace(given, out, settings_of())
  shutil.rmtree(out)
  curate(str(given), out, settings_of(), workers=1)
  shutil.rmtree(Work.of(out).folder)
  write_files(given, {"a.txt": b"Said of a.", "c.mp4": b"no video"})
  said = replace(given, out, settings_of())
  assert (said["clips"], said["unchanged"], said["new"]) == (1, 1, 1)
  assert captions_of(out) == {"a.mp4": ("Said of a.",), "b.c.mp4": ()}
  assert {path.name for path in tmp_path.iterdir()} == {"in", "clips"}


def test_only_files_with_other_stamps_are_read(tmp_path, monkeypatch):
  given = write_files(tmp_path / "in", {name: name.encode() * 99 for name in "abcdef"})
  sources = {source.name: source for source in find_sources(str(given))}
  known = {n: {"stamp": s.stamp, "content": hash_content(s)} for n, s in sources.items()}
  del known["e"]["content"]  # of an older version
  for name in "bcde":
    os.utime(given / name, (1, 1))
  (given / "c").write_bytes(b"C" * 99)
  (given / "d").write_bytes(b"longer than it was" * 99)
  (given / "f.txt").write_text("Said of f.")
  read, hash_ = [], content.hash_content
  monkeypatch.setattr(
    content, "hash_content", lambda source: (read.append(source.name), hash_(source))[1]
  )
  found = compare(find_sources(str(given)), known, 2)
  names = [[source.name for source in part] for part in found]
  assert names == [["b"], ["f"], ["c", "d", "e"]] and sorted(read) == ["b", "c"]

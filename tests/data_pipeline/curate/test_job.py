"""The whole curation: raw videos in, one dataset out, whatever the workers, kills and reruns."""

import errno
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from colleague import odd_modes
from pictures import texture

from data_pipeline.curate import content, pipeline, workers
from data_pipeline.curate.child import ChildFailed
from data_pipeline.curate.job import curate
from data_pipeline.curate.settings import read_settings
from data_pipeline.curate.take_down import take_down
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput

ROOT = Path(__file__).resolve().parents[3]
CONFIG = runpy.run_path(str(ROOT / "experiments" / "curate_default.py"))["get_config"]("debug")
STUB = runpy.run_path(str(Path(__file__).with_name("chat_stub.py")))

JOB = """
import json, sys
sys.path.insert(0, sys.argv[1])
from data_pipeline.curate.job import curate
from data_pipeline.curate.settings import read_settings
from experiments.curate_default import get_config
given, out, workers = sys.argv[2:5]
settings = read_settings(get_config("debug").curate.to_dict())
print(json.dumps(curate(given, out, settings, workers=int(workers))))
"""


def settings_of(**changes):
  plain = CONFIG.curate.to_dict()
  for name, value in changes.items():
    group, _, field = name.partition("__")
    plain[group] = plain[group] | {field: value}
  return read_settings(plain)


def write_pan(make, path, seed):
  """Two seconds of a camera that pans over a picture."""
  picture = texture(seed, 64, 96 + 48)
  lossless = path.with_suffix(".mkv")
  make.write(lossless, [np.ascontiguousarray(picture[:, t : t + 96]) for t in range(48)])
  make.ffmpeg("-i", lossless, "-r", 24, "-frames:v", 48, *make.X264, path)
  lossless.unlink()


@pytest.fixture(scope="session")
def videos(tmp_path_factory, make):
  """Three videos, copies of two of them, and files that are none."""
  folder = tmp_path_factory.mktemp("videos")
  for i in range(3):
    write_pan(make, folder / f"v{i}.mp4", seed=i)
  make.ffmpeg("-i", folder / "v0.mp4", "-vf", "scale=48:32", *make.X264, folder / "small.mp4")
  (folder / "v1.txt").write_text("A pattern moves.\nA coloured test pattern scrolls to the left.\n")
  (folder / "text.mp4").write_text("not a video")
  (folder / "empty.mp4").touch()
  for path in folder.iterdir():
    os.utime(path, (1_700_000_000, 1_700_000_000))
  return folder


@pytest.fixture(scope="session")
def made(videos, tmp_path_factory):
  """The dataset that one process makes of them, and what it says."""
  out = tmp_path_factory.mktemp("one") / "clips"
  return out, curate(str(videos), out, settings_of(), workers=1)


def contents(folder):
  """Every file of a dataset by its name."""
  files = (path for path in folder.rglob("*") if path.is_file())
  return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_all_of_a_job_is_as_readable_as_its_neighbours(made):
  """The work folder too: a colleague appends to the dataset."""
  os.umask(mask := os.umask(0))
  assert odd_modes(made[0].parent, mask) == {}


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_rejects_and_tables(made, videos):
  out, said = made
  clips = Dataset.open(out, kind="clip")
  records = {record.source: record for record in map(clips.read, range(len(clips)))}
  assert set(records) == {"v0.mp4", "v1.mp4", "v2.mp4"} and said["clips"] == len(clips) == 3
  assert records["v1.mp4"].captions == (
    "A pattern moves.",
    "A coloured test pattern scrolls to the left.",
  )
  assert records["v0.mp4"].video.shape == (48, 64, 96, 3) and records["v0.mp4"].fps == 24
  assert {"motion", "sharpness"} <= set(json.loads(records["v0.mp4"].scores))
  rejects = {row["source"]: row for row in rows(out / "rejects.jsonl")}
  assert {name: row["reason"] for name, row in rejects.items()} == {
    "small.mp4": "duplicate",
    "text.mp4": "not_video",
    "empty.mp4": "empty",
  }
  assert rejects["small.mp4"]["detail"] == "of v0.mp4:0-48"
  assert rejects["small.mp4"]["start_frame"] == 0 and rejects["small.mp4"]["end_frame"] == 48
  assert said["rejects"] == {"duplicate": 1, "empty": 1, "not_video": 1}
  assert [row["name"] for row in rows(out / "sources.jsonl")] == sorted(
    path.name for path in videos.iterdir() if path.suffix == ".mp4"
  )
  assert said["captions"] == {"given": 2, "used": 2, "sources": 1, "unused": {}}
  assert (out / "report.html").stat().st_size > 1000
  assert {path.name for path in out.parent.iterdir()} == {"clips", ".clips.curate"}


def test_what_a_list_says_is_told_and_its_captions_are_counted(videos, tmp_path):
  """Before the work begins, and when it is done; a rerun counts the same."""
  rows = "path,Text,start,end,fps\n{0},whole,,,24\n{0},part,0,2,24\n{0},late,60,62,24\n"
  (tmp_path / "list.csv").write_text(rows.format(videos / "v1.mp4"))
  told: list[str] = []
  arguments = str(tmp_path / "list.csv"), tmp_path / "clips", settings_of()
  said = curate(*arguments, workers=1, tell=told.append)
  assert told == [f"{tmp_path}/list.csv: columns that are not used: fps"]
  clips = Dataset.open(tmp_path / "clips", kind="clip")
  assert [clips.read(row).captions for row in range(len(clips))] == [("part", "whole")]
  assert said["captions"] == {"given": 3, "used": 2, "sources": 1, "unused": {"beyond_end": 1}}
  assert curate(*arguments, workers=1)["captions"] == said["captions"]
  rows = rows.replace("Text", "says it all").replace("whole", "A fox runs.")
  (tmp_path / "list.csv").write_text(rows.format("gone.mp4"))
  named = settings_of(sources__caption_columns="says_it_all")
  with pytest.raises(BadInput, match=r"list.csv: .* 'says it all' holds text \('A fox runs.'\)"):
    curate(str(tmp_path / "list.csv"), tmp_path / "others", settings_of(), workers=1)
  with pytest.raises(BadInput, match="no file that could be a video"):
    curate(str(tmp_path / "list.csv"), tmp_path / "others", named, workers=1)
  assert not (tmp_path / ".others.curate").exists()


@pytest.mark.slow
def test_other_workers_make_the_same_bytes(made, videos, tmp_path):
  out = tmp_path / "clips"
  subprocess.run(
    [sys.executable, "-c", JOB, str(ROOT), str(videos), str(out), "2"],
    check=True,
    capture_output=True,
    timeout=120,
  )
  assert contents(out) == contents(made[0])


@pytest.mark.slow
def test_a_killed_job_goes_on_and_a_finished_one_stays(made, videos, tmp_path):
  out = tmp_path / "clips"
  command = [sys.executable, "-c", JOB, str(ROOT), str(videos), str(out), "2"]
  job = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
  spools = tmp_path / ".clips.curate" / "spools"
  wait_for(lambda: len(list(spools.glob("*.json"))) >= 2)
  job.send_signal(signal.SIGKILL)
  job.wait()
  kept = {path: path.stat().st_mtime_ns for path in spools.glob("*.json")}
  assert not out.exists()
  curate(str(videos), out, settings_of(), workers=1)
  assert contents(out) == contents(made[0])
  assert {path: path.stat().st_mtime_ns for path in kept} == kept  # were not cut again
  before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
  assert curate(str(videos), out, settings_of(), workers=1)["clips"] == 3
  assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def wait_for(condition, seconds=60):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "waited in vain"
    time.sleep(0.02)


def test_another_job_is_refused_and_appending_adds(made, videos, tmp_path, make):
  out, more = tmp_path / "clips", tmp_path / "more"
  curate(str(videos), out, settings_of(), workers=1)
  more.mkdir()
  write_pan(make, more / "new.mp4", seed=7)
  make.ffmpeg("-i", videos / "v2.mp4", "-vf", "scale=192:128", *make.X264, more / "again.mp4")
  with pytest.raises(BadInput, match=r"holds clips of other sources or settings. Give --append"):
    curate(str(more), out, settings_of(), workers=1)
  old = Dataset.open(out, kind="clip")
  was = [old.read(row).id for row in range(len(old))]
  said = curate(str(more), out, settings_of(), workers=1, is_append=True)
  clips = Dataset.open(out, kind="clip")
  assert [clips.read(row).id for row in range(3)] == was and len(clips) == said["clips"] == 4
  assert clips.read(3).source == "new.mp4"
  clips.verify()
  rejects = {row["source"]: row for row in rows(out / "rejects.jsonl")}
  assert rejects["again.mp4"]["detail"].startswith("of v2.mp4")  # the one that is there stays
  assert rejects["small.mp4"]["reason"] == "duplicate"
  assert {"v0.mp4", "new.mp4", "again.mp4"} < {row["name"] for row in rows(out / "sources.jsonl")}
  fingerprint = curate(str(more), out, settings_of(), workers=1, is_append=True)["fingerprint"]
  assert fingerprint == said["fingerprint"]
  with pytest.raises(BadInput, match="holds no dataset yet"):
    curate(str(more), tmp_path / "other", settings_of(), workers=1, is_append=True)


def test_captions_of_an_endpoint_are_asked_for_once(videos, tmp_path, monkeypatch):
  prompts = (dict(name="short", text="Describe it briefly.", max_characters=300),)
  with STUB["ChatStub"]() as stub:
    monkeypatch.setenv(STUB["VARIABLE"], stub.key)
    chat = {"base_url": stub.url, **STUB["SETTINGS"]}
    asking = settings_of(captions__prompts=prompts, captions__chat=chat)
    said = curate(str(videos), tmp_path / "clips", asking, workers=1)
    asked = len(stub.requests)
    assert asked == said["usage"]["answers"] == 3
    assert said["usage"]["prompt_tokens"] == 300 and said["usage"]["cost"] > 0
    clips = Dataset.open(tmp_path / "clips", kind="clip")
    captions = [clips.read(row).captions for row in range(3)]
    assert sorted(map(len, captions)) == [1, 1, 3]
    again = curate(str(videos), tmp_path / "clips", asking, workers=1)
    assert again["usage"] == said["usage"] and len(stub.requests) == asked
  with pytest.raises(BadInput, match=r"base_url=.* cannot be asked .*Connection refused"):
    curate(str(videos), tmp_path / "others", asking, workers=1)  # nobody answers now
  assert not (tmp_path / "others").exists()


def test_what_the_machine_failed_at_is_tried_again(videos, tmp_path, monkeypatch):
  """A full disk ends the job; a file that was away, or a crash, is not held against its source."""

  def fails(error):
    def run(function, job, **bounds):
      raise error

    return run

  full = OSError(errno.ENOSPC, "No space left on device")
  monkeypatch.setattr(workers, "run_in_child", fails(full))
  with pytest.raises(OSError, match="No space left on device"):
    curate(str(videos), tmp_path / "clips", settings_of(), workers=1)
  monkeypatch.setattr(workers, "run_in_child", fails(ChildFailed("crashed", "signal 11")))
  with pytest.raises(BadInput, match=r"none of 6 sources gives a clip \(6 crashed\)"):
    curate(str(videos), tmp_path / "clips", settings_of(), workers=1)
  monkeypatch.undo()
  assert curate(str(videos), tmp_path / "clips", settings_of(), workers=1)["clips"] == 3


def test_appending_tries_again_what_the_machine_failed_at(made, videos, tmp_path, monkeypatch):
  out, run = tmp_path / "clips", workers.run_in_child

  def fail(function, job, **bounds):
    if job[0].name == "v2.mp4":
      raise ChildFailed("timeout", "took more than 5 s")
    return run(function, job, **bounds)

  monkeypatch.setattr(workers, "run_in_child", fail)
  said = curate(str(videos), out, settings_of(), workers=1)
  assert said["clips"] == 2 and said["rejects"]["timeout"] == 1
  said = curate(str(videos), out, settings_of(), workers=1, is_append=True)  # in vain
  assert said["clips"] == 2 and said["rejects"]["timeout"] == 1
  monkeypatch.undo()
  assert curate(str(videos), out, settings_of(), workers=1)["clips"] == 2  # stays as it is
  said = curate(str(videos), out, settings_of(), workers=1, is_append=True)
  assert said["clips"] == 3 and "timeout" not in said["rejects"]
  assert rows(out / "sources.jsonl") == rows(made[0] / "sources.jsonl")
  assert rows(out / "rejects.jsonl") == rows(made[0] / "rejects.jsonl")
  assert rows(out / "curation.json") == rows(made[0] / "curation.json")


def test_a_corrected_side_car_reaches_captions_that_were_asked_for(videos, tmp_path, monkeypatch):
  given = tmp_path / "videos"
  shutil.copytree(videos, given)
  prompts = (dict(name="short", text="Describe it briefly.", max_characters=300),)
  with STUB["ChatStub"]() as stub:
    monkeypatch.setenv(STUB["VARIABLE"], stub.key)
    chat = {"base_url": stub.url, **STUB["SETTINGS"]}
    asking = settings_of(captions__prompts=prompts, captions__chat=chat)
    curate(str(given), tmp_path / "clips", asking, workers=1)
    (given / "v1.txt").write_text("It stands still.\nNothing moves.\n")  # as many as before
    shutil.rmtree(tmp_path / "clips")
    curate(str(given), tmp_path / "clips", asking, workers=1)
  clips = Dataset.open(tmp_path / "clips", kind="clip")
  captions = {r.source: r.captions for r in map(clips.read, range(len(clips)))}
  assert "It stands still." in captions["v1.mp4"] and "A pattern moves." not in captions["v1.mp4"]


def test_appending_by_other_settings_is_refused_before_any_work(made, videos, tmp_path):
  out = tmp_path / "clips"
  shutil.copytree(made[0], out)
  (tmp_path / "more").mkdir()
  shutil.copy(videos / "v0.mp4", tmp_path / "more" / "new.mp4")
  other = settings_of(windows__max_seconds=7.0)
  with pytest.raises(BadInput, match="--append: .* was made by other settings"):
    curate(str(tmp_path / "more"), out, other, workers=1, is_append=True)
  assert not (tmp_path / ".clips.curate").exists()


@pytest.mark.parametrize("graph, lost", [("analyse", "nothing was decided"), ("write", "1 parts")])
def test_what_a_runner_leaves_out_is_missed(made, videos, tmp_path, monkeypatch, graph, lost):
  """A graph that ends well and did nothing, as on a cluster whose scheduler died."""
  shutil.copytree(made[0].with_name(".clips.curate"), tmp_path / ".clips.curate")
  for path in (tmp_path / ".clips.curate").rglob("*.decision.json"):
    path.unlink()
  monkeypatch.setattr(pipeline, graph, lambda *given, **named: None)
  with pytest.raises(RuntimeError, match=lost):
    curate(str(videos), tmp_path / "clips", settings_of(), workers=1)
  monkeypatch.undo()
  curate(str(videos), tmp_path / "clips", settings_of(), workers=1)
  assert contents(tmp_path / "clips") == contents(made[0])


def test_no_clip_left_says_why(videos, tmp_path):
  with pytest.raises(BadInput, match=r"none of \d sources gives a clip \(4 too_short"):
    curate(str(videos), tmp_path / "clips", settings_of(windows__min_seconds=5.0), workers=1)
  reasons = [row["reason"] for row in rows(tmp_path / ".clips.curate" / "rejects.jsonl")]
  assert reasons.count("too_short") == 4


def test_bad_inputs(videos, tmp_path):
  (tmp_path / "nothing").mkdir()
  with pytest.raises(BadInput, match="nothing"):
    curate(str(tmp_path / "nothing"), tmp_path / "clips", settings_of(), workers=1)
  with pytest.raises(BadInput, match="--no_such=3 is no option of ours or of Beam's"):
    curate(str(videos), tmp_path / "clips", settings_of(), workers=1, options=["--no_such=3"])
  assert not (tmp_path / ".clips.curate").exists()


def touch(folder):
  for path in folder.iterdir():
    os.utime(path, (1_800_000_000, 1_800_000_000))


def test_touched_and_moved_files_are_the_sources_they_were(made, videos, tmp_path, monkeypatch):
  """As after a `git checkout`, a copy to another disk, `rsync` without -t; nothing is cut again."""
  out, given = tmp_path / "clips", tmp_path / "elsewhere"
  for name in ("clips", ".clips.curate"):
    shutil.copytree(made[0].with_name(name), tmp_path / name)
  shutil.copytree(videos, given)
  touch(given)
  before = contents(out)
  monkeypatch.setattr(workers, "run_in_child", refuse_to_cut)
  assert curate(str(given), out, settings_of(), workers=1)["clips"] == 3
  after = contents(out)
  stamps = [row["stamp"] for row in rows(out / "sources.jsonl")]
  assert all("-1800000000000000000-" in stamp for stamp in stamps)
  assert {name for name in before if before[name] != after[name]} == {"sources.jsonl"}
  with monkeypatch.context() as patch:
    patch.setattr(content, "hash_content", None)  # they are not read again
    assert curate(str(given), out, settings_of(), workers=1)["clips"] == 3
  assert contents(out) == after
  shutil.rmtree(out)
  curate(str(given), out, settings_of(), workers=1)
  remade = contents(out)
  assert {name for name in before if before[name] != remade[name]} == {"sources.jsonl"}


def refuse_to_cut(*_, **__):
  raise AssertionError("a source is cut again")


def test_files_that_changed_and_captions_that_were_mended_get_the_right_advice(
  made, videos, tmp_path
):
  out, given = tmp_path / "clips", tmp_path / "given"
  shutil.copytree(made[0], out)
  shutil.copytree(videos, given)
  (given / "v1.txt").write_text("It stands still.\n")
  for append in (False, True):
    with pytest.raises(BadInput, match=r"1 sources .*\(v1\.mp4\)\. sora curate --replace-captions"):
      curate(str(given), out, settings_of(), workers=1, is_append=append)
  with open(given / "v2.mp4", "r+b") as file:  # as many bytes as before
    file.seek(-1, os.SEEK_END)
    byte = file.read(1)
    file.seek(-1, os.SEEK_END)
    file.write(bytes([byte[0] ^ 1]))
  for append in (False, True):
    with pytest.raises(BadInput, match=r"1 sources have the names of others .*v2\.mp4.* other n"):
      curate(str(given), out, settings_of(), workers=1, is_append=append)
  assert contents(out) == contents(made[0])


def test_a_rejected_file_that_was_mended_is_tried_again(made, videos, tmp_path):
  out, given = tmp_path / "clips", tmp_path / "given"
  shutil.copytree(made[0], out)
  shutil.copytree(videos, given)
  shutil.copy(videos / "v2.mp4", given / "empty.mp4")
  with pytest.raises(BadInput, match="Give --append to add new"):
    curate(str(given), out, settings_of(), workers=1)
  said = curate(str(given), out, settings_of(), workers=1, is_append=True)
  assert said["clips"] == 3 and said["rejects"] == {"duplicate": 2, "not_video": 1}
  assert curate(str(given), out, settings_of(), workers=1)["clips"] == 3


def test_take_downs_are_for_good_and_said_so(made, videos, tmp_path):
  out, given = tmp_path / "clips", tmp_path / "given"
  shutil.copytree(made[0], out)
  take_down(out, ["v1.mp4"])
  given.mkdir()
  shutil.copy(videos / "v1.mp4", given)
  with pytest.raises(BadInput, match=r"all 1 sources of the input were taken down .* for good"):
    curate(str(given), out, settings_of(), workers=1, is_append=True)
  said = curate(str(videos), out, settings_of(), workers=1)
  assert said["taken_down"] == 1 and said["clips"] == 2


def test_clips_with_long_captions_are_counted(videos, tmp_path):
  given = tmp_path / "given"
  given.mkdir()
  shutil.copy(videos / "v1.mp4", given)
  (given / "v1.txt").write_text(f"short\n{'long, ' * 101}\n")
  said = curate(str(given), tmp_path / "clips", settings_of(), workers=1)
  assert said["long_captions"] == {"clips": 1, "longest": "v1.mp4:0-48", "words": 202}


def test_appending_another_video_of_a_known_name_is_refused(made, videos, tmp_path):
  out = tmp_path / "clips"
  shutil.copytree(made[0], out)
  (tmp_path / "more").mkdir()
  shutil.copy(videos / "v0.mp4", tmp_path / "more" / "v1.mp4")
  with pytest.raises(BadInput, match=r"1 sources have the names of others in .* \(v1\.mp4\)"):
    curate(str(tmp_path / "more"), out, settings_of(), workers=1, is_append=True)


def test_progress_counts_what_is_cut_by_these_settings(videos, tmp_path):
  """Pieces that other settings left are no progress, until they are made anew."""
  given, told = tmp_path / "videos", []
  given.mkdir()
  for name in ("v0.mp4", "text.mp4"):
    shutil.copy(videos / name, given)
  out = tmp_path / "clips"
  curate(str(given), out, settings_of(), workers=1)
  shutil.rmtree(out)
  for _ in range(2):
    other = settings_of(windows__min_seconds=0.6)
    curate(str(given), out, other, workers=1, progress=lambda *counts: told.append(counts))
    shutil.rmtree(out)
    assert told[-1] == ("cut", 2, 2)
    told.append(("again", 0, 0))
  first, second = told[: told.index(("again", 0, 0))], told[told.index(("again", 0, 0)) + 1 :]
  assert first[0] == ("cut", 0, 2) and second[0] == ("cut", 2, 2)

"""Take-downs leave nothing of a source, anywhere, and can be killed at any step."""

import dataclasses
import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import change
from data_pipeline.curate import take_down as module
from data_pipeline.curate.answers import Answers
from data_pipeline.curate.settings import read_settings
from data_pipeline.curate.spool import Decision, Work, decision_path, list_spools, write_rows
from data_pipeline.curate.spool_writer import Spool, read_summary, spool_key
from data_pipeline.curate.take_down import take_down
from data_pipeline.curate.types import Reject, Source
from data_pipeline.dataset import Dataset
from data_pipeline.derived import register_derived
from data_pipeline.errors import BadInput
from data_pipeline.folder import Claim
from data_pipeline.records import ClipRecord
from data_pipeline.writer import DatasetWriter
from experiments import curate_default

NAMES = [f"videos/{name}.mp4" for name in ("anna", "bert", "cleo", "dora")]
SETTINGS = read_settings(curate_default.get_config("debug").curate.to_dict())


def clip(source, start):
  return ClipRecord(
    id=f"{source}:{start}-{start + 2}",
    source=source,
    licence="",
    split="train",
    start_frame=start,
    fps=8.0,
    video=np.full((2, 8, 8, 3), sum(source.encode()) % 251, np.uint8),
    captions=(f"said of {source} at {start}",),
    attributes="",
    truth=b"",
  )


def clips_of(names=NAMES):
  return [clip(name, start) for name in names for start in (0, 2, 4)]


def latents_of(make_latent, clips):
  fields = ("id", "source", "split", "start_frame")
  return [
    make_latent(i, **{f: getattr(c, f) for f in fields}, captions=(), text_ids={"words": ()})
    for i, c in enumerate(clips)
  ]


def write(path, records, kind, meta):
  with DatasetWriter(path, kind, name=kind, shard_bytes=2000, meta=meta) as writer:
    for record in records:
      writer.add(record)
  return Dataset.open(path, kind=kind)


def spool(work, name):
  """What a run leaves in the work folder for a source."""
  made = Spool(Source(name=name, path=f"/in/{name}"), SETTINGS, work.spools)
  for record in clips_of([name]):
    made.add(record, dict(id=record.id, source=name, captions=1))
  made.reject(Reject(name, 6, "too_short", 7, "1 frame"))
  summary = made.finish()
  answers = [f"{name[7:11].encode().hex()}{i}" for i in range(3)]
  for key in answers:
    Answers(work.answers).get(key, lambda: {"text": f"said of {name}"})
  decision = Decision("digest", {}, answers=answers)
  write_rows(decision_path(summary, work), [dataclasses.asdict(decision)])


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
  monkeypatch.setattr(os, "fsync", lambda file: None)  # no power is cut here


@pytest.fixture
def out(tmp_path, make_latent):
  """A curated dataset, its work folder, and two datasets of latents, one of them listed."""
  out = tmp_path / "clips"
  fingerprint = write(out, clips_of(), "clip", {"curation": "x"}).fingerprint
  for name in ("listed", "told"):
    latents = latents_of(make_latent, clips_of())
    write(tmp_path / name, latents, "latent", {"clips": fingerprint, "vae": "v"})
  register_derived(out, tmp_path / "listed")
  work = Work.of(out)
  work.prepare()
  for name in NAMES:
    spool(work, name)
  work.write_sources(Source(name=name, path=f"/in/{name}") for name in NAMES)
  rows = [dict(name=n, clips=[dict(id=c.id) for c in clips_of([n])]) for n in NAMES]
  write_rows(out / "sources.jsonl", rows)
  rejects = [Reject(name, 6, "too_short", 7, "1 frame").row() for name in NAMES]
  rejects.append(Reject("videos/mute.txt", None, "not_video").row())
  write_rows(out / "rejects.jsonl", rejects)
  (out / "curation.json").write_text("{}\n")
  write_rows(work.next / "rejects.jsonl", rejects)
  (work.folder / "append").mkdir()
  (work.folder / "append" / "clips").write_text(NAMES[0])
  return out


def ids(path):
  (dataset := Dataset.open(path, kind=None)).verify()
  return [dataset.read(row).id for row in range(len(dataset))]


def table(path, field):
  return [json.loads(line)[field] for line in path.read_text().splitlines()]


def holders(folder, text):
  """Files that hold a text, by name; a whole dataset is small enough."""
  files = [path for path in folder.rglob("*") if path.is_file()]
  return sorted(path.name for path in files if text.encode() in path.read_bytes())


def state(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
  }


def check_gone(tmp_path, gone):
  """Nothing of the sources is left but their names in the blocklist."""
  out = tmp_path / "clips"
  kept = [name for name in NAMES if name not in gone]
  for path in (out, tmp_path / "listed", tmp_path / "told"):
    assert ids(path) == [record.id for record in clips_of(kept)]
  fingerprint = Dataset.open(out, kind="clip").fingerprint
  for name in ("listed", "told"):
    assert Dataset.open(tmp_path / name, kind="latent").meta == {"clips": fingerprint, "vae": "v"}
  for name in gone:
    assert holders(tmp_path, name) == ["removed.jsonl"]
  work = Work.of(out)
  assert sorted(s["source"]["name"] for _, s in list_spools(work)) == kept
  assert len([p for p in work.answers.rglob("*") if p.is_file()]) == 3 * len(kept)
  assert len(list(work.spools.iterdir())) == 3 * len(kept)
  assert table(out / "sources.jsonl", "name") == kept
  assert table(out / "rejects.jsonl", "source") == [*kept, "videos/mute.txt"]
  assert table(out / "removed.jsonl", "source") == sorted(gone)
  assert not work.take_down.exists() and not work.next.exists()
  assert not (work.folder / "append").exists()
  assert {path.name for path in tmp_path.iterdir()} == {"clips", "listed", "told", ".clips.curate"}


def test_nothing_of_the_sources_is_left_anywhere(out, tmp_path, make_latent):
  gone = {NAMES[0], NAMES[2]}
  assert "sources.jsonl" in holders(tmp_path, NAMES[0])
  bert, spools = Source(NAMES[1], f"/in/{NAMES[1]}"), Work.of(out).spools
  kept = read_summary(bert, SETTINGS, spools)
  result = take_down(out, gone, [tmp_path / "told"])
  paths = {str(tmp_path / name): 6 for name in ("listed", "told")}
  removed = {"clips": 6} | paths
  assert result == dict(removed=removed, sources=sorted(gone), missing=[], unfinished=[])
  check_gone(tmp_path, gone)
  anew = write(tmp_path / "anew", clips_of([NAMES[1], NAMES[3]]), "clip", {"curation": "x"})
  assert Dataset.open(out, kind="clip").fingerprint == anew.fingerprint
  assert kept is not None and kept == read_summary(bert, SETTINGS, spools)
  assert (out / "curation.json").read_text() == "{}\n"


def test_a_second_time_changes_nothing(out, tmp_path):
  take_down(out, [NAMES[0]], [tmp_path / "told"])
  before = state(tmp_path)
  result = take_down(out, [NAMES[0]], [tmp_path / "told"])
  assert set(result["removed"].values()) == {0} and state(tmp_path) == before
  take_down(out, [NAMES[0], NAMES[1]], [tmp_path / "told"])
  check_gone(tmp_path, {NAMES[0], NAMES[1]})


class Killed(BaseException): ...


def kill_at(monkeypatch, step):
  """From the call number `step` on, nothing that would change something does; but for the locks,
  which go with their process."""
  left = [step]

  def dying(function):
    def call(*arguments, **named):
      if not str(arguments[0]).endswith(".lock"):
        if left[0] == 0:
          raise Killed
        left[0] -= 1
      return function(*arguments, **named)

    return call

  steps = {Path: "unlink rename", shutil: "rmtree", change: "remove replace", module: "write_rows"}
  for owner, names in steps.items():
    for name in names.split():
      monkeypatch.setattr(owner, name, dying(getattr(owner, name)))


@pytest.mark.slow
@pytest.mark.parametrize("now, stride", [(NAMES[0], 1), (NAMES[1], 7)])
def test_a_kill_at_any_step_can_be_made_good(out, tmp_path, monkeypatch, now, stride):
  """The same command completes it, and so does one for another source."""
  told, fresh = [tmp_path / "told"], tmp_path.parent / f"{tmp_path.name}-fresh"
  shutil.copytree(tmp_path, fresh)
  for step in itertools.count(0, stride):
    with monkeypatch.context() as patch:
      kill_at(patch, step)
      try:
        take_down(out, [NAMES[0]], told)
        break
      except Killed:
        pass
    is_noted = (out / "removed.jsonl").exists() or not out.exists()
    take_down(out, [now], told)
    check_gone(tmp_path, {now, NAMES[0]} if is_noted else {now})
    shutil.rmtree(tmp_path)
    shutil.copytree(fresh, tmp_path)
  assert step >= 28
  check_gone(tmp_path, {NAMES[0]})


def test_latents_that_were_away_can_be_mended_later(out, tmp_path):
  told, away = tmp_path / "told", tmp_path / "away"
  told.rename(away)
  (tmp_path / "listed").rename(tmp_path / "unplugged")
  result = take_down(out, [NAMES[0]], [told])
  assert result["missing"] == [str(tmp_path / "listed"), str(told)]
  assert result["removed"] == {"clips": 3}
  take_down(out, [NAMES[1]], [told])
  change.append(out, [clip("videos/new.mp4", 0)])
  away.rename(told)
  (tmp_path / "unplugged").rename(tmp_path / "listed")
  result = take_down(out, [NAMES[0]], [told])
  assert result["removed"] == {"clips": 0, str(told): 6, str(tmp_path / "listed"): 6}
  clips = [record.id for record in clips_of(NAMES[2:])]
  assert ids(told) == ids(tmp_path / "listed") == clips
  change.remove(out, ["videos/new.mp4"])  # what the clips were after the second take-down
  now = Dataset.open(out, kind="clip").fingerprint
  assert Dataset.open(told, kind="latent").meta["clips"] == now
  assert not Work.of(out).take_down.exists()


def test_latents_of_other_clips_keep_their_word(out, tmp_path, make_latent):
  latents = latents_of(make_latent, clips_of())
  write(tmp_path / "other", latents, "latent", {"clips": "f" * 64})
  write(tmp_path / "plain", latents, "latent", {})
  result = take_down(out, [NAMES[0]], [tmp_path / "other", tmp_path / "plain", out])
  assert sorted(result["removed"].values()) == [3] * 4
  assert Dataset.open(tmp_path / "other", kind="latent").meta == {"clips": "f" * 64}
  assert Dataset.open(tmp_path / "plain", kind="latent").meta == {}


def test_refuses_before_anything_is_changed(out, tmp_path, make_latent):
  before = state(tmp_path)
  with pytest.raises(BadInput, match="'a', 'b', 'c' and 2 more is in no dataset or table"):
    take_down(out, ["a", "b", "c", "d", "\udcff", NAMES[0]])
  with pytest.raises(BadInput, match="'\\\\udcff' is in no dataset"):
    take_down(out, ["\udcff"])
  with pytest.raises(BadInput, match="clips would hold no records without the sources"):
    take_down(out, NAMES)
  with pytest.raises(BadInput, match="holds no dataset. Give the folder that sora curate made"):
    take_down(tmp_path / "nowhere", NAMES)
  with pytest.raises(TypeError, match="sources is a string"):
    take_down(out, NAMES[0])
  assert state(tmp_path) == before
  write(tmp_path / "few", latents_of(make_latent, clips_of(NAMES[:1])), "latent", {})
  with pytest.raises(BadInput, match="few would hold no records"):
    take_down(out, [NAMES[0]], [tmp_path / "few"])
  with Claim(Work.of(out).folder), pytest.raises(BadInput, match="by another process"):
    take_down(out, [NAMES[0]])
  shutil.rmtree(tmp_path / "few")
  assert state(tmp_path) == before


@pytest.mark.parametrize("known_by", ["spool", "sources.jsonl", "rejects.jsonl"])
def test_sources_without_clips_can_be_blocked(out, known_by):
  work, name = Work.of(out), "videos/none.mp4"
  if known_by == "spool":
    made = Spool(Source(name=name, path="/in"), SETTINGS, work.spools)
    made.reject(Reject(name, None, "not_video"))
    made.finish()
  else:
    write_rows(out / known_by, [{"name": name, "source": name, "clips": []}])
  (work.spools / f"{spool_key(name)}.0123.part").write_text("unfinished")
  assert take_down(out, [name])["removed"]["clips"] == 0
  assert table(out / "removed.jsonl", "source") == [name]
  assert holders(work.spools, name) == [] and not list(work.spools.glob("*.part"))
  assert name not in (out / "sources.jsonl").read_text() + (out / "rejects.jsonl").read_text()


def test_a_dataset_that_no_curation_made(tmp_path):
  out = tmp_path / "plain"
  write(out, clips_of(), "clip", {})
  result = take_down(out, [NAMES[3]])
  assert result == dict(removed={"clips": 3}, sources=[NAMES[3]], missing=[], unfinished=[])
  assert ids(out) == [record.id for record in clips_of(NAMES[:3])]
  assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_what_unfinished_jobs_wrote_is_removed_unless_they_run(out, tmp_path):
  for path in (tmp_path / "listed", tmp_path / "begun"):
    parts = path.with_name(f".{path.name}.parts") / "parts-0" / "train-00000"
    parts.mkdir(parents=True)
    (parts / "train-0").write_text(NAMES[0])
  finished = tmp_path / ".[new].finished-0123"
  finished.mkdir()
  (finished / "train-0").write_text(NAMES[0])
  for name in ("begun", "[new]", "soon"):
    register_derived(out, tmp_path / name)
  with Claim(tmp_path / "soon"), pytest.raises(BadInput, match="is being written by another"):
    take_down(out, [NAMES[0]])  # it has not written anything yet
  with Claim(tmp_path / "begun"), pytest.raises(BadInput, match="is being written by another"):
    take_down(out, [NAMES[0]])
  assert (tmp_path / ".begun.parts").exists() and not (out / "removed.jsonl").exists()
  result = take_down(out, [NAMES[0]])
  assert result["unfinished"] == [str(tmp_path / name) for name in ("listed", "[new]", "begun")]
  assert result["missing"] == [str(tmp_path / name) for name in ("[new]", "begun", "soon")]
  assert not list(tmp_path.glob(".*.parts")) and not finished.exists()

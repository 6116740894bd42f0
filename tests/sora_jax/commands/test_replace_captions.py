"""Mended captions reach clips and latents in place, as if all had been made with them."""

import contextlib
import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import texture

from data_pipeline.curate import workers
from data_pipeline.dataset import Dataset
from data_pipeline.video_writer import encode_video
from sora_jax.commands.entry import run_command

CURATE = "--config=experiments/curate_default.py:debug"
LATENTS = {  # options of `sora encode` for each dataset of latents
  "listed": ("--text=bytes", "--captions=1", "--long-captions=other"),
  "told": ("--text=bytes,minilm", "--long-captions=cut"),
}
RULES = """
from ml_collections import ConfigDict

def get_config(arg="encode"):
  c = ConfigDict()
  c.encode = dict(renditions=dict(small=dict(pixels=1024), stills=dict(images=2)))
  return c.lock()
"""


def write_videos(folder):
  """The first of two shots; things are said of three."""
  folder.mkdir()
  for seed in range(5):
    pictures = [texture(10 * seed + shot, 64, 144) for shot in range(1 + (seed == 0))]
    frames = [np.ascontiguousarray(p[:, t : t + 96]) for p in pictures for t in range(24)]
    video = encode_video(frames, width=96, height=64, fps=24, codec="h264", quality=20)
    (folder / f"{seed}@2x.mp4").write_bytes(video.data)
  (folder / "1@2x.txt").write_text("A pattern moves.\nIt moves to the left.\n")
  (folder / "2@2x.txt").write_text("Said of it then.\n")
  spans = [dict(start_seconds=0, end_seconds=1, captions=["the first shot"])]
  (folder / "0@2x.json").write_text(json.dumps({"captions": ["of both"], "spans": spans}))


def mend(folder):
  """Says other things of two, nothing of the third, something of the next; touches the last."""
  (folder / "1@2x.txt").write_text("A pattern is still.\n")
  spans = [
    dict(start_seconds=0, end_seconds=1, captions=["a shot " + "that is long " * 300, "short"]),
    dict(start_seconds=1, end_seconds=2, captions=["another shot", "one more"]),
    dict(start_seconds=50, end_seconds=60, captions=["of a longer video"]),
  ]
  (folder / "0@2x.json").write_text(json.dumps({"licence": "CC0-1.0", "spans": spans}))
  (folder / "2@2x.txt").unlink()
  (folder / "3@2x.txt").write_text("Said of it now.\n")
  for seed in (3, 4):
    os.utime(folder / f"{seed}@2x.mp4", (1_800_000_000, 1_800_000_000))


def make_all(folder, videos):
  """Clips and latents of the videos, below a folder."""
  clips = folder / "clips"
  run_command("curate", [CURATE, f"--input={videos}", f"--out={clips}", "--workers=1"])
  (folder / "rules.py").write_text(RULES)
  for name, options in LATENTS.items():
    config = [f"--config={folder / 'rules.py'}"] if name == "told" else []
    words = [f"--workdir={folder.parent / 'vae'}", f"--data={clips}", f"--out={folder / name}"]
    run_command("encode", [*words, *options, *config])


@pytest.fixture(scope="module")
def made(tmp_path_factory, draw_vae, request):
  """A folder with `videos`, `mended` ones, and what was made of either: `before`, `fresh`."""
  folder = tmp_path_factory.mktemp("captions")
  draw_vae(folder / "vae")
  write_videos(folder / "videos")
  shutil.copytree(folder / "videos", folder / "mended")
  mend(folder / "mended")
  with contextlib.chdir(request.config.rootpath):
    for name, videos in (("before", "videos"), ("fresh", "mended")):
      (folder / name).mkdir()
      make_all(folder / name, folder / videos)
  return folder


@pytest.fixture
def copied(made, tmp_path):
  """The clips and latents that were made before, at another place; `told` is not registered."""
  folder = tmp_path / "all"
  shutil.copytree(made / "before", folder)
  (folder / "clips" / "derived.json").write_text('["../listed"]')
  return folder


def words_of(made, folder):
  told = () if not (folder / "told").exists() else (f"--data={folder / 'told'}",)
  given = (CURATE, f"--input={made / 'mended'}", f"--out={folder / 'clips'}")
  return (*given, "--replace-captions", "--workers=1", *told)


def records_of(path):
  dataset = Dataset.open(path, kind=None)
  dataset.verify()
  return [dataset.read(row) for row in range(len(dataset))]


def shards_of(path):
  return {file.name: file.read_bytes() for file in path.glob("*.array_record-*")}


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def check_like_fresh(made, folder):
  """Everything is as if it had been made of the mended videos at once."""
  fresh = made / "fresh"
  for name in ("clips", *LATENTS):
    found, wanted = (Dataset.open(place / name, kind=None) for place in (folder, fresh))
    assert found.fingerprint == wanted.fingerprint and found.meta == wanted.meta
    assert shards_of(folder / name) == shards_of(fresh / name)
    found.verify()
  for table in ("sources.jsonl", "rejects.jsonl"):
    assert rows(folder / "clips" / table) == rows(fresh / "clips" / table)
  left = {path.name for path in folder.iterdir()}
  assert left == {"clips", ".clips.curate", "listed", "told", "rules.py"}
  assert not (folder / ".clips.curate" / "captions.json").exists()


def test_all_is_as_if_made_anew_and_no_video_is_touched(sora, made, copied):
  before = {name: records_of(copied / name) for name in ("clips", *LATENTS)}
  done = sora("curate", *words_of(made, copied))
  changed = {name: 0 for name in before}
  for name, old in before.items():
    for one, other in zip(old, records_of(copied / name), strict=True):
      assert (one.id, one.source, one.split) == (other.id, other.source, other.split)
      changed[name] += (one.captions, one.licence) != (other.captions, other.licence)
      if name == "clips":
        assert one.video.data == other.video.data
      else:
        assert one.latent.tobytes() == other.latent.tobytes()
  result = done.result
  assert changed["clips"] == result["clips"] == 5 and result["unchanged"] == 1
  assert result["emptied"] == 1 and result["sources"] == 4
  assert result["latents"] == {str(copied / name): changed[name] for name in LATENTS}
  assert result["missing"] == result["unfinished"] == [] and result["new"] == 0
  check_like_fresh(made, copied)
  report = json.loads((copied / "clips" / "report.json").read_text())
  fresh = json.loads((made / "fresh" / "clips" / "report.json").read_text())
  assert report == fresh
  told = {r.id: r for r in records_of(copied / "told")}
  (long,) = {r.captions for r in told.values() if r.id.startswith("0@2x.mp4:0-22@")}
  assert long[0].startswith("a shot that is long") and 0 < len(long[0]) < 512


def test_a_second_time_and_reruns_change_nothing(sora, made, copied):
  assert sora("curate", *words_of(made, copied)).code == 0
  before = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
  again = sora("curate", *words_of(made, copied)).result
  assert again["clips"] == 0 and set(again["latents"].values()) == {0}
  given = (CURATE, f"--input={made / 'mended'}", f"--out={copied / 'clips'}", "--workers=1")
  assert sora("curate", *given).result["clips"] == 6
  assert sora("curate", *given, "--append").result["clips"] == 6
  after = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
  assert after == before


def test_spools_follow_without_decoding(sora, made, copied, monkeypatch):
  assert sora("curate", *words_of(made, copied)).code == 0
  shutil.rmtree(copied / "clips")
  monkeypatch.setattr(workers, "run_in_child", None)  # nothing is cut again
  given = (CURATE, f"--input={made / 'mended'}", f"--out={copied / 'clips'}", "--workers=1")
  assert sora("curate", *given).result["clips"] == 6
  assert shards_of(copied / "clips") == shards_of(made / "fresh" / "clips")


class Killed(BaseException): ...


def kill_at(patch, step):
  """From the call number `step` on, nothing that would change a name on the disk does."""
  left = [step]

  def dying(function):
    def call(*arguments, **named):
      if not str(arguments[0]).endswith(".lock"):
        if left[0] == 0:
          raise Killed
        left[0] -= 1
      return function(*arguments, **named)

    return call

  for owner, names in ((Path, "unlink rename"), (shutil, "rmtree"), (os, "replace")):
    for name in names.split():
      patch.setattr(owner, name, dying(getattr(owner, name)))


STRIDE = 9  # of the steps some are tested; all of them take a minute


@pytest.mark.slow
def test_a_kill_at_any_step_can_be_made_good(sora, made, copied, tmp_path, monkeypatch):
  ready = tmp_path / "ready"
  shutil.copytree(copied, ready)
  ends = []
  for step in itertools.count(0, STRIDE):
    with monkeypatch.context() as patch:
      kill_at(patch, step)
      try:
        run_command("curate", [*words_of(made, copied)])
        break
      except Killed:
        pass
    ends.append((copied / ".clips.curate" / "captions.json").exists())
    done = sora("curate", *words_of(made, copied))
    assert done.code == 0, done.err
    check_like_fresh(made, copied)
    shutil.rmtree(copied)
    shutil.copytree(ready, copied)
  assert len(ends) >= 5 and True in ends and False in ends


def test_latents_that_were_away_get_their_captions_later(sora, made, copied):
  """And a take-down in between finds them, too."""
  (copied / "listed").rename(copied / "unplugged")
  done = sora("curate", *words_of(made, copied)).result
  assert done["missing"] == [str(copied / "listed")] and done["clips"] == 5
  assert sora("curate", f"--out={copied / 'clips'}", "--remove=1@2x.mp4").code == 0
  (copied / "unplugged").rename(copied / "listed")
  refused = sora("curate", *words_of(made, copied))
  assert refused.code == 2 and "still holds sources that were taken down" in refused.err
  remove = ("curate", f"--out={copied / 'clips'}", "--remove=1@2x.mp4", f"--data={copied / 'told'}")
  assert sora(*remove).code == 0
  assert sora("curate", *words_of(made, copied)).result["clips"] == 0
  assert not (copied / ".clips.curate" / "captions.json").exists()
  clips = Dataset.open(copied / "clips", kind="clip").fingerprint
  for name in LATENTS:
    assert Dataset.open(copied / name, kind="latent").meta["clips"] == clips
    fresh = [r for r in records_of(made / "fresh" / name) if r.source != "1@2x.mp4"]
    for one, other in zip(records_of(copied / name), fresh, strict=True):
      assert (one.id, one.captions) == (other.id, other.captions)


def test_captions_too_long_for_latents_are_refused_before_anything_changes(sora, made, copied):
  meta = copied / "listed" / "meta.json"
  meta.write_text(meta.read_text().replace('"long_captions": "other"', '"long_captions": "refuse"'))
  before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
  done = sora("curate", *words_of(made, copied))
  assert done.code == 2 and "caption 1 of clip '0@2x.mp4:0-22'" in done.err
  assert "over max_tokens=512 of text encoder bytes" in done.err and "listed" in done.err
  assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_refuses_what_does_not_fit(sora, made, copied, tmp_path):
  words = words_of(made, copied)
  done = sora("curate", *words, "--append")
  assert done.code == 2 and "--append does not go with --replace-captions" in done.err
  done = sora("curate", *words, "--config.curate.captions.measured=own")
  assert done.code == 2 and "was made by other settings of captions or write" in done.err
  given = tmp_path / "given"
  shutil.copytree(made / "videos", given)
  (given / "1@2x.json").write_text('{"split": "held_out_combination"}')
  done = sora("curate", CURATE, f"--input={given}", f"--out={copied / 'clips'}", words[3])
  assert done.code == 2 and "'1@2x.mp4' is of split held_out_combination now" in done.err
  done = sora("curate", *words, f"--data={copied / 'clips'}", f"--data={made / 'vae'}")
  assert done.code == 2
  done = sora("curate", CURATE, f"--input={given}", f"--out={tmp_path / 'none'}", words[3])
  assert done.code == 2 and "holds no dataset" in done.err
  assert not list(tmp_path.glob(".none*"))

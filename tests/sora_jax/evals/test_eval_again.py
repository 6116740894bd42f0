"""`sora eval` and `sora demo` run again: what was measured is kept, what changed is done anew."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.records import ClipRecord
from data_pipeline.worlds.judge import Verdict
from data_pipeline.writer import DatasetWriter
from sora_jax.commands import demo, encode_parts
from sora_jax.commands import eval as eval_command
from sora_jax.commands import train as train_command

FACTS = json.dumps(
  dict(family="drift", objects=[{"direction": "left"}], events={"bounces": 0}, seconds=0.625)
)
BRIEF = json.dumps(json.loads(FACTS) | {"seconds": 0.5})
RIGHT = Verdict({"colour": True, "shape": True, "direction": True}, {})
LOOK = eval_command.Look(6, 16, 16, 8.0)


def clip(i: int, split: str, frames=6, fps=8.0, **settings) -> ClipRecord:
  fields: dict[str, Any] = dict(captions=("a", "b"), attributes=FACTS, truth=b"truth")
  video = np.full((frames, 16, 16, 3), i, np.uint8)
  place = dict(id=f"{split}/{i}", source=f"{split}/{i}", licence="CC0-1.0", split=split)
  return ClipRecord(**place, start_frame=0, fps=fps, video=video, **(fields | settings))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  path = tmp_path_factory.mktemp("eval") / "clips"
  with DatasetWriter(path, "clip", name="clips", shard_bytes=2**20, meta={}) as writer:
    for split in ("held_out", "held_out_combination"):
      writer.add(clip(0, split, fps=24.0))
      writer.add(clip(1, split, frames=1))
      writer.add(clip(2, split, captions=()))
      writer.add(clip(6, split, attributes=BRIEF))
      for i in range(7, 12):  # the most common look, in which no motion can be told
        writer.add(clip(i, split, frames=5))
      for i in range(3, 6):
        writer.add(clip(i, split))
  return Dataset.open(path, kind="clip")


@pytest.fixture
def ask(clips, tmp_path, monkeypatch):
  """Measures with a model that counts the videos asked of it."""
  monkeypatch.setattr(eval_command, "judge_all", lambda videos, _: [RIGHT for _ in videos])
  monkeypatch.setattr(eval_command, "describe", lambda _: {"fingerprint": "text"})
  sizes, sizes_of_clips = [], dict(seconds=0.75, width=16, height=16, fps=8.0)

  class Pipeline(SimpleNamespace):
    def __call__(self, requests, **size):
      sizes.append(size)
      return (np.zeros((6, 16, 16, 3), np.uint8) for _ in requests)

    def choose_shift(self, settings, **size):
      assert size == sizes_of_clips and settings.alpha == 0.0
      return 1.5

  def measure(step=4, weight=1.0, seed=0, samples=2, **given):
    sampler = dict(seconds=9.0, width=1, height=1, fps=1.0, steps=2, guidance=3.0)
    sampler |= dict(solver="euler", shift=0.0, rows=2)
    config = ConfigDict({"sample": sampler, "model": {"name": "dit", "patch": (1, 2, 2)}})
    pipeline = Pipeline(
      encoder=None,
      vae=SimpleNamespace(fingerprint="vae"),
      sampler=SimpleNamespace(params={"w": np.array([weight])}),
    )
    args = dict.fromkeys(("size", "seconds", "fps", "steps", "solver", "shift"))
    args = SimpleNamespace(**(args | {"guidance": None} | given), seed=seed, samples=samples)
    opened = SimpleNamespace(config=config, step=step, pipeline=pipeline)
    before = len(sizes)
    result = eval_command.measure_adherence(opened, clips, args, tmp_path)
    return result, sizes[before:]

  return measure


def test_does_not_sample_again_what_was_asked(ask, tmp_path):
  first, sizes = ask()
  assert len(sizes) == 2 and len(first["samples"]) == 4
  assert [sample["draw"] for sample in first["samples"]] == [0, 1, 2**20, 2**20 + 1]
  assert sizes[0]["fps"] == 8.0 and sizes[0]["seconds"] == 0.75  # of the clips, not the config
  assert first["sampler"]["alpha"] == sizes[0]["settings"].alpha == 1.5  # as the run was trained
  assert first["adherence"]["colour"]["held_out_ceiling"] == 1.0
  assert ask() == (first, [])
  (tmp_path / first["samples"][3]["file"]).unlink()
  assert ask()[1]
  (tmp_path / "scores.json").write_text("{")
  assert ask()[1]


@pytest.mark.parametrize(
  "change", [dict(step=5), dict(weight=2.0), dict(seed=1), dict(samples=3), dict(guidance=2.0)]
)
def test_samples_again_what_changed(ask, change):
  ask()
  assert len(ask(**change)[1]) == 2
  assert ask(**change)[1] == []


def test_a_question_that_cannot_be_asked_loses_no_scores(ask, tmp_path):
  first, _ = ask()
  with pytest.raises(BadInput, match="fewer than samples=9999"):
    ask(samples=9999)
  assert (tmp_path / "scores.json").exists() and ask() == (first, [])


def test_another_judge_judges_anew(ask, monkeypatch):
  ask()
  monkeypatch.setattr(eval_command.judge, "VERSION", eval_command.judge.VERSION + 1)
  assert len(ask()[1]) == 2


def test_chooses_by_shape_rate_and_captions(clips):
  assert eval_command.common_look(clips, "held_out") == LOOK
  chosen = eval_command.choose_clips(clips, "held_out", 3, LOOK)
  assert [record.id for record in chosen] == ["held_out/3", "held_out/4", "held_out/5"]
  with pytest.raises(BadInput, match="has 3 clips of 16x16, 6 frames at 8 a second"):
    eval_command.choose_clips(clips, "held_out", 4, LOOK)
  with pytest.raises(BadInput, match="train of .* has no clips of 5 frames and 0.6 seconds"):
    eval_command.common_look(clips, "train")


def test_a_stage_that_is_done_adds_no_time(tmp_path, monkeypatch):
  path = tmp_path / "seconds.json"
  now = [0.0]
  monkeypatch.setattr(demo.time, "perf_counter", lambda: now[0])

  def run(seconds, error=None):
    with demo.Stopwatch(path)("dit"):
      now[0] += seconds
      if error:
        raise error

  with pytest.raises(KeyboardInterrupt):
    run(5.0, KeyboardInterrupt())
  run(7.0)
  peak = json.loads(path.read_text())["peak_rss_gib"]
  done = {"seconds": 12.0, "sessions": 2, "cut_off": 0, "commits": ["abc"], "done": True}
  kept = {"stages": {"dit": done}, "peak_rss_gib": peak + 100}
  path.write_text(json.dumps(kept))
  run(3.0)
  assert json.loads(path.read_text()) == kept
  assert demo.Stopwatch(path).total()["dit"] == 12.0 and peak > 0
  for old in ({"dit": 3.0}, {"stages": {"dit": {"seconds": 3.0}}, "peak_rss_gib": 1.0}):
    path.write_text(json.dumps(old))
    with pytest.raises(BadInput, match="of another version"):
      demo.Stopwatch(path)


@pytest.mark.parametrize("captions, kept", [(0, ("a", "b")), (1, ("a",))])
def test_trims_all_that_latents_do_not_keep(captions, kept):
  record = clip(3, "train")
  trimmed = encode_parts.trim(record, record.captions[: captions or None])
  assert trimmed.captions == kept and trimmed.truth == b""
  assert trimmed.video.base is None and trimmed.video.tolist() == [[[[3, 3, 3]]]]


def test_exports_a_step_once(clips, tmp_path, monkeypatch):
  codec = dict(name="vae", widths=[8], blocks=[1], strides=[[4, 4]], taps=2, latent_channels=3)
  params, written = {"w": np.ones(2)}, []

  def save(folder, **fields):
    written.append(folder.name)
    folder.mkdir(parents=True)
    (folder / "number").write_text(str(len(written)))
    return "fingerprint"

  monkeypatch.setattr(train_command, "measure_statistics", lambda *_: {})
  monkeypatch.setattr(train_command, "save_frozen_vae", save)
  config = SimpleNamespace(model=ConfigDict(codec))
  (tmp_path / "frozen" / "vae.partial").mkdir(parents=True)  # of a killed session
  for step, number in [(4, "1"), (4, "1"), (8, "2")]:
    train_command.export_vae(config, params, step, clips, tmp_path)
    assert (tmp_path / "frozen" / "vae" / "number").read_text() == number
    assert [path.name for path in (tmp_path / "frozen").iterdir()] == ["vae"]
  assert written == ["vae.partial"] * 2

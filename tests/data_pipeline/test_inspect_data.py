"""`describe_dataset` counts what was written; `print_dataset` shows it on stderr."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
from rich.console import Console

from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.records import LATENT_VERSION, ClipRecord, LatentRecord
from data_pipeline.renditions import RENDITION, name_rendition
from data_pipeline.writer import DatasetWriter
from sora_jax.commands import inspect, inspect_data, inspect_page
from sora_jax.commands.inspect_data import describe_dataset, print_dataset

COMMON = dict(licence="CC0-1.0", start_frame=0, attributes="", scores="")


@pytest.fixture
def latents(tmp_path):
  shapes = [(1, 2, 2), (3, 2, 4), (3, 2, 4), (5, 4, 4)]
  path = tmp_path / "latents"
  with DatasetWriter(path, "latent", name="tiny", shard_bytes=10**6, meta={"vae": "abc"}) as out:
    for i, shape in enumerate(shapes):
      captions = 2 if i else 0
      out.add(
        LatentRecord(
          id=str(i),
          source=f"s{i // 2}",
          split="train" if i < 3 else "held_out",
          frames=1,
          height=8,
          width=8,
          crop=(0, 0, 0, 0),
          fps=8.0 if i else 7.5,
          latent=np.zeros((*shape, 4), ml_dtypes.bfloat16),
          captions=("x",) * captions,
          text_ids={"words": tuple(np.zeros(i + j, np.int32) for j in range(captions))},
          **COMMON,
        )
      )
  return path


@pytest.fixture
def clips(tmp_path):
  path = tmp_path / "clips"
  with DatasetWriter(path, "clip", name="tiny", shard_bytes=1, meta={}) as out:
    for i in range(20):
      video = np.zeros((1 + i, 8, 6, 3), np.uint8)
      out.add(
        ClipRecord(
          id=str(i),
          source="s",
          split="train",
          fps=10.0,
          video=video,
          captions=(),
          truth=b"",
          **COMMON,
        )
      )
  return path


def test_describes_latents(latents):
  facts = json.loads(json.dumps(describe_dataset(latents)))
  (first, second) = facts.pop("shards")
  assert first["file"] == "tiny-train.array_record-00000-of-00001" and first["records"] == 3
  assert second["records"] == 1
  assert facts.pop("bytes") == sum(path.stat().st_size for path in latents.glob("*record-*"))
  assert len(facts.pop("fingerprint")) == 64
  assert facts == {
    "path": str(latents),
    "kind": "latent",
    "name": "tiny",
    "version": LATENT_VERSION,
    "meta": {"vae": "abc"},
    "clips": 4,
    "renditions": 4,
    "of_clips": 4,
    "splits": {"train": 3, "held_out": 1},
    "tokens": 4 + 24 + 24 + 80,
    "latent_channels": 4,
    "time_factor": None,
    "text_state_width": {"words": None},
    "caption_tokens": {"words": {"total": 15, "mean": 2.5, "max": 4}},
    "shapes": [
      {"f": 3, "h": 2, "w": 4, "clips": 2},
      {"f": 1, "h": 2, "w": 2, "clips": 1},
      {"f": 5, "h": 4, "w": 4, "clips": 1},
    ],
    "fps": {"7.5": 1, "8": 3},
    "sources": 2,
    "captions": {"total": 6, "without": 1},
    "seconds": None,
    "histograms": {
      "captions": {"edges": [0, 1, 2, 3], "counts": [1, 0, 3]},
      "tokens": {
        "edges": list(range(0, 90, 5)),
        "counts": [1, 0, 0, 0, 2, *[0] * 11, 1],
      },
    },
  }


def test_describes_clips(clips):
  facts = describe_dataset(clips)
  assert facts["pixels"] == 210 * 8 * 6 and facts["seconds"] == pytest.approx(21)
  assert facts["storage"] == "raw"
  assert facts["clips"] == len(facts["shards"]) == len(facts["shapes"]) == 20
  assert facts["captions"] == {"total": 0, "without": 20} and "tokens" not in facts
  assert set(facts["histograms"]) == {"seconds", "captions"}
  assert sum(facts["histograms"]["seconds"]["counts"]) == 20


def test_prints_on_stderr_and_shortens(clips, latents, capsys):
  print_dataset(describe_dataset(latents))
  streams = capsys.readouterr()
  assert streams.out == "" and "train: 3, held_out: 1" in streams.err
  assert "tiny: 4 renditions of 4 clips, " in streams.err
  assert "(1 renditions without)" in streams.err
  assert not re.search(r"\bclips\b(?!,)", streams.err)
  console = Console(width=100, record=True, file=open("/dev/null", "w"))
  with console.file:
    print_dataset(describe_dataset(clips), console, rows=5)
  text = console.export_text()
  assert text.count("and 16 more") == 2 and "frames x height x width" in text


@pytest.fixture
def renditions(tmp_path):
  """Five renditions of two clips, one of which has the letters in its name that part an id."""
  path = tmp_path / "renditions"
  rules = {"small": {"pixels": 64}}
  plan = np.zeros(5, RENDITION)
  plan["start"], plan["frames"], plan["fps"] = [0, 1, 2, 0, 1], 1, 7.5
  plan["height"] = plan["width"] = plan["resized"] = 8
  plan["resized"][2] = 9  # its id ends in the size before it was cropped
  meta = {"renditions": rules}
  with DatasetWriter(path, "latent", name="t", shard_bytes=10**6, meta=meta) as out:
    for i, rendition in enumerate(plan):
      out.add(
        LatentRecord(
          id=name_rendition("a@b.mp4:0-9@" if i < 3 else "a@b.mp4:9-18", rendition),
          source="a@b.mp4",
          split="train",
          frames=1,
          height=8,
          width=8,
          crop=(0, 0, 0, 0),
          fps=7.5,
          latent=np.zeros((1, 2, 2, 4), ml_dtypes.bfloat16),
          captions=(),
          text_ids={"words": ()},
          **COMMON,
        )
      )
  return path


def test_renditions_are_not_called_clips(renditions, monkeypatch, tmp_path, capsys):
  facts = describe_dataset(renditions)
  assert (facts["clips"], facts["renditions"], facts["of_clips"]) == (5, 5, 2)
  print_dataset(facts)
  text = capsys.readouterr().err
  assert "t: 5 renditions of 2 clips, " in text and "5 renditions without" in text
  assert "┃ renditions ┃" in text and "┃ clips" not in text
  monkeypatch.setattr(inspect_page, "_draw_sheet", lambda *_: [])  # no VAE decodes these
  dataset = Dataset.open(renditions, kind=None)
  inspect_page.write_dataset_page(dataset, facts, np.arange(5), 0, tmp_path / "p.html")
  page = (tmp_path / "p.html").read_text(encoding="utf-8")
  assert "5 renditions of 2 clips of 1 sources" in page and "Renditions" in page
  texts = re.findall(r">([^<]*\bclips\b[^<]*)<", page)
  assert {text for text in texts if "5 renditions of 2 clips" not in text} == {"of clips"}
  monkeypatch.setattr(inspect_data, "_READ", 4)
  facts = describe_dataset(renditions)
  assert facts["of_clips"] is None and inspect_data.count_records(facts) == "5 renditions"


def test_refuses_a_changed_index(latents):
  np.save(latents / "index" / "w.npy", np.load(latents / "index" / "w.npy") + np.int32(1))
  with pytest.raises(BadInput, match="the index or meta.json was changed"):
    describe_dataset(latents)


def pack(latents, *words):
  line = [f"--data={latents}", "--slots=64", "--json", *words]
  return inspect.run(inspect.parser().parse_args(line))


def test_packs_within_segments_and_caption_slots(latents, monkeypatch):
  assert pack(latents)["steps"] == 1
  assert pack(latents, "--segments=1")["steps"] == 3
  seen = []
  plan_window = inspect.plan_window
  spy = lambda *args, **kwargs: (seen.append(args[1]), plan_window(*args, **kwargs))[1]  # noqa: E731
  monkeypatch.setattr(inspect, "plan_window", spy)
  pack(latents)
  pack(latents, "--caption-slots=16")
  assert [settings.caption_slots for settings in seen] == [64, 16]
  with pytest.raises(BadInput, match="--segments: -1 must be a whole number in "):
    pack(latents, "--segments=-1")


@pytest.mark.parametrize("patch", [(0, 2, 2), (1, -2, 2)])
def test_refuses_a_patch_without_sides(latents, patch):
  with pytest.raises(BadInput, match=r"--patch: (0|-2) must be a whole number in \[1, "):
    pack(latents, "--patch", *map(str, patch))

"""`sora inspect`: facts of runs and datasets, as JSON and for people."""

import shutil

import numpy as np
import pytest

from data_pipeline.dataset import Dataset


def test_a_run_needs_no_dataset(sora, workdir, debug):
  folder = workdir()
  before = sora("inspect", f"--workdir={folder}", "--json").result
  shutil.rmtree(folder / "data")
  shutil.rmtree(folder / "frozen")
  done = sora("inspect", f"--workdir={folder}", "--json")
  assert done.result == before and done.err == ""
  assert before["step"] == debug.steps and before["cursor"]["step"] == debug.steps
  assert before["config"]["model"]["name"] == "dit" and before["tokens_seen"] > 0
  hashes = [before[f"{part}_sha256"] for part in ("params", "ema", "opt")]
  assert all(len(digest) == 64 for digest in hashes) and len(set(hashes)) == 3


def test_a_checkpoint_of_a_run_is_named(sora, finished, debug):
  before = debug.steps - debug.every
  words = (f"--workdir={finished}", "--json")
  newest = sora("inspect", *words, f"--step={debug.steps}").result
  assert newest == sora("inspect", *words).result
  older = sora("inspect", *words, f"--step={before}").result
  assert older["step"] == before and older["params_sha256"] != newest["params_sha256"]
  done = sora("inspect", *words, "--step=3")
  assert done.code == 2 and "--step=3 is not saved in" in done.err and f"{debug.steps}]" in done.err
  assert sora("inspect", "--data=d", "--step=3").code == 2


def test_a_run_is_shown_to_people(sora, finished, debug):
  done = sora("inspect", f"--workdir={finished}")
  assert f"step           {debug.steps}\n" in done.err
  assert done.result["params_sha256"] in done.err
  width = done.result["config"]["optim"]["ema_width"]
  assert done.result["average_widths"] == {"ema": width}
  assert f"ema            spread over {width:.2g} of the steps done" in done.err


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_packing_is_described(sora, finished, ranks):
  latents = finished / "data" / "latents"
  words = ("--slots=128", "--rows=4", f"--ranks={ranks}", "--json")
  facts = sora("inspect", f"--data={latents}", *words).result
  assert 0.0 <= facts["imbalance"] < 1.0 and (facts["imbalance"] == 0.0) == (ranks == 1)
  index = Dataset.open(latents, kind="latent").index
  train = np.flatnonzero(index["split"] == 0)
  cells = index["f"].astype(int) * index["h"] * index["w"]
  patches = int(cells[train].sum()) // 4  # of 1x2x2
  offsets, tokens = index["caption_offsets"], index["caption_tokens/bytes"]
  captions = [tokens[offsets[row] : offsets[row + 1]] for row in train]
  room = facts["steps"] * 4 * 128
  least = patches + sum(int(c.min()) for c in captions)
  most = patches + sum(int(c.max()) for c in captions)
  assert least / room <= facts["fill"] <= min(1.0, most / room)


def test_a_dataset_is_shown_to_people(sora, finished):
  done = sora("inspect", f"--data={finished / 'data' / 'clips'}")
  assert done.result["kind"] == "clip" and done.result["clips"] == 64
  assert "64 clips" in done.err and "fill" not in done.result

"""Packed batches: what is in the records is in the batch, once an epoch, from any cursor on."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import loader, tokens
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.records import LatentRecord
from data_pipeline.row import RowReader
from data_pipeline.writer import DatasetWriter
from packed import (
  DATA,
  PATCH,
  SMALL,
  Clips,
  N,
  assert_same,
  open_batches,
  segments_of,
  take,
)

STREAM = take(open_batches(), 24)


def test_every_clip_once_an_epoch_in_the_order_of_draws():
  plan = open_batches().plan(0)
  epoch = [batch for batch, _ in STREAM[: plan.steps]]
  assert STREAM[plan.steps - 1][1]["epoch"] == 1 and STREAM[plan.steps - 2][1]["epoch"] == 0
  found = [
    (batch["segment_record"][b, i], draw) for batch in epoch for b, i, _, draw in segments_of(batch)
  ]
  assert sorted(record for record, _ in found) == list(DATA.indices("train"))
  assert [draw for _, draw in found] == list(range(N))
  later = [draw for batch, _ in STREAM[plan.steps :] for _, _, _, draw in segments_of(batch)]
  assert later == list(range(N, N + len(later))) and len(later) > N  # into a third epoch


def test_a_segment_holds_its_record():
  seen = dict.fromkeys(["dropped", "given", "states"], 0)
  for batch, _ in STREAM:
    for b, i, slots, _ in segments_of(batch):
      record = DATA.read(int(batch["segment_record"][b, i]))
      patches = tokens.patchify(record.latent.astype(np.float32), PATCH)
      video = slots[batch["token_index"][b, slots] >= 0]
      caption = slots[batch["token_index"][b, slots] < 0]
      np.testing.assert_array_equal(batch["latents"][b, video], patches)
      np.testing.assert_array_equal(batch["token_index"][b, video], np.arange(len(patches)))
      np.testing.assert_array_equal(batch["segment_shape"][b, i], record.latent.shape[:3])
      assert batch["segment_fps"][b, i] == record.fps and batch["segment_weight"][b, i] == 1
      text = batch["text_index"][b, caption]
      ids = batch["text_ids"][b, text].tolist()
      if batch["segment_dropped"][b, i]:
        assert ids == [-1] and not batch["text_states"][b, text].any()
        seen["dropped"] += 1
      else:
        which = [list(each) for each in record.text_ids["words"]].index(ids)
        states = record.text_states["words"][which]
        np.testing.assert_array_equal(batch["text_states"][b, text], states)
        seen["states"] += 1
      levels = batch["level_index"][b, video]
      clean = levels == 0
      if clean.any():
        first = len(patches) // record.latent.shape[0]
        assert record.latent.shape[0] > 1 and clean[:first].all() and not clean[first:].any()
        seen["given"] += 1
      assert np.all(levels[~clean] == i + 1)
      assert batch["segment_tokens"][b, i] == (~clean).sum()
  assert min(seen.values()) > 20, seen


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_seconds_follow_the_datasets_time_factor(factor):
  """The last latent ends with the clip's last frame: latent i covers `factor` frames."""
  batch, _ = take(open_batches(Clips(time_factor=factor)), 1)[0]
  for b, i, slots, _ in segments_of(batch):
    f, fps = int(batch["segment_shape"][b, i, 0]), float(batch["segment_fps"][b, i])
    seconds = batch["position"][b, slots[batch["token_index"][b, slots] >= 0], 0]
    frames = np.arange(1 + factor * (f - 1))
    centres = [0.0] + [frames[1:].reshape(f - 1, factor)[j].mean() / fps for j in range(f - 1)]
    np.testing.assert_allclose(np.unique(seconds), np.unique(np.float32(centres)), rtol=1e-6)


def test_layout_invariants():
  for batch, _ in STREAM:
    assert {key: len(value) for key, value in batch.items()} == dict.fromkeys(batch, 4)
    segment, text_index = batch["segment"], batch["text_index"]
    for b in range(4):
      used = int((segment[b] > 0).sum())
      assert np.all(np.isin(np.diff(segment[b, :used]), [0, 1])) and not segment[b, used:].any()
      assert used == 0 or segment[b, 0] == 1
      index = text_index[b, text_index[b] >= 0]
      np.testing.assert_array_equal(index, np.arange(len(index)))  # each caption token once
      assert not batch["text_ids"][b, len(index) :].any()
      holds_patch = batch["token_index"][b] >= 0
      np.testing.assert_array_equal(holds_patch | (text_index[b] >= 0), segment[b] > 0)
      assert not batch["latents"][b, ~holds_patch].any()
      assert not batch["level_index"][b, ~holds_patch].any()
      present = segment[b].max()
      assert np.all(batch["segment_record"][b, :present] >= 5)
      assert np.all(batch["segment_record"][b, present:] == -1)
      assert not batch["segment_weight"][b, present:].any()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, len(STREAM) - 3))
def test_any_cursor_goes_on_with_the_same_stream(position):
  cursor = json.loads(json.dumps(STREAM[position][1]))
  assert cursor["step"] == position + 1
  resumed = take(open_batches(cursor=cursor, threads=3, prefetch=2), 2)
  rest = STREAM[position + 1 : position + 3]
  for (batch, after), (expected, there) in zip(resumed, rest, strict=True):
    assert after == there
    assert_same(batch, expected)


def write_folder(path, clips):
  held_out = set(clips.indices("held_out"))
  with DatasetWriter(path, "latent", name="clips", shard_bytes=20_000, meta=clips.meta) as out:
    for row, record in enumerate(clips.records):
      f, h, w = record.latent.shape[:3]
      out.add(
        LatentRecord(
          id=str(row),
          source=str(row),
          licence="",
          split="held_out" if row in held_out else "train",
          start_frame=0,
          frames=4 * f - 3,
          height=8 * h,
          width=8 * w,
          crop=(0, 0, 0, 0),
          fps=record.fps,
          latent=record.latent,
          captions=tuple(record.captions),
          text_ids=record.text_ids,
          text_states=record.text_states,
          attributes="",
        )
      )


def test_a_dataset_folder_gives_the_same_stream(tmp_path):
  write_folder(tmp_path / "clips", DATA)
  dataset = Dataset.open(tmp_path / "clips", kind="latent")
  assert len(dataset.shards["train"]) > 1
  read = take(open_batches(dataset, threads=4), len(STREAM))
  for (batch, cursor), (expected, there) in zip(read, STREAM, strict=True):
    assert cursor == there
    assert_same(batch, expected)


def test_threads_and_prefetch_do_not_matter():
  for reading in (dict(threads=1, prefetch=1), dict(threads=4, prefetch=16)):
    read = take(open_batches(**reading), 8)
    for (batch, cursor), (expected, there) in zip(read, STREAM[:8], strict=True):
      assert cursor == there
      assert_same(batch, expected)


def test_plans_are_not_made_again_for_threads_in_many_short_epochs(monkeypatch):
  clips, made, plan_window = Clips(), [], loader.packing.plan_window

  def spy(mixture, *args, epoch, **more):
    if mixture.pools[0].columns["h"] is clips.index["h"]:  # an earlier test may still plan ahead
      made.append(epoch)
    return plan_window(mixture, *args, epoch=epoch, **more)

  monkeypatch.setattr(loader.packing, "plan_window", spy)
  batches = open_batches(clips, split="held_out", rows=1, slots=256, threads=8, prefetch=8)
  assert batches.plan(0).steps == 1
  take(batches, 40)
  made = list(made)  # its own threads may still be planning ahead
  assert len(made) == len(set(made)) >= 40


def test_totals_are_of_the_whole_step_on_every_host():
  """Across a window's end and a jump; against what the slots of all rows hold."""
  jumps = dict(skip_steps=((3, 5),))
  whole, part = open_batches(**jumps), open_batches(rank=1, ranks=2, **jumps)
  try:
    for _ in range(9):
      batch = next(whole)
      next(part)
      assert whole.totals == part.totals == tokens.count_rows(batch)
  finally:
    whole.close()
    part.close()


def test_hosts_share_the_rows_of_the_same_steps():
  shares = [take(open_batches(rank=rank, ranks=2), 9) for rank in range(2)]
  for (first, cursor), (second, same), (whole, there) in zip(*shares, STREAM[:9], strict=True):
    assert cursor == same == there
    assert_same({key: np.concatenate([first[key], second[key]]) for key in first}, whole)


def test_seed_stage_and_split_give_other_streams():
  base = STREAM[0][0]["segment_record"]
  for changed in (dict(seed=4), dict(stage=1)):
    other = take(open_batches(**changed), 1)[0][0]["segment_record"]
    assert not np.array_equal(other, base)
  held_out = take(open_batches(split="held_out"), 1)[0][0]["segment_record"]
  assert set(held_out.ravel()) <= {-1, 0, 1, 2, 3, 4}


def test_without_states_there_is_no_such_key():
  batch, _ = take(open_batches(Clips(states=False)), 1)[0]
  assert "text_states" not in batch
  assert_same(batch, {k: v for k, v in STREAM[0][0].items() if k != "text_states"})


def test_the_fingerprint_is_of_the_stream():
  base = open_batches()
  again = open_batches(cursor=STREAM[5][1], threads=1)
  assert base.facts == again.facts == json.loads(json.dumps(base.facts))
  assert base.fingerprint == again.fingerprint
  changes = [dict(seed=4), dict(slots=128), dict(given_first_frame=0.1), dict(patch=(1, 1, 2))]
  prints = {open_batches(**changed).fingerprint for changed in changes}
  assert len(prints | {base.fingerprint, open_batches(Clips(60)).fingerprint}) == 6


def test_a_cursor_that_does_not_fit_is_refused():
  with pytest.raises(BadInput, match=r"is not one of stage 1"):
    open_batches(stage=1, cursor=STREAM[0][1])
  with pytest.raises(BadInput, match=r"is not one of stage 0"):
    open_batches(cursor={"step": 3})
  with pytest.raises(BadInput, match=r"bin=4 of the cursor begins no step of rows=8"):
    open_batches(rows=8, cursor=STREAM[0][1])
  with pytest.raises(BadInput, match=r"bin=4000 of the cursor begins no step"):
    open_batches(cursor=STREAM[0][1] | {"bin": 4000})


def test_bad_settings():
  with pytest.raises(BadInput, match=r"ranks=3 does not divide rows=4"):
    open_batches(ranks=3)
  with pytest.raises(BadInput, match=r"given_first_frame=2 is no probability"):
    open_batches(given_first_frame=2)
  clips = Clips(10)
  clips.latent_channels, clips.kind, clips.path = None, "clip", "here"
  with pytest.raises(BadInput, match=r"dataset: here holds clip records.* Encode it first"):
    open_batches(clips)


@pytest.mark.parametrize("column, step", [("h", 2), ("caption_tokens/words", 1)])
def test_an_index_that_lies_is_found_out(column, step):
  clips = Clips()
  clips.index[column] = np.asarray(clips.index[column]) + step
  batches = open_batches(clips, slots=256, caption_slots=64)
  with pytest.raises(BadInput, match=r"loader: clip row \d+ holds .* Rebuild the index"):
    take(batches, 4)


def test_first_frames_are_given_by_seed_stage_and_draw():
  """Each stage draws anew which clips are animated from their first frame; half of them, here."""
  draws = range(400)

  def chosen(*counters):
    reader = RowReader([DATA], "words", SMALL, 0.5, counters)
    return [reader._given((2, 1, 1), draw) is not None for draw in draws]

  patterns = [chosen(3, 0), chosen(3, 1), chosen(4, 0)]
  assert chosen(3, 0) == patterns[0]
  for i, one in enumerate(patterns):
    assert abs(sum(one) - 200) < 60  # six standard deviations
    for other in patterns[:i]:
      assert abs(sum(a == b for a, b in zip(one, other, strict=True)) - 200) < 60

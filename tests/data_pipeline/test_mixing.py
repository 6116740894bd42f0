"""Windows, several datasets, chosen captions and skipped steps, from plan to batch."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import loader, packing
from data_pipeline.errors import BadInput
from data_pipeline.stream import Mixture, Pool
from packed import (
  DATA,
  SETTINGS,
  SMALL,
  Clips,
  assert_same,
  make_columns,
  open_batches,
  segments_of,
  take,
)

OTHER = Clips(41, seed=9)


def mixed_batches(**changed):
  settings = SETTINGS | dict(weights=(3.0, 1.0), window_clips=30) | changed
  return loader.latent_batches([DATA, OTHER], **settings)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(5, 120), st.integers(0, 9))
def test_windows_together_hold_every_clip_once(clips, window_clips, seed):
  pool = Pool(columns=make_columns(clips, seed), rows=range(clips))
  config = dataclasses.replace(SMALL, window_clips=window_clips)
  mixture = Mixture([pool], seed=seed)
  windows = range(mixture.windows(window_clips))
  plans = [packing.plan_window(mixture, config, epoch=1, window=w) for w in windows]
  assert sorted(np.concatenate([plan.record for plan in plans])) == list(range(clips))
  draws = [plan.bin(i).draw for plan in plans for i in range(plan.steps * config.rows)]
  np.testing.assert_array_equal(np.concatenate(draws), clips + np.arange(clips))
  with pytest.raises(BadInput, match=f"window={len(plans)} is not below {len(plans)}"):
    packing.plan_window(mixture, config, epoch=0, window=len(plans))


def test_captions_do_not_depend_on_the_windows():
  columns = make_columns(200)

  def captions(window_clips):
    config = dataclasses.replace(SMALL, window_clips=window_clips)
    mixture = Mixture([Pool(columns=columns, rows=range(200))], seed=0)
    windows = range(mixture.windows(window_clips))
    plans = [packing.plan_window(mixture, config, epoch=0, window=w) for w in windows]
    return dict(
      zip(
        np.concatenate([plan.record for plan in plans]).tolist(),
        np.concatenate([plan.caption for plan in plans]).tolist(),
        strict=True,
      )
    )

  assert captions(200) == captions(33)


def test_captions_by_weight():
  clips, counts = 6000, 4
  columns = make_columns(clips)
  columns["caption_offsets"] = np.arange(0, counts * clips + 1, counts)
  columns["caption_tokens"] = np.full(counts * clips, 2)
  pool = Pool(columns=columns, rows=range(clips), caption_weights=(5.0, 0.0, 1.0))
  plan = packing.plan_window(Mixture([pool], seed=0), SMALL, epoch=0, window=0)
  chosen = plan.caption[plan.caption >= 0]
  expected = np.array([5, 0, 1, 1]) / 7  # the last weight holds for all further captions
  share = np.bincount(chosen, minlength=counts) / len(chosen)
  np.testing.assert_allclose(share, expected, atol=4 * np.sqrt(0.25 / len(chosen)))
  assert share[1] == 0
  draws, counts = np.array([0.0, 0.5, 1 - 2**-53]), np.full(3, 3)
  assert packing._pick(draws, counts, (0.0, 1.0, 0.0)).tolist() == [1, 1, 1]


def test_a_mixture_takes_its_shares_and_each_dataset_its_passes():
  batches = take(mixed_batches(), 60)
  found = [
    (draw, int(batch["segment_dataset"][b, i]), int(batch["segment_record"][b, i]))
    for batch, _ in batches
    for b, i, _, draw in segments_of(batch)
  ]
  assert [draw for draw, _, _ in found] == list(range(len(found)))
  assert np.mean([number for _, number, _ in found]) == pytest.approx(0.25, abs=0.01)
  window = len(found) // 30 * 30  # whole windows: within one the draws are packed in any order
  for number, data in enumerate((DATA, OTHER)):
    rows = data.indices("train")
    records = [record for draw, n, record in found if n == number and draw < window]
    for start in range(0, len(records) - len(rows) + 1, len(rows)):
      full = records[start : start + len(rows)]
      extra = set(rows) - set(full)
      assert len(extra) <= 30  # a pass ends within a window
    counts = np.bincount(records, minlength=rows.max() + 1)[rows]
    assert counts.max() - counts.min() <= 1  # never a second time before all were shown
  for batch, _ in batches[:5]:
    for b, i, _, _ in segments_of(batch):
      data = (DATA, OTHER)[batch["segment_dataset"][b, i]]
      record = data.read(int(batch["segment_record"][b, i]))
      assert batch["segment_shape"][b, i].tolist() == list(record.latent.shape[:3])


def test_a_mixture_resumes_anywhere_in_any_window():
  stream = take(mixed_batches(), 40)
  assert {cursor["window"] for _, cursor in stream} > {0, 1, 2}
  for position in (3, 8, 17, 33):
    cursor = json.loads(json.dumps(stream[position][1]))
    for (batch, after), (expected, there) in zip(
      take(mixed_batches(cursor=cursor), 3), stream[position + 1 : position + 4], strict=True
    ):
      assert after == there
      assert_same(batch, expected)


def test_datasets_that_do_not_go_together():
  with pytest.raises(BadInput, match=r"weights=\(1\.0,\) are 1 for 2 datasets.* data\.weights"):
    mixed_batches(weights=(1.0,))
  with pytest.raises(BadInput, match=r"caption_weights=\(\(1,\),\) are 1 for 2 datasets"):
    mixed_batches(caption_weights=((1,),))
  other = Clips(20, states=False)
  other.path, DATA.path = "there", "here"
  with pytest.raises(BadInput, match=r"the states of there have width None, those of here 3"):
    loader.latent_batches([DATA, other], **SETTINGS)
  other = Clips(20)
  other.path, other.meta = "there", {"texts": {"words": "another"}}
  with pytest.raises(BadInput, match=r"there and here are of different text encoder words"):
    loader.latent_batches([DATA, other], **SETTINGS)
  other.tokenizers = ("letters", "bytes")
  with pytest.raises(BadInput, match=r"there has caption ids of letters, bytes, not of 'words'"):
    loader.latent_batches([DATA, other], **SETTINGS)
  other = Clips(20)
  other.path, other.meta = "there", {"vae": "another"}
  with pytest.raises(BadInput, match=r"there and here are of different vae"):
    loader.latent_batches([DATA, other], **SETTINGS)


def test_the_fingerprint_knows_the_mixture():
  changes = [dict(weights=(1.0, 1.0)), dict(caption_weights=((1,), (1, 2))), dict(window_clips=31)]
  changes.append({})
  assert len({mixed_batches(**changed).fingerprint for changed in changes}) == len(changes)


STREAM = take(open_batches(window_clips=30), 30)


def test_steps_are_skipped_and_the_rest_stays_as_it_is():
  skip = ((2, 5), (9, 10), (14, 20))
  kept = [i for i in range(30) if not any(a <= i < b for a, b in skip)]
  read = take(open_batches(window_clips=30, skip_steps=skip), len(kept))
  for (batch, cursor), i in zip(read, kept, strict=True):
    assert_same(batch, STREAM[i][0])
    if i + 1 in kept:
      there = STREAM[i][1]
      assert [cursor[k] for k in ("epoch", "window", "bin")] == [
        there[k] for k in ("epoch", "window", "bin")
      ]
  assert read[1][1]["skipped"] == [[2, 5]] and read[-1][1]["skipped"] == [list(s) for s in skip]
  assert read[-1][1]["step"] == len(kept)


def test_skipping_may_be_decided_later_but_not_for_what_was_read():
  before = take(open_batches(window_clips=30), 6)
  skip = ((8, 12),)
  after = take(open_batches(window_clips=30, skip_steps=skip, cursor=before[-1][1]), 6)
  for (batch, _), i in zip(after, (6, 7, 12, 13, 14, 15), strict=True):
    assert_same(batch, STREAM[i][0])
  again = take(open_batches(window_clips=30, skip_steps=skip, cursor=after[3][1]), 2)  # still there
  assert_same(again[0][0], STREAM[14][0])
  at_once = take(open_batches(window_clips=30, skip_steps=((6, 8),), cursor=before[-1][1]), 1)
  assert_same(at_once[0][0], STREAM[8][0])
  with pytest.raises(BadInput, match=r"skip_steps=\(3, 9\) begins before step 6 of the data"):
    open_batches(window_clips=30, skip_steps=((3, 9),), cursor=before[-1][1])
  for wrong in (((5, 3),), ((1, 4), (2, 6)), ((1,),), ((-2, 3),)):
    with pytest.raises(BadInput, match="not ascending ranges"):
      open_batches(skip_steps=wrong)


HOST = """
import hashlib, json, sys
sys.path.insert(0, sys.argv[1])
from packed import DATA, SETTINGS, Clips, loader, take
rank, ranks, steps = map(int, sys.argv[2:5])
cursor = json.loads(sys.argv[5])
settings = SETTINGS | dict(weights=(3.0, 1.0), window_clips=30)
batches = loader.latent_batches(
  [DATA, Clips(41, seed=9)], rank=rank, ranks=ranks, cursor=cursor, **settings
)
for batch, cursor in take(batches, steps):
  rows = [
    hashlib.sha256(b"".join(batch[key][i].tobytes() for key in sorted(batch))).hexdigest()
    for i in range(len(batch["segment"]))
  ]
  print(json.dumps([rows, cursor]))
"""


def run_hosts(ranks, steps, cursor):
  """Rows' hashes by step, all hosts side by side, and the cursor after each step."""
  command = [sys.executable, "-c", HOST, str(Path(__file__).parents[1] / "support")]
  hosts = [
    subprocess.Popen(
      [*command, str(rank), str(ranks), str(steps), json.dumps(cursor)],
      stdout=subprocess.PIPE,
      text=True,
    )
    for rank in range(ranks)
  ]
  outputs = [host.communicate(timeout=120)[0].splitlines() for host in hosts]
  assert [host.returncode for host in hosts] == [0] * ranks
  by_step = [[json.loads(line) for line in lines] for lines in zip(*outputs, strict=True)]
  for step in by_step:
    assert all(cursor == step[0][1] for _, cursor in step)
  return [sum((rows for rows, _ in step), []) for step in by_step], by_step[-1][0][1]


@pytest.mark.slow
def test_one_two_and_four_processes_continue_the_same_steps():
  whole, end = run_hosts(1, 9, None)
  steps, cursor = [], None
  for ranks in (4, 1, 2):  # each stops in the middle of a window, and others go on
    some, cursor = run_hosts(ranks, 3, cursor)
    steps += some
  assert steps == whole and cursor == end


def test_a_dataset_without_captions_goes_with_any():
  bare = Clips(20, seed=4)
  bare.state_widths = {"words": None}
  for record in bare.records:
    record.captions, record.text_ids, record.text_states = [], {"words": []}, {}
  bare.index["caption_offsets"] = np.zeros(21, int)
  bare.index["caption_tokens/words"] = np.zeros(0, np.int32)
  for datasets in ([DATA, bare], [bare, DATA]):
    batches = take(loader.latent_batches(datasets, **SETTINGS), 6)
    numbers = [n for batch, _ in batches for n in batch["segment_dataset"].ravel() if n >= 0]
    assert set(numbers) == {0, 1} and batches[0][0]["text_states"].shape[-1] == 3

"""Groups of requests: of one shape each, filled up, and in the order that was asked."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import BadInput
from sora_jax.generate.pipeline import Pipeline, Request, group_alike
from sora_jax.generate.sample import CAPTION_STEP, Sampler, Settings

SIZE = dict(seconds=0.0, width=8, height=8, fps=8.0)
SETTINGS = Settings(1, 3.0, "euler", 1.0, 0)


@given(st.lists(st.sampled_from("abc")), st.integers(1, 4))
def test_groups_are_of_one_kind_and_as_full_as_may_be(kinds, size):
  groups = group_alike(kinds, size)
  assert sorted(sum(groups, [])) == list(range(len(kinds)))
  assert all(len({kinds[i] for i in group}) == 1 and len(group) <= size for group in groups)
  assert all(group == sorted(group) for group in groups) and groups == sorted(groups)
  assert len(groups) == sum(math.ceil(kinds.count(kind) / size) for kind in set(kinds))


class Maker:
  """Stands for a `Sampler`: a latent is its draw; notes the groups that it was asked for."""

  patch = (1, 1, 1)
  caption_slots = Sampler.caption_slots

  def __init__(self):
    self.asked = []

  def __call__(self, captions, negatives, draws, shape, settings):
    slots = {self.caption_slots(*pair, settings) for pair in zip(captions, negatives, strict=True)}
    self.asked.append((draws, slots))
    return np.array(draws).reshape(-1, 1, 1, 1, 1)


def pipeline() -> Pipeline:
  encoder = SimpleNamespace(width=0, tokenize=lambda texts: [np.zeros(len(t)) for t in texts])
  vae = SimpleNamespace(
    time_factor=4, space_factor=8, decode_stream=lambda chunks: (np.asarray(c) for c in chunks)
  )
  return Pipeline(encoder, Maker(), vae)


@given(st.lists(st.integers(0, 3)), st.integers(1, 4))
def test_videos_come_in_the_order_of_their_requests(lengths, rows):
  made = pipeline()
  requests = [Request("x" * (n * CAPTION_STEP), "", 10 + i) for i, n in enumerate(lengths)]
  videos = list(made(requests, **SIZE, settings=SETTINGS, rows=rows))
  assert [int(video.item()) for video in videos] == [one.draw for one in requests]
  # One shape of program a kind: as many rows as asked, and slots that its own captions need.
  assert all(len(draws) == rows and len(slots) == 1 for draws, slots in made.sampler.asked)


def test_no_rows_are_refused():
  with pytest.raises(BadInput, match="rows=0 must be at least 1"):
    list(pipeline()([Request("x", "", 0)], **SIZE, settings=SETTINGS, rows=0))

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import BadInput
from sora_jax.models.text import load_text_encoder

ENCODER = load_text_encoder("bytes")
CAPTIONS = st.text(st.characters(exclude_categories=["Cs"]), max_size=100)


@given(CAPTIONS)
def test_ids_hold_the_whole_caption(caption):
  (ids,) = ENCODER.tokenize([caption])
  assert ids.dtype == np.int32 and len(ids) == len(caption.encode()) + 1
  assert ids.min() >= 1 and ids.max() < ENCODER.vocabulary
  assert ENCODER.decode(ids) == caption


@given(st.lists(CAPTIONS, max_size=4))
def test_states_are_as_long_as_ids_and_empty(captions):
  shapes = [state.shape for state in ENCODER.encode(captions)]
  assert shapes == [(len(ids), ENCODER.width) for ids in ENCODER.tokenize(captions)]
  assert ENCODER.width == 0


def test_ids_are_bytes_plus_one_and_an_end():
  letters, nothing = ENCODER.tokenize(["é!", ""])
  np.testing.assert_array_equal(letters, [0xC3 + 1, 0xA9 + 1, 0x21 + 1, 257])
  np.testing.assert_array_equal(nothing, [257])


@pytest.mark.parametrize("ids", [[], [5], [0, 257], [257, 257], [258, 257]])
def test_ids_that_are_no_caption_are_not_decoded(ids):
  with pytest.raises(ValueError, match="are not bytes 1..256 and a final 257"):
    ENCODER.decode(np.array(ids, np.int32))


def test_a_caption_that_is_too_long_is_refused():
  assert len(ENCODER.tokenize(["é" * 255 + "!"])[0]) == ENCODER.max_tokens == 512
  with pytest.raises(BadInput, match=r"caption 'ééé.*…' has tokens=513, over max_tokens=512"):
    ENCODER.tokenize(["é" * 256])


def test_bytes_have_no_folder(tmp_path):
  with pytest.raises(BadInput, match="text encoder bytes: folder=.* is not used"):
    load_text_encoder("bytes", tmp_path)

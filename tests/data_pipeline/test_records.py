"""Records: what goes in comes out, TFDS reads the same, and what breaks the table is refused."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

from data_pipeline import example, records, stored, tfds_folder
from data_pipeline.errors import BadInput
from data_pipeline.records import ClipRecord, LatentRecord
from data_pipeline.video import EncodedVideo, as_frames
from data_pipeline.video_writer import encode_video

BF16 = ml_dtypes.bfloat16
TEXT = st.text(max_size=12)


def make_clip(seed=0, captions=("a red disc", "ein Kreis für zwei"), **fields):
  rng = np.random.default_rng(seed)
  base = dict(
    id=f"clip{seed}",
    source="source",
    licence="CC0-1.0",
    split="train",
    start_frame=2**40,
    fps=23.976,
    video=rng.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8),
    captions=captions,
    attributes='{"family": "drift"}',
    truth=b"\x00npz\x00\xff\x00",
  )
  return ClipRecord(**(base | fields))


def make_encoded(seed=0, **fields):
  video = make_clip(seed).video
  encoded = encode_video(video, width=5, height=4, fps=23.976, codec="lossless")
  return make_clip(seed, video=encoded, **fields)


def make_latent(seed=0, lengths=(3, 0, 5), states=True, **fields):
  rng = np.random.default_rng(seed)
  base = dict(
    id=f"latent{seed}",
    source="source",
    licence="CC0-1.0",
    split="held_out",
    start_frame=7,
    frames=9,
    height=16,
    width=24,
    crop=(0, 1, 2, 3),
    fps=8.0,
    latent=rng.standard_normal((3, 2, 3, 4)).astype(BF16),
    captions=tuple(f"caption {n}" for n in lengths),
    text_ids={
      "words": tuple(rng.integers(0, 30_000, n).astype(np.int32) for n in lengths),
      "bytes": tuple(rng.integers(0, 256, 4 * n).astype(np.int32) for n in lengths),
    },
    text_states={"words": tuple(rng.standard_normal((n, 6)).astype(BF16) for n in lengths)}
    if states
    else {},
    attributes="",
  )
  return LatentRecord(**(base | fields))


def assert_same(a, b):
  for field in dataclasses.fields(a):
    x, y = getattr(a, field.name), getattr(b, field.name)
    if isinstance(x, dict):
      assert x.keys() == y.keys(), field.name
      x, y = (tuple(part for name in x for part in value[name]) for value in (x, y))
    parts = zip(x, y, strict=True) if isinstance(x, tuple) else [(x, y)]
    for left, right in parts:
      if isinstance(left, np.ndarray):
        assert left.dtype == right.dtype and left.shape == right.shape, field.name
        assert left.tobytes() == right.tobytes(), field.name
      else:
        assert left == pytest.approx(right) if isinstance(left, float) else left == right


@pytest.mark.parametrize(
  "record",
  [
    make_clip(),
    make_clip(captions=(), truth=b"", attributes=""),
    make_clip(scores='{"motion": 0.25, "cuts": 3, "nsfw": -1e-3}'),
    make_encoded(),
    make_encoded(captions=(), truth=b"", scores="{}"),
    make_latent(),
    make_latent(scores='{"motion": 0.25}'),
    make_latent(states=False),
    make_latent(lengths=(4,)),
    make_latent(lengths=(), states=False),
  ],
)
def test_comes_back_as_it_was(record):
  records.check_record(record)
  data = stored.serialize(record)
  assert_same(record, stored.deserialize(records.kind_of(record), data))
  assert data == stored.serialize(record)


@settings(max_examples=30, deadline=None)
@given(
  shape=st.tuples(*[st.integers(1, 4)] * 4),
  lengths=st.lists(st.integers(1, 9), max_size=4),
  caption=TEXT,
  width=st.integers(1, 5),
)
def test_any_latent_comes_back(shape, lengths, caption, width):
  latent = np.arange(np.prod(shape)).astype(BF16).reshape(shape)
  ids = {"words": tuple(np.arange(n, dtype=np.int32) for n in lengths)}
  ids["bytes"] = tuple(np.arange(2 * n, dtype=np.int32) for n in lengths)
  states = {"words": tuple(np.full((n, width), n, BF16) for n in lengths)}
  states = states if sum(lengths) else {}  # without any token there is none to store
  captions = (caption,) * len(lengths)
  record = make_latent(latent=latent, captions=captions, text_ids=ids, text_states=states)
  records.check_record(record)
  assert_same(record, stored.deserialize("latent", stored.serialize(record)))


def test_lists_of_ids_are_kept_as_int32():
  ids = ([1, 2, 3], [], [4, 5, 6, 7, 8])
  record = make_latent(text_ids={"words": ids}, states=False)
  records.check_record(record)
  back = stored.deserialize("latent", stored.serialize(record))
  assert [part.tolist() for part in back.text_ids["words"]] == [list(part) for part in ids]
  assert all(part.dtype == np.int32 for part in back.text_ids["words"])


@pytest.mark.parametrize("record", [make_clip(), make_clip(captions=())])
def test_tfds_reads_a_clip(record):
  found = tfds_folder.features("clip").deserialize_example_np(stored.serialize(record))
  np.testing.assert_array_equal(found["video"], record.video)
  assert [text.decode() for text in found["captions"]] == list(record.captions)
  assert found["truth"] == record.truth and found["id"].decode() == record.id
  assert found["start_frame"] == record.start_frame
  assert found["fps"] == pytest.approx(record.fps, rel=1e-6)


@pytest.mark.parametrize("record", [make_latent(), make_latent(lengths=(), states=False)])
def test_tfds_reads_a_latent(record):
  table = tfds_folder.features("latent", tokenizers=("words", "bytes"))
  found = table.deserialize_example_np(stored.serialize(record))
  assert found["latent"].dtype == np.uint16
  np.testing.assert_array_equal(found["latent"].view(BF16), record.latent)
  for name, ids in record.text_ids.items():
    np.testing.assert_array_equal(found["text_lengths"][name], [len(one) for one in ids])
    np.testing.assert_array_equal(found["text_ids"][name], np.concatenate([[], *ids]))
    states = found["text_states"][name].view(BF16).reshape(-1, 6)
    wanted = np.concatenate([np.zeros((0, 6), BF16), *record.text_states.get(name, ())])
    np.testing.assert_array_equal(states, wanted)
  assert found["crop"].tolist() == list(record.crop)


def test_encoded_clips_are_the_same_clips():
  record = make_encoded(scores='{"motion": 1}')
  found = tfds_folder.features("clip", "encoded").deserialize_example_np(stored.serialize(record))
  assert found["video"] == record.video.data and found["scores"].decode() == record.scores
  assert found["video_shape"].dtype == np.int64 and tuple(found["video_shape"]) == (3, 4, 5, 3)
  values = example.parse(stored.serialize(record))
  assert values["video_shape"] == [3, 4, 5, 3] and "video/value" not in values
  back = stored.deserialize("clip", stored.serialize(record))
  assert isinstance(back.video, EncodedVideo) and back.video.shape == make_clip().video.shape
  np.testing.assert_array_equal(as_frames(back.video), make_clip().video)
  assert [records.storage_of(r) for r in (record, make_clip(), make_latent())] == [
    *("encoded", "raw", None)
  ]


def test_we_read_what_tfds_writes():
  clip = make_clip()
  table = tfds_folder.features("clip")
  data = table.serialize_example({name: getattr(clip, name) for name in records.COLUMNS["clip"]})
  assert_same(clip, stored.deserialize("clip", data))


def test_envelope_is_the_one_of_tensorflow():
  values = {"a": [1, -(2**63)], "b": [0.5, -1.25], "c": [b"", b"\x00x"], "d": []}
  theirs = tf_example.Example.FromString(example.serialize(values)).features.feature
  assert list(theirs["a"].int64_list.value) == values["a"]
  assert list(theirs["b"].float_list.value) == values["b"]
  assert list(theirs["c"].bytes_list.value) == values["c"]
  assert theirs["d"].WhichOneof("kind") == "bytes_list"
  assert example.parse(example.serialize(values)) == values


def test_every_column_says_what_it_is():
  for kind, cls in records.CLASSES.items():
    assert list(records.COLUMNS[kind]) == [field.name for field in dataclasses.fields(cls)]
    assert all(column.meaning for column in records.COLUMNS[kind].values())


@pytest.mark.parametrize(
  "record, text",
  [
    (make_clip(video=np.zeros((3, 4, 5, 4), np.uint8)), r"video is uint8 \(3, 4, 5, 4\), not"),
    (make_clip(video=np.zeros((3, 4, 5, 3), np.float32)), r"video is float32 .* not uint8"),
    (make_clip(video=np.zeros((0, 4, 5, 3), np.uint8)), r"video is uint8 \(0, 4, 5, 3\)"),
    (make_clip(captions="a red disc"), "captions is not a tuple of str"),
    (make_clip(captions=(b"x",)), "captions is not a tuple of str"),
    (make_clip(truth="x"), "truth is not bytes"),
    (make_clip(split="test"), "split='test' is unknown .*Use one of train, held_out"),
    (make_clip(fps=float("nan")), "fps=nan is no rate"),
    (make_clip(fps=0.0), "fps=0.0 is no rate"),
    (make_clip(fps=float("inf")), "fps=inf is no rate"),
    (make_clip(id=""), "id='', source='source' must not be empty"),
    (make_clip(version=1), "version=1 is not 2"),
    (
      make_clip(video=EncodedVideo(b"x", (3, 4, 5))),
      r"video is encoded as bytes of \(3, 4, 5\), not",
    ),
    (make_clip(video=EncodedVideo(b"x", (3, 0, 5, 3))), r"not bytes of \[F,H,W,3\]"),
    (make_clip(video=EncodedVideo("x", (3, 4, 5, 3))), "video is encoded as str of"),
    (make_clip(scores="motion"), "scores='motion' is no JSON object of numbers"),
    (make_clip(scores="[1]"), "is no JSON object of numbers"),
    (make_clip(scores='{"a": NaN}'), "is no JSON object of numbers .*Give finite ones"),
    (make_clip(scores='{"a": true}'), "is no JSON object of numbers"),
    (make_latent(scores='{"a": "b"}'), "is no JSON object of numbers"),
    (make_latent(scores=None), "scores is not str"),
    (make_latent(latent=np.zeros((1, 2, 2, 4), np.float32)), "latent is float32 .* not bfloat16"),
    (make_latent(crop=(0, 0)), r"crop is int64|crop is int32 \(2,\), not int32 \[4\]"),
    (make_latent(crop=(0.5, 0, 0, 0)), "crop is float64"),
    (make_latent(captions=("one",)), "text_ids/words of 3 captions, not 1"),
    (make_latent(text_ids={"words": ([1.5], [], [2])}), "text_ids/words is float64"),
    (make_latent(text_ids={"words": ([1], [1], [1])}), r"text_states/words is bfloat16 \(3, 6\)"),
    (make_latent(text_ids={}, states=False), "text_ids has no tokenizer"),
    (make_latent(text_ids=((), (), ()), states=False), "text_ids is no mapping by the tokenizers"),
    (make_latent(text_ids={"a/b": ((), (), ())}, states=False), "text_ids has a tokenizer 'a/b'"),
    (make_latent(text_ids={"bytes": ([1], [], [2])}), "text_states is no mapping by the tokeni"),
  ],
)
def test_refuses_what_breaks_the_table(record, text):
  with pytest.raises(BadInput, match=text):
    records.check_record(record)

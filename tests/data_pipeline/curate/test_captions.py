"""Captions of a clip: what came with it, what an endpoint says of its frames, what was measured."""

import json
import runpy
import threading
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.curate.caption_settings import CaptionSettings, read_settings
from data_pipeline.curate.captions import (
  caption_clip,
  caption_clips,
  describe,
  hash_frames,
  pick_frames,
  read_caption,
)
from data_pipeline.curate.chat import Answer, Chat, Usage
from data_pipeline.curate.motion import CAMERA
from data_pipeline.curate.types import Refused
from data_pipeline.errors import BadInput
from data_pipeline.records import ClipRecord
from data_pipeline.video_writer import encode_video

names = runpy.run_path(str(Path(__file__).with_name("chat_stub.py")))
ChatStub, Fault, answer_with = (names[name] for name in ("ChatStub", "Fault", "answer_with"))

VARIABLE = names["VARIABLE"]
CHAT = names["SETTINGS"] | dict(base_url="http://127.0.0.1/v1", request={}, max_side=64)
CHAT |= dict(concurrency=4, tries=2, prompt_price=1.0, completion_price=1.0)
PROMPTS = (
  dict(name="short", text="Say in one sentence what happens here.", max_characters=80),
  dict(name="long", text="Describe the clip in detail, in a paragraph.", max_characters=400),
)
SETTINGS = dict(
  prompts=PROMPTS,
  frames=2,
  asked="all",
  measured="none",
  words={"motion": ("little motion", 0.1, "some motion", 0.3, "strong motion")},
  camera={word: f"the camera does {word}" for word in CAMERA} | {"unsteady": ""},
  chat=CHAT,
)


def settings_of(**changes) -> CaptionSettings:
  return read_settings(SETTINGS | changes)


def record_of(number=0, captions=(), **fields):
  video = np.random.default_rng(number).integers(0, 256, (5, 16, 24, 3), np.uint8)
  base = dict(id=f"clip:{number}", source="s", licence="", split="train", start_frame=0, fps=8.0)
  base |= dict(video=video, captions=captions, attributes="", truth=b"", scores="")
  return ClipRecord(**(base | fields))


@pytest.fixture
def stub(monkeypatch):
  with ChatStub() as served:
    monkeypatch.setenv(VARIABLE, served.key)
    yield served


@pytest.fixture
def chat(stub, tmp_path):
  chat = settings_of(chat=CHAT | {"base_url": stub.url}).chat
  return Chat(chat, tmp_path)


def test_side_car_captions_come_first_then_one_a_prompt(stub, chat):
  found = caption_clip(record_of(captions=("mine", "also mine")), "", settings_of(), chat.ask)
  assert [r.prompt for r in stub.requests] == [prompt["text"] for prompt in PROMPTS]
  assert all(request.images == ((24, 16), (24, 16)) for request in stub.requests)
  assert found.captions[:2] == ("mine", "also mine") and len(found.captions) == 4
  assert found.captions[2].endswith("asked: 38 characters.") and found.failed == ""
  assert found.usage == found.spent == Usage(2, 200, 14, pytest.approx(214e-6))


def test_a_rerun_asks_nothing_and_gives_the_same(stub, chat):
  first = caption_clip(record_of(), "", settings_of(), chat.ask)
  again = caption_clip(record_of(id="other", source="other"), "", settings_of(), chat.ask)
  assert len(stub.requests) == 2 and again.spent == Usage()
  assert again.captions == first.captions and again.usage == first.usage


def test_other_content_is_asked(stub, chat):
  video = record_of().video.copy()
  video[0, 0, 0, 0] ^= 1
  assert hash_frames(video, 2) != hash_frames(record_of().video, 2)
  assert hash_frames(record_of().video, 3) != hash_frames(record_of().video, 2)
  for record in (record_of(), record_of(video=video)):
    caption_clip(record, "", settings_of(), chat.ask)
  assert len(stub.requests) == 4


def test_captioned_clips_may_be_left_alone(stub, chat):
  settings = settings_of(asked="uncaptioned")
  assert caption_clip(record_of(captions=("mine",)), "", settings, chat.ask).captions == ("mine",)
  assert stub.requests == []
  assert len(caption_clip(record_of(), "", settings, chat.ask).captions) == 2


def test_without_prompts_no_endpoint_is_needed():
  settings = settings_of(prompts=(), chat={})
  assert settings.chat is None
  assert caption_clip(record_of(captions=("a", "b", "a")), "", settings, None).captions == (
    "a",
    "b",
  )


@pytest.mark.parametrize(
  "measured, captions, expected",
  [
    ("none", ("a fox",), ("a fox",)),
    (
      "append",
      ("a fox", "It runs!"),
      (
        "a fox. The camera does pan left; some motion.",
        "It runs! The camera does pan left; some motion.",
      ),
    ),
    ("append", (), ("The camera does pan left; some motion.",)),
    ("own", ("a fox",), ("a fox", "The camera does pan left; some motion.")),
  ],
)
def test_what_was_measured_is_written(measured, captions, expected):
  settings = settings_of(prompts=(), measured=measured)
  record = record_of(captions=captions, scores=json.dumps({"motion": 0.1, "text": 0.5}))
  assert caption_clip(record, "pan left", settings, None).captions == expected


@pytest.mark.parametrize(
  "motion, said",
  [(0.0, "Little"), (0.099, "Little"), (0.1, "Some"), (0.3, "Strong"), (9, "Strong")],
)
def test_words_lie_between_their_limits(motion, said):
  assert describe({"motion": motion}, "", settings_of()) == f"{said} motion."


def test_nothing_is_said_of_what_was_not_measured():
  assert describe({}, "", settings_of()) == "" == describe({}, "unsteady", settings_of())
  silent = settings_of(prompts=(), measured="own")
  assert caption_clip(record_of(captions=("a",)), "", silent, None).captions == ("a",)


@pytest.mark.parametrize("encoded", [False, True])
def test_frames_are_the_middles_of_equal_parts(encoded):
  video = np.stack([np.full((8, 8, 3), 10 * i, np.uint8) for i in range(20)])
  if encoded:
    video = encode_video(video, width=8, height=8, fps=8, codec="lossless", quality=0)
  for count, places in [(1, [10]), (2, [5, 15]), (3, [3, 10, 16]), (30, range(20))]:
    assert [frame[0, 0, 0] // 10 for frame in pick_frames(video, count)] == list(places)


def answer_of(text, fault=""):
  return Answer(text, fault, Usage(), True)


PROMPT = settings_of().prompts[0]


@pytest.mark.parametrize(
  "text, caption",
  [
    ("  A fox\n\nruns.\r\n", "A fox runs."),
    ('"A fox runs."', "A fox runs."),
    ('"Stop", says a "fox"', '"Stop", says a "fox"'),
    ("A fox\u2028runs\x00 \ud800", "A fox runs"),
    ("Ein Füchslein 🦊 läuft.", "Ein Füchslein 🦊 läuft."),
    ("x" * 80, "x" * 80),
    ("A sign says: sorry, we are closed.", "A sign says: sorry, we are closed."),
  ],
)
def test_an_answer_becomes_one_line(text, caption):
  assert read_caption(answer_of(text), PROMPT) == caption


@pytest.mark.parametrize(
  "text, fault",
  [
    ("", "an empty answer"),
    (" \n…\n", "an empty answer"),
    ("x" * 81, "81 characters, more than max_characters=80"),
    ("As an AI, I cannot see videos.", "no caption, but 'As an AI, I cannot"),
    ("I, as a large language model, see it.", "no caption, but 'I, as a large"),
    ("I’m sorry, but I can’t help.", "no caption, but"),
    ("I can't tell.", "no caption, but"),
    ("<think>Let me see", "no caption, but"),
    ("say in one sentence WHAT happens\nhere.", "the prompt again"),
  ],
)
def test_what_is_no_caption_is_refused(text, fault):
  with pytest.raises(Refused, match=f"^caption_failed: {fault}"):
    read_caption(answer_of(text), PROMPT)


@pytest.mark.parametrize(
  "faults, failed",
  [
    ([Fault(500)] * 2, "long: status 500"),
    ([Fault(400)], "long: status 400"),
    ([answer_with(content="")], "long: an empty answer"),
    ([answer_with(content="", refusal="I may not.")], "long: the model declined: I may not."),
    ([Fault(200, b"{")] * 2, "long: the answer is not of the protocol"),
  ],
)
def test_a_failed_prompt_gives_a_reason_for_the_clip(stub, chat, faults, failed):
  stub.faults = [answer_with(content="a fox"), *faults]
  clips = [(record_of(0, ("mine",)), ""), (record_of(1), "")]
  (broken, one), (whole, two) = caption_clips(clips, settings_of(), chat.ask, threads=1)
  assert one.failed.startswith(failed) and one.captions == () and broken.captions == ("mine",)
  assert one.usage.answers >= 1  # what was paid for the other prompt is told
  assert two.failed == "" and len(whole.captions) == 2


def test_clips_are_captioned_at_once_and_in_order(stub, chat):
  stub.seconds = 0.05
  records = [record_of(number) for number in range(10)]
  clips = ((record, "static") for record in records)
  found = list(caption_clips(clips, settings_of(prompts=PROMPTS[:1]), chat.ask, threads=4))
  assert [record.id for record, _ in found] == [record.id for record in records]
  assert len({record.captions for record, _ in found}) == 10 and stub.most_at_once == 4


def test_clips_are_read_as_they_are_needed():
  read = []
  clips = ((read.append(n) or record_of(n), "") for n in range(100))
  captioned = caption_clips(clips, settings_of(prompts=()), None, threads=2)
  next(captioned)
  assert len(read) <= 4
  captioned.close()


def test_a_wrong_key_ends_all_of_it(stub, chat):
  stub.key = "another"
  clips = ((record_of(number), "") for number in range(100))
  with pytest.raises(BadInput, match="status 401"):
    list(caption_clips(clips, settings_of(), chat.ask, threads=4))
  assert sum(stub.keys.values()) <= 4
  assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


@pytest.mark.parametrize(
  "changes, match",
  [
    (dict(asked="some"), "asked='some' is unknown. Use one of all, uncaptioned"),
    (dict(measured="yes"), "measured='yes' is unknown"),
    (dict(frames=0), "frames=0 is not in 1"),
    (dict(words={"motion": ("a", 0.3, "b", 0.1, "c")}), "words.motion=.*ascending limits"),
    (dict(words={"motion": ("a", 0.3)}), "words.motion="),
    (dict(camera={"static": ""}), "must say each of static, pan left"),
    (dict(other=1), r"captions.other is unknown. Its settings are asked, camera"),
    (dict(prompts=({"name": "x"},)), "prompts.max_characters is missing"),
    (dict(prompts=({"name": "x", "text": " ", "max_characters": 9},)), "prompt 'x' has no text"),
    (dict(chat=CHAT | {"temperature": 1}), "chat.temperature is unknown"),
  ],
)
def test_refuses_settings(changes, match):
  with pytest.raises(BadInput, match=match):
    settings_of(**changes)

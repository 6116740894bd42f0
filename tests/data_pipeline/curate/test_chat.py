"""`Chat` against an endpoint on this machine that speaks the protocol: one question, asked once."""

import base64
import io
import logging
import pickle
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.curate.chat import Chat, Usage
from data_pipeline.curate.endpoint import ChatSettings
from data_pipeline.curate.types import Refused
from data_pipeline.errors import BadInput

names = runpy.run_path(str(Path(__file__).with_name("chat_stub.py")))
ChatStub, SETTINGS, VARIABLE = (names[name] for name in ("ChatStub", "SETTINGS", "VARIABLE"))
Fault, answer_with, error = (names[name] for name in ("Fault", "answer_with", "error"))


def settings_of(url, **changes):
  return ChatSettings(**({"base_url": url, **SETTINGS} | changes))


def frames(number=0):
  rng = np.random.default_rng(number)
  return [rng.integers(0, 256, (30, 48, 3), np.uint8) for _ in range(2)]


@pytest.fixture
def stub(monkeypatch):
  with ChatStub() as served:
    monkeypatch.setenv(VARIABLE, served.key)
    yield served


@pytest.fixture
def make(stub, tmp_path):
  return lambda **changes: Chat(settings_of(stub.url, **changes), tmp_path / "answers")


def ask(chat, content="c", prompt="Describe it."):
  return chat.ask(prompt, content, frames)


def test_the_request_is_of_the_protocol(stub, make):
  answer = ask(make(request={"temperature": 0.5, "max_tokens": 80}))
  (request,) = stub.requests
  assert stub.refused == [] and set(stub.keys) == {stub.key}
  assert request.prompt == "Describe it." and request.images == ((24, 15), (24, 15))
  assert set(request.body) == {"model", "messages", "temperature", "max_tokens"}
  assert answer.text.startswith("A clip of ") and answer.is_new and not answer.fault
  assert answer.usage == Usage(1, 100, 7, pytest.approx((100 * 2 + 7 * 10) / 1e6))
  assert answer.usage.plus(answer.usage).prompt_tokens == 200


def test_frames_are_sent_as_they_are(stub, make):
  smooth = np.broadcast_to(np.arange(0, 240, 10, np.uint8)[None, :, None], (24, 24, 3)).copy()
  make(jpeg_quality=95).ask("p", "c", lambda: [smooth])
  url = stub.requests[0].body["messages"][0]["content"][1]["image_url"]["url"]
  seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))
  assert seen.shape == smooth.shape and np.abs(seen.astype(int) - smooth).max() <= 4


def test_nothing_is_asked_twice(stub, make):
  first = [ask(make(), content, prompt) for content in "ab" for prompt in ("short", "long")]
  assert len(stub.requests) == 4 and all(answer.is_new for answer in first)
  again = [ask(make(), content, prompt) for content in "ab" for prompt in ("short", "long")]
  assert len(stub.requests) == 4 and not any(answer.is_new for answer in again)
  assert [a[:3] for a in again] == [a[:3] for a in first]


def test_frames_of_a_kept_answer_are_not_made(make):
  ask(make())
  make().ask("Describe it.", "c", lambda: pytest.fail("decoded for nothing"))


@pytest.mark.parametrize(
  "changes", [{"model": "other"}, {"request": {}}, {"max_side": 16}, {"jpeg_quality": 50}]
)
def test_another_question_is_asked(stub, make, changes):
  ask(make())
  stub.model = changes.get("model", stub.model)
  assert ask(make(**changes)).is_new and len(stub.requests) == 2


def test_what_does_not_change_the_question_does_not(stub, make):
  ask(make())
  stub.always = Fault()
  kept = ask(make(concurrency=1, tries=1, timeout_seconds=1.0, prompt_price=0.0))
  assert not kept.is_new and kept.usage.cost == pytest.approx(7 * 10 / 1e6)


def test_one_question_at_a_time_is_asked_once(stub, make):
  stub.seconds = 0.1
  chats = [make(), make()]  # as of two processes: they share nothing but the folder
  with ThreadPoolExecutor(6) as pool:
    answers = list(pool.map(lambda i: ask(chats[i % 2]), range(6)))
  assert len(stub.requests) == 1 and sum(answer.is_new for answer in answers) == 1


def test_requests_in_flight_are_limited(stub, make):
  stub.seconds = 0.05
  chats = [make(), make()]
  with ThreadPoolExecutor(12) as pool:
    list(pool.map(lambda i: ask(chats[i % 2], str(i)), range(18)))
  assert len(stub.requests) == 18 and stub.most_at_once == 3


def test_the_key_is_nowhere(stub, make, tmp_path, caplog, capfd):
  caplog.set_level(logging.DEBUG)
  chat = make()
  stub.faults = [Fault(500, error(f"you sent {stub.key}")), answer_with(content=f"a {stub.key}")]
  assert ask(chat).text == "a [key]"
  stub.always = Fault(400, error(f"you sent {stub.key}"))
  with pytest.raises(Refused) as caught:
    ask(chat, "other")
  text = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
  text += caplog.text + "".join(capfd.readouterr()) + repr(caught.value) + repr(vars(chat))
  assert "[key]" in text and stub.key not in text
  assert stub.key.encode() not in pickle.dumps(chat)


def test_works_after_pickling(stub, make):
  chat = make()
  ask(chat)
  assert ask(pickle.loads(pickle.dumps(chat)), "other").is_new


def test_a_key_with_a_line_break_is_refused(make, monkeypatch):
  for key in ("", "two words", "sk-broken\n"):
    monkeypatch.setenv(VARIABLE, key)
    with pytest.raises(BadInput, match=f"variable {VARIABLE} holds no API key") as caught:
      make()
    assert "sk-" not in str(caught.value)


def test_an_endpoint_without_a_key(stub, make, monkeypatch):
  monkeypatch.delenv(VARIABLE)
  stub.key = "none"
  assert ask(make(api_key_variable="")).is_new


def test_names_the_extra(make, monkeypatch):
  monkeypatch.setitem(sys.modules, "openai", None)
  with pytest.raises(BadInput, match=r"pip install 'sora_jax\[data\]'"):
    ask(make())


def test_a_damaged_answer_is_named(stub, make, tmp_path):
  ask(make())
  (path,) = tmp_path.rglob("*.json")
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(BadInput, match=f"{path} is damaged .* Remove it"):
    ask(make())


def test_leaves_no_locks_behind(stub, make, tmp_path):
  stub.faults = [Fault()] * 3
  with pytest.raises(Refused):
    ask(make())
  ask(make(), "other")
  assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()].count(".part") == 0

"""What goes wrong with an endpoint: tried again, a reason for the clip, or the end of the job."""

import runpy
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.curate.chat import Chat
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


@pytest.mark.parametrize(
  "fault",
  [
    Fault(500),
    Fault(503),
    Fault(429),
    Fault(408),
    Fault(200, b'{"choices": [tr'),
    Fault(200, b'{"choices": []}'),
    Fault(200, b'{"choices": [{"message": {"content": [1]}}]}'),
    Fault(200, b"<html>busy</html>"),
  ],
  ids=lambda fault: f"{fault.status}-{(fault.body or b'').decode()[:16]}",
)
def test_passing_faults_are_tried_again(stub, make, fault):
  stub.faults = [fault, fault]
  assert ask(make()).is_new and len(stub.requests) == 3
  stub.faults = [fault] * 3
  with pytest.raises(Refused, match=r"^caption_failed: .*at the last of 3 tries") as caught:
    ask(make(), "other")
  assert caught.value.reason == "caption_failed" and len(stub.requests) == 6
  assert ask(make(), "other").is_new  # a failure is not kept


def test_waits_double(stub, make):
  stub.faults = [Fault()] * 4
  ask(make(tries=5, wait_seconds=0.04))
  waits = np.diff(stub.times)
  for number, wait in enumerate(waits):
    assert 0.5 * 0.04 * 2**number <= wait <= 1.5 * 0.04 * 2**number + 0.2, waits


@pytest.mark.parametrize("date", [False, True])
def test_waits_as_long_as_it_is_told(stub, make, date):
  wait = formatdate(time.time() + 2, usegmt=True) if date else "1"
  stub.faults = [Fault(429, headers={"Retry-After": wait})]
  ask(make())
  assert np.diff(stub.times)[0] >= 0.9


def test_a_silent_endpoint(stub, make):
  stub.faults = [Fault(seconds=0.5)]
  assert ask(make(timeout_seconds=0.1)).is_new
  stub.always = Fault(seconds=0.5)
  with pytest.raises(Refused, match=r"no answer within 0\.1 s, at the last of 2 tries"):
    ask(make(timeout_seconds=0.1, tries=2), "other")


@pytest.mark.parametrize(
  "changes, fault",
  [
    ({"content": None, "refusal": "I can't help."}, "the model declined: I can't help."),
    ({"content": "x", "finish_reason": "content_filter"}, "the model declined: x"),
    ({"finish_reason": "length"}, "cut off after 7 tokens"),
    ({"content": None}, ""),
  ],
)
def test_answers_that_are_none_are_kept_and_paid(stub, make, changes, fault):
  stub.always = answer_with(**changes)
  for is_new in (True, False):
    answer = ask(make())
    assert (answer.fault, answer.is_new, answer.usage.answers) == (fault, is_new, 1)
  assert len(stub.requests) == 1


def test_a_question_that_is_not_taken(stub, make):
  stub.always = Fault(400, error("image is\ntoo strange"))
  with pytest.raises(Refused, match="^caption_failed: status 400: .*image is too strange"):
    ask(make())
  assert len(stub.requests) == 1


def test_a_wrong_key_ends_the_job(stub, make, monkeypatch):
  monkeypatch.setenv(VARIABLE, "sk-the-wrong-one")
  chat = make()
  with pytest.raises(BadInput, match=rf"status 401: .*\[key\].*{VARIABLE}") as caught:
    ask(chat)
  assert "sk-the" not in str(caught.value) and "\n" not in str(caught.value)
  with pytest.raises(BadInput, match="status 401"):
    ask(chat, "other")
  assert sum(stub.keys.values()) == 1  # the second question was not even sent


@pytest.mark.parametrize(
  "model, fault, match",
  [
    ("none", None, "status 404: .*The model 'none' does not exist"),
    ("stub", Fault(402, error("pay first")), "status 402: .*pay first"),
    ("stub", Fault(429, error("no credit", "insufficient_quota")), "status 429: .*no credit"),
  ],
)
def test_what_all_questions_would_meet_ends_the_job(stub, make, model, fault, match):
  stub.always = fault
  with pytest.raises(BadInput, match=rf"captions: base_url=http://127.*cannot be asked \({match}"):
    ask(make(model=model))
  assert len(stub.times) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "http://nowhere.invalid/v1"])
def test_an_unreachable_host_ends_the_job(stub, make, url):
  with pytest.raises(BadInput, match=rf"{url}.*cannot be asked .*at the last of 3 tries"):
    ask(make(base_url=url))


def test_an_ending_job_does_not_wait(stub, make):
  stub.faults = [Fault(429, headers={"Retry-After": "200"})]
  chat, start = make(), time.monotonic()
  with ThreadPoolExecutor(1) as pool:
    waiting = pool.submit(ask, chat)
    while not stub.times:
      time.sleep(0.01)
    stub.always = Fault(401)
    with pytest.raises(BadInput):
      ask(chat, "other")
    with pytest.raises(BadInput, match="status 401"):
      waiting.result()
  assert time.monotonic() - start < 20


def test_an_endpoint_that_always_fails_is_given_up(stub, make):
  stub.always, chat = Fault(), make(tries=1, give_up=3)
  for content in "ab":
    with pytest.raises(Refused):
      ask(chat, content)
  stub.always = None
  ask(chat, "c")  # one answer, and the count begins anew
  stub.always = Fault()
  for content in "de":
    with pytest.raises(Refused):
      ask(chat, content)
  with pytest.raises(BadInput, match="3 questions in a row failed, the last with: status 500"):
    ask(chat, "f")


@pytest.mark.parametrize(
  "changes, match",
  [
    ({"url": "ftp://host/v1"}, "base_url is not http"),
    ({"url": "http://user:sk-secret@host/v1"}, "base_url is not http"),
    ({"model": ""}, "model='' names no model"),
    ({"concurrency": 0}, "concurrency=0 is not in 1"),
    ({"jpeg_quality": 100}, r"jpeg_quality=100 is not in 1\.\.95"),
    ({"request": {"messages": []}}, "request.messages is not free to choose"),
  ],
)
def test_refuses_settings(changes, match):
  with pytest.raises(BadInput, match=match) as caught:
    settings_of(**({"url": "http://host/v1"} | changes))
  assert "sk-secret" not in str(caught.value)

"""Answers are kept whole, and made once, whoever asks and whoever is killed."""

import json
import os
import runpy
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_pipeline.curate.answers import Answers, Turns
from data_pipeline.errors import BadInput

names = runpy.run_path(str(Path(__file__).with_name("chat_stub.py")))
ChatStub, SETTINGS, VARIABLE = (names[name] for name in ("ChatStub", "SETTINGS", "VARIABLE"))


@pytest.fixture
def stub(monkeypatch):
  with ChatStub() as served:
    monkeypatch.setenv(VARIABLE, served.key)
    yield served


JOB = """
import sys
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from data_pipeline.curate.chat import Chat
from data_pipeline.curate.endpoint import ChatSettings
chat = Chat(ChatSettings(**eval(sys.argv[1])), sys.argv[2])
frame = np.zeros((16, 16, 3), np.uint8)
with ThreadPoolExecutor(3) as pool:
  list(pool.map(lambda i: chat.ask("p", str(i), lambda: [frame + i]), range(24)))
"""


def start_job(stub, folder):
  words = [repr({"base_url": stub.url, **SETTINGS}), str(folder)]
  return subprocess.Popen([sys.executable, "-c", textwrap.dedent(JOB), *words], cwd=os.getcwd())


@pytest.mark.slow
def test_a_killed_job_asks_for_the_rest_only(stub, tmp_path):
  stub.seconds = 0.1
  job = start_job(stub, tmp_path)
  while len(list(tmp_path.rglob("*.json"))) < 6:
    time.sleep(0.01)
  job.send_signal(signal.SIGKILL)
  job.wait()
  time.sleep(0.2)  # the endpoint ends what it was at
  kept, asked = len(list(tmp_path.rglob("*.json"))), len(stub.requests)
  assert 6 <= kept < 24 and asked - kept <= 3  # lost: what was in flight
  jobs = [start_job(stub, tmp_path), start_job(stub, tmp_path)]
  assert [job.wait() for job in jobs] == [0, 0]
  assert len(stub.requests) - asked == 24 - kept
  assert max(stub.questions().values()) <= 2 and stub.most_at_once <= 3


def test_answers_wait_for_each_other(tmp_path):
  answers, begun, made = Answers(tmp_path), threading.Event(), []

  def fail():
    begun.set()
    time.sleep(0.1)
    raise ZeroDivisionError

  with ThreadPoolExecutor(2) as pool:
    first = pool.submit(answers.get, "key", fail)
    begun.wait()
    second = pool.submit(answers.get, "key", lambda: made.append(1) or {"a": 1})
    assert second.result() == ({"a": 1}, False) and first.done()
  with pytest.raises(ZeroDivisionError):
    first.result()
  (tmp_path / "ke" / "key.part").write_bytes(b'{"a": 7')  # of a killed one
  assert answers.get("key", dict) == ({"a": 1}, True)
  (tmp_path / "ke" / "kez.part").write_bytes(b'{"a": 7')
  assert answers.get("kez", lambda: {"b": 2}) == ({"b": 2}, False)
  assert json.loads((tmp_path / "ke" / "kez.json").read_bytes()) == {"b": 2}


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(BadInput, match="cache=.*file/answers cannot be made"):
    Answers(tmp_path / "file" / "answers")


def test_a_turn_ends_with_its_block(tmp_path):
  turns = Turns(tmp_path, 1)
  with pytest.raises(ZeroDivisionError), turns.take():
    raise ZeroDivisionError
  with turns.take():
    pass

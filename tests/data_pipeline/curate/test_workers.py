"""What workers decide, and when they decide it again."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from data_pipeline.curate.chat import Answer, Usage
from data_pipeline.curate.settings import read_settings
from data_pipeline.curate.spool import Work, read_decision
from data_pipeline.curate.spool_writer import Spool
from data_pipeline.curate.types import Refused, Source
from data_pipeline.curate.workers import Decider
from data_pipeline.records import ClipRecord
from experiments import curate_default

STUB = runpy.run_path(str(Path(__file__).with_name("chat_stub.py")))


class Model:
  """An endpoint: silent for None, otherwise it says its text."""

  def __init__(self):
    self.text: str | None = None
    self.asked = 0
    self.settings = SimpleNamespace(concurrency=1)

  def ask(self, prompt, content, frames):
    self.asked += 1
    if self.text is None:
      raise Refused("caption_failed", "nobody answers")
    return Answer(self.text, "", Usage(1, 0, 0, 0.0), True)

  def key(self, prompt, content):
    return content


def make_settings():
  config = curate_default.get_config("debug").curate.to_dict()
  chat = {"base_url": "http://localhost", **STUB["SETTINGS"]}
  prompts = (dict(name="short", text="Describe it briefly.", max_characters=300),)
  config["captions"] |= dict(prompts=prompts, chat=chat)
  return read_settings(config)


def make_summary(settings, folder):
  spool = Spool(Source(name="a", path="a"), settings, folder)
  fields = dict(id="a:0-1", source="a", licence="", split="train", start_frame=0, fps=1.0)
  video = np.zeros((1, 2, 2, 3), np.uint8)
  record = ClipRecord(**fields, video=video, captions=(), attributes="", truth=b"")
  spool.add(record, dict(id=record.id, camera=""))
  return spool.finish()


def test_no_answer_is_asked_for_again_and_a_bad_answer_is_not(tmp_path):
  settings, work, model = make_settings(), Work(tmp_path), Model()
  summary = make_summary(settings, work.spools)
  decider = Decider(settings, work, model)

  def decide(text):
    model.text = text
    list(decider.decide([summary], {}))
    decision = read_decision(summary, work)
    assert decision is not None
    return model.asked, decision.captions, list(decision.failed.values())

  assert decide(None) == (1, {}, ["short: nobody answers"])
  assert decide("...") == (2, {}, ["short: an empty answer"])
  assert decide("A black picture.") == (2, {}, ["short: an empty answer"])  # stands

"""Asks a chat endpoint about the frames of a clip, and no question twice.

What is wrong with one question is `Refused`; what would be wrong with every question (a wrong key,
an unknown model, an endpoint that is not there) is `BadInput`, and ends the job.
"""

import base64
import hashlib
import io
import json
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from PIL import Image

from data_pipeline import hashing
from data_pipeline.curate.answers import Answers, Turns
from data_pipeline.curate.endpoint import FAILED, Again, ChatSettings, Endpoint, Hopeless, shorten
from data_pipeline.curate.types import Refused
from data_pipeline.errors import BadInput

Frames = Callable[[], Sequence[np.ndarray]]  # uint8 RGB [H,W,3] each; called only when asked

_LONGEST_WAIT = 300.0  # seconds between two tries, whatever the endpoint asks for


class Usage(NamedTuple):
  """What answers took: how many, their tokens, and the cost by the prices of the settings."""

  answers: int = 0
  prompt_tokens: int = 0
  completion_tokens: int = 0
  cost: float = 0.0

  def plus(self, other: "Usage") -> "Usage":
    a, b = self, other
    return Usage(
      a.answers + b.answers,
      a.prompt_tokens + b.prompt_tokens,
      a.completion_tokens + b.completion_tokens,
      a.cost + b.cost,
    )


class Answer(NamedTuple):
  """What the endpoint said.

  Attributes:
    text: as the model wrote it.
    fault: why it is no whole answer; "" for one that is.
    usage: what it took when it was asked.
    is_new: it was asked now, not found among those kept.
  """

  text: str
  fault: str
  usage: Usage
  is_new: bool


class Chat:
  """Asks one endpoint. Safe to use from many threads, and after pickling.

  Args:
    settings: which endpoint, and how.
    folder: of the answers that are kept. The address of the endpoint is not part of a question:
      a model may move.
  Raises:
    BadInput: the API key is not there; the folder cannot be made.
  """

  def __init__(self, settings: ChatSettings, folder: str | os.PathLike):
    self.settings = settings
    self._folder = os.fspath(folder)
    self._endpoint = Endpoint(settings)
    self._answers, self._turns = Answers(folder), Turns(folder, settings.concurrency)
    self._ended = threading.Event()
    self._why = ""
    self._failures = 0

  def __reduce__(self):
    return Chat, (self.settings, self._folder)

  def ask(self, prompt: str, content: str, frames: Frames) -> Answer:
    """The endpoint's answer to a prompt about some frames.

    Args:
      prompt: text of the question.
      content: hash of what the frames are taken from, and how.
      frames: gives them.
    Raises:
      Refused: "caption_failed": no answer.
      BadInput: what would meet every question. Those asked at the same time raise it too.
    """
    key = self.key(prompt, content)
    kept, was_kept = self._answers.get(key, lambda: self._request(key, prompt, frames()))
    return Answer(kept["text"], _fault(kept), self._count(kept), not was_kept)

  def key(self, prompt: str, content: str) -> str:
    """Name of the answer to a prompt about some content, among those that are kept."""
    s = self.settings
    facts = [1, content, prompt, s.model, dict(s.request), s.max_side, s.jpeg_quality]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

  def _count(self, kept: dict) -> Usage:
    prompt, completion = kept["prompt_tokens"], kept["completion_tokens"]
    s = self.settings
    cost = (prompt * s.prompt_price + completion * s.completion_price) / 1e6
    return Usage(1, prompt, completion, cost)

  def _request(self, key: str, prompt: str, frames: Sequence[np.ndarray]) -> dict[str, Any]:
    """Sends a question until it is answered. Returns what is kept of the answer."""
    content: list[dict] = [{"type": "text", "text": prompt}]
    content += [{"type": "image_url", "image_url": {"url": self._to_url(f)}} for f in frames]
    try:
      answer = self._try(key, [{"role": "user", "content": content}])
    except Refused as error:
      self._failures += 1
      if self._failures >= self.settings.give_up:
        self._end(f"{self._failures} questions in a row failed, the last with: {error.detail}")
      raise
    self._failures = 0
    return answer

  def _to_url(self, frame: np.ndarray) -> str:
    image, file = Image.fromarray(frame), io.BytesIO()
    image.thumbnail((self.settings.max_side, self.settings.max_side), Image.Resampling.LANCZOS)
    image.save(file, format="JPEG", quality=self.settings.jpeg_quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"

  def _try(self, key: str, messages: list[dict]) -> dict[str, Any]:
    last = Again("")
    for number in range(self.settings.tries):
      if number:
        self._wait(last.wait, number, key)
      with self._turns.take():
        if self._ended.is_set():
          raise BadInput(self._why)
        try:
          return self._endpoint.send(messages)
        except Hopeless as error:
          self._end(str(error))
        except Again as error:
          last = error
    detail = f"{last.detail}, at the last of {self.settings.tries} tries"
    if last.for_all:
      self._end(detail)
    raise Refused(FAILED, detail)

  def _wait(self, asked: float, number: int, key: str) -> None:
    """Waits as long as the endpoint asked for, or twice as long as before, ± half of it."""
    spread = 0.5 + float(hashing.uniform(int(key[:15], 16), number))
    own = self.settings.wait_seconds * 2 ** (number - 1) * spread
    self._ended.wait(min(max(asked, own), _LONGEST_WAIT))

  def _end(self, why: str) -> NoReturn:
    """Ends all asking: this question's and those of other threads."""
    self._why = (
      f"captions: {self._endpoint} cannot be asked ({why.rstrip('.')}). Correct the address, the "
      f"model or the key in {self.settings.api_key_variable or 'an environment variable'}, and run "
      "it again: answers so far are kept."
    )
    self._ended.set()
    raise BadInput(self._why) from None


def _fault(kept: dict[str, Any]) -> str:
  if kept["refusal"] or kept["finish_reason"] == "content_filter":
    return f"the model declined: {shorten(kept['refusal'] or kept['text'])}"
  if kept["finish_reason"] == "length":
    return f"cut off after {kept['completion_tokens']} tokens"
  return ""

"""An OpenAI-compatible chat endpoint: sends a question once, and sorts what comes back.

The API key stays in its environment variable: it is neither pickled nor kept, and cut out of
whatever the endpoint says. Protocol: https://platform.openai.com/docs/api-reference/chat/create
"""

import dataclasses
import email.utils
import json
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import urlsplit

from data_pipeline.curate.fields import check_range
from data_pipeline.curate.types import Refused
from data_pipeline.errors import BadInput

FAILED = "caption_failed"  # reason of a reject
_FOR_ALL = {401, 402, 403, 404}  # statuses that every question would meet
_AGAIN = {408, 409, 429}  # and from 500 on
_NOT_THERE = {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatSettings:
  """An endpoint, and how it is asked.

  Attributes:
    base_url: what `/chat/completions` is added to, such as "https://api.openai.com/v1".
    model: as the endpoint calls it.
    api_key_variable: environment variable that holds the API key; "" for an endpoint without one.
    request: further fields of the request, such as `temperature`, as the endpoint knows them.
    max_side: pixels; larger frames are attached smaller.
    jpeg_quality: of the attached frames, 1 to 95.
    concurrency: requests in flight at once, of all workers of a machine.
    timeout_seconds: for the endpoint to begin or go on answering.
    tries: times that a question is sent, until it is answered.
    wait_seconds: before the second try; doubled before every further one.
    give_up: failed questions in a row, of one worker, that end the job.
    prompt_price, completion_price: of a million tokens, in any currency.
  Raises:
    BadInput: a value out of its range.
  """

  base_url: str
  model: str
  api_key_variable: str
  request: Mapping[str, Any]
  max_side: int
  jpeg_quality: int
  concurrency: int
  timeout_seconds: float
  tries: int
  wait_seconds: float
  give_up: int
  prompt_price: float
  completion_price: float

  def __post_init__(self) -> None:
    url = urlsplit(self.base_url)
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc:
      raise BadInput(
        "captions: base_url is not http(s)://HOST/PATH without a user name. Correct it; a key "
        "belongs into the environment variable that api_key_variable names."
      )
    if not self.model:
      raise BadInput("captions: model='' names no model. Name one that the endpoint has.")
    for name, most in (("max_side", 2**14), ("concurrency", 4096), ("tries", 1000)):
      check_range(f"curate.captions.chat.{name}", getattr(self, name), 1, most)
    check_range("curate.captions.chat.give_up", self.give_up, 1)
    check_range("curate.captions.chat.timeout_seconds", self.timeout_seconds, 0.01, 1e6)
    check_range("curate.captions.chat.wait_seconds", self.wait_seconds, 0, 1e6)
    for name in ("prompt_price", "completion_price"):
      check_range(f"curate.captions.chat.{name}", getattr(self, name), 0)
    check_range("curate.captions.chat.jpeg_quality", self.jpeg_quality, 1, 95)
    if own := {"model", "messages", "stream", "n"} & set(self.request):
      raise BadInput(f"captions: request.{min(own)} is not free to choose. Leave it out.")


class Again(Exception):
  """No answer; another try may bring one.

  Attributes:
    detail: a line for a person.
    for_all: if it does not, every other question would fail as well.
    wait: seconds that the endpoint asks for before the next try.
  """

  def __init__(self, detail: str, *, for_all: bool = False, wait: float = 0.0):
    super().__init__(detail)
    self.detail, self.for_all, self.wait = detail, for_all, wait


class Hopeless(Exception):
  """No answer, and no question would get one. Its text is a line for a person."""


class Endpoint:
  """Sends questions. Safe to use from many threads.

  Raises:
    BadInput: the API key is not there.
  """

  def __init__(self, settings: ChatSettings):
    self._settings = settings
    self._key = _read_key(settings.api_key_variable)
    self._client: Any = None
    self._lock = threading.Lock()

  def __str__(self) -> str:
    url = urlsplit(self._settings.base_url)
    return f"base_url={url.scheme}://{url.netloc}{url.path}, model={self._settings.model!r}"

  def send(self, messages: list[dict]) -> dict[str, Any]:
    """Sends a question, once.

    Args:
      messages: as the protocol has them.
    Returns:
      Of the answer: `text`, `refusal`, `finish_reason`, `prompt_tokens` and `completion_tokens`, 0
      where the endpoint does not count.
    Raises:
      Again, Hopeless: no answer.
      Refused: "caption_failed": the endpoint does not take this question.
      BadInput: the client is not installed.
    """
    openai = _import_openai()
    create = self._connect(openai).chat.completions.with_raw_response.create
    more = dict(self._settings.request)
    try:
      text = create(model=self._settings.model, messages=messages, extra_body=more).text
    except openai.APIConnectionError as error:  # timeouts too
      cause = type(error.__cause__).__name__
      why = self._clean(str(error.__cause__ or error)) or cause
      if isinstance(error, openai.APITimeoutError):
        why = f"no answer within {self._settings.timeout_seconds:g} s"
      raise Again(why, for_all=cause in _NOT_THERE) from None
    except openai.APIStatusError as error:
      self._refuse(error)
    return self._read(text)

  def _connect(self, openai: Any) -> Any:
    with self._lock:
      if self._client is None:
        s = self._settings
        self._client = openai.OpenAI(
          base_url=s.base_url, api_key=self._key, timeout=s.timeout_seconds, max_retries=0
        )
      return self._client

  def _refuse(self, error: Any) -> NoReturn:
    status = error.status_code
    detail = f"status {status}: {self._clean(error.message)}"
    if status in _FOR_ALL or error.code == "insufficient_quota":
      raise Hopeless(detail) from None
    if status in _AGAIN or status >= 500:
      raise Again(detail, wait=_seconds_to_wait(error.response.headers)) from None
    raise Refused(FAILED, detail) from None

  def _read(self, text: str) -> dict:
    """What is kept of a response's body. Raises Again: it is not as the protocol has it."""
    try:
      body = json.loads(text)
      choice, usage = body["choices"][0], body.get("usage") or {}
      said, refusal = (choice["message"].get(k) or "" for k in ("content", "refusal"))
      if not isinstance(said, str) or not isinstance(refusal, str):
        raise TypeError("content is no text")
      return {
        "text": self._cut_key(said),
        "refusal": self._cut_key(refusal),
        "finish_reason": str(choice.get("finish_reason")),
        "prompt_tokens": int(usage.get("prompt_tokens") or 0),
        "completion_tokens": int(usage.get("completion_tokens") or 0),
      }
    except (AttributeError, LookupError, TypeError, ValueError):
      raise Again(f"the answer is not of the protocol: {self._clean(text)!r}") from None

  def _clean(self, text: str) -> str:
    return shorten(self._cut_key(text))

  def _cut_key(self, text: str) -> str:
    return text.replace(self._key, "[key]") if self._settings.api_key_variable else text


def _read_key(variable: str) -> str:
  if not variable:
    return "none"  # the client insists on one
  key = os.environ.get(variable, "")
  if not key or not key.isascii() or not key.isprintable() or " " in key:
    raise BadInput(
      f"captions: the environment variable {variable} holds no API key (absent, empty, or with "
      "spaces or line breaks). Set it, or set api_key_variable=''."
    )
  return key


def _import_openai() -> Any:
  try:
    import openai  # takes a second
  except ImportError as error:
    raise BadInput(
      "captions: the package openai is not installed. Run pip install 'sora_jax[data]'."
    ) from error
  return openai


def _seconds_to_wait(headers: Mapping[str, str]) -> float:
  """Of the header Retry-After, seconds or a date; 0 without one."""
  asked = headers.get("retry-after") or "0"
  try:
    return float(asked) if asked[0].isdigit() else _seconds_until(asked)
  except ValueError:
    return 0.0


def _seconds_until(date: str) -> float:
  return max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time())


def shorten(text: str) -> str:
  """One line of at most 200 characters."""
  line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
  return line if len(line) <= 200 else f"{line[:199]}…"

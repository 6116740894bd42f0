"""A chat endpoint on this machine: OpenAI's protocol, faults on demand, and a book of requests.

It answers only what it would accept from a client that keeps to the protocol, and says what was
wrong with the rest (status 400). Run as a program it prints its address and serves until killed.
"""

import base64
import binascii
import contextlib
import hashlib
import http.server
import io
import json
import sys
import threading
import time
from collections import Counter
from typing import NamedTuple

from PIL import Image

PROMPT_TOKENS, COMPLETION_TOKENS = 100, 7  # of every answer
VARIABLE = "SORA_TEST_CHAT_KEY"  # holds the key that a stub accepts
SETTINGS = dict(  # fields of ChatSettings, but for base_url
  model="stub",
  api_key_variable=VARIABLE,
  request={"temperature": 0.0},
  max_side=24,
  jpeg_quality=90,
  concurrency=3,
  timeout_seconds=5.0,
  tries=3,
  wait_seconds=0.01,
  give_up=100,
  prompt_price=2.0,
  completion_price=10.0,
)


class Request(NamedTuple):
  """`prompt`; `images`: sizes (width, height) of the frames; `question`: hash of all of it."""

  prompt: str
  images: tuple[tuple[int, int], ...]
  question: str
  body: dict


class Fault(NamedTuple):
  """What a request meets instead of an answer.

  Attributes:
    status: 200 sends `body`.
    body: bytes sent as they are; None for an error of the protocol.
    headers: more of them.
    seconds: of silence before.
  """

  status: int = 500
  body: bytes | None = None
  headers: dict = {}
  seconds: float = 0.0


def answer_with(**changes) -> Fault:
  """A well-formed answer whose choice is changed: `content`, `refusal`, `finish_reason`."""
  return Fault(200, json.dumps(completion(**changes)).encode())


def completion(content="a fox", refusal=None, finish_reason="stop") -> dict:
  usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
  message = {"role": "assistant", "content": content, "refusal": refusal}
  choice = {"index": 0, "message": message, "finish_reason": finish_reason}
  return {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 0,
    "model": "stub",
    "choices": [choice],
    "usage": usage | {"total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS},
  }


class ChatStub:
  """Serves from the beginning of a `with` block to its end.

  Attributes:
    url: for `base_url`.
    faults: met by the next requests, one each, from the front.
    always: a Fault met by every request; None for answers.
    requests: those that were well-formed, in order.
    refused: what was wrong with the others.
    keys: API keys that came.
    most_at_once: requests in flight at the same time, at most.
    times: of arrival, seconds.
  """

  def __init__(self, *, key="sk-secret-of-the-test", model="stub", seconds=0.0):
    self.key, self.model, self.seconds = key, model, seconds
    self.faults: list[Fault] = []
    self.always: Fault | None = None
    self.requests: list[Request] = []
    self.refused: list[str] = []
    self.keys: Counter[str] = Counter()
    self.times: list[float] = []
    self.most_at_once = self._at_once = 0
    self._lock = threading.Lock()
    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._make_handler())
    self._server.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

  def __enter__(self) -> "ChatStub":
    self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._server.shutdown()
    self._server.server_close()
    self._thread.join()

  def questions(self) -> Counter[str]:
    """How often each question came."""
    return Counter(request.question for request in self.requests)

  def _make_handler(stub):
    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def log_message(self, *_):
        pass

      def do_POST(self):
        data = self.rfile.read(int(self.headers["content-length"]))
        with stub._lock:
          stub.times.append(time.monotonic())
          stub._at_once += 1
          stub.most_at_once = max(stub.most_at_once, stub._at_once)
        try:
          status, body, headers = stub._answer(self.path, self.headers, data)
        finally:
          with stub._lock:
            stub._at_once -= 1
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
          self.send_response(status)
          self.send_header("content-type", "application/json")
          self.send_header("content-length", str(len(body)))
          for name, value in headers.items():
            self.send_header(name, value)
          self.end_headers()
          self.wfile.write(body)

    return Handler

  def _answer(self, path, headers, data) -> tuple[int, bytes, dict]:
    authorization = headers.get("authorization", "")
    self.keys[authorization.removeprefix("Bearer ")] += 1
    if authorization != f"Bearer {self.key}":
      return 401, error(f"Incorrect API key provided: {authorization}"), {}
    if path != "/v1/chat/completions":
      return 404, error(f"no such address {path}"), {}
    try:
      request = self._read(json.loads(data))
    except (KeyError, TypeError, ValueError) as fault:
      self.refused.append(repr(fault))
      return 400, error(f"not of the protocol: {fault!r}"), {}
    if request.body["model"] != self.model:
      return 404, error(f"The model {request.body['model']!r} does not exist"), {}
    with self._lock:
      self.requests.append(request)
      fault = self.faults.pop(0) if self.faults else self.always
    time.sleep(fault.seconds if fault else self.seconds)
    if fault is None:
      said = f"A clip of {request.question[:6]}, asked: {len(request.prompt)} characters."
      return 200, json.dumps(completion(said)).encode(), {}
    return fault.status, error("a fault") if fault.body is None else fault.body, fault.headers

  def _read(self, body: dict) -> Request:
    (message,) = body["messages"]
    assert_equal(message["role"], "user")
    text, *images = message["content"]
    assert_equal(text["type"], "text")
    sizes = tuple(read_image(image) for image in images)
    question = json.dumps([body["model"], message], sort_keys=True).encode()
    return Request(text["text"], sizes, hashlib.sha256(question).hexdigest(), body)


def read_image(part: dict) -> tuple[int, int]:
  assert_equal(part["type"], "image_url")
  head, _, data = part["image_url"]["url"].partition(",")
  assert_equal(head, "data:image/jpeg;base64")
  try:
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
      assert_equal(image.format, "JPEG")
      image.load()
      return image.size
  except (OSError, binascii.Error) as fault:
    raise ValueError(f"no JPEG: {fault}") from fault


def assert_equal(found, wanted) -> None:
  if found != wanted:
    raise ValueError(f"{found!r} is not {wanted!r}")


def error(message: str, code: str | None = None) -> bytes:
  return json.dumps({"error": {"message": message, "type": "stub", "code": code}}).encode()


if __name__ == "__main__":
  with ChatStub(key=sys.argv[1], seconds=float(sys.argv[2])) as served:
    print(served.url, flush=True)
    threading.Event().wait()

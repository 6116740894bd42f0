"""The captions of a clip: those that came with it, those of a chat endpoint, and what was measured.

Pure: the same clip, settings and answers give the same captions, in the same order: side-car
captions, then one for every prompt, each with the measured sentence if it is wanted.
"""

import bisect
import dataclasses
import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np

from data_pipeline.curate.caption_settings import Axis, CaptionSettings, Prompt
from data_pipeline.curate.chat import Answer, Frames, Usage
from data_pipeline.curate.endpoint import FAILED, shorten
from data_pipeline.curate.types import Refused
from data_pipeline.records import ClipRecord
from data_pipeline.video import EncodedVideo

Ask = Callable[[str, str, Frames], Answer]  # `Chat.ask`

_CHUNK = 16  # frames decoded at once
_ECHO_WORDS = 6  # of a prompt's beginning: an answer that repeats them describes nothing
_QUOTED = re.compile(r'^["“]([^"“”]*)["”]$')
_NO_CAPTION = re.compile(
  r"\bas an? (ai|(large )?language model)\b|<think|```"
  r"|^(i'?m|i am) (sorry|unable|not able)|^(sorry|unfortunately|i apologi[sz]e)\b"
  r"|^i (can'?t|cannot|can not|won't)\b",
  re.IGNORECASE,
)


class Captioned(NamedTuple):
  """Captions of a clip and what they took.

  Attributes:
    captions: () when one failed.
    usage: of all answers, whenever they were asked: the same in every run.
    spent: of those asked now.
    failed: why a prompt has no caption, a line for a person; "" when all is well.
    is_final: the model has answered; False where nobody did, so that asking again may help.
  """

  captions: tuple[str, ...]
  usage: Usage
  spent: Usage
  failed: str = ""
  is_final: bool = True


def caption_clip(
  record: ClipRecord, camera: str, settings: CaptionSettings, ask: Ask | None
) -> Captioned:
  """Collects the captions of a clip.

  Args:
    record: with its side-car captions, and its scores.
    camera: word of the camera's motion; "" where it was not measured.
    settings: which captions it gets.
    ask: `Chat.ask`; None without prompts.
  Raises:
    BadInput: what would meet every clip.
  """
  asked = settings.asked == "all" or not record.captions
  found = _ask(record, settings, ask) if asked and ask else Captioned((), Usage(), Usage())
  if found.failed:
    return found
  said = describe(json.loads(record.scores or "{}"), camera, settings)
  captions = _add_measured([*record.captions, *found.captions], said, settings.measured)
  return found._replace(captions=tuple(dict.fromkeys(captions)))


def _ask(record: ClipRecord, settings: CaptionSettings, ask: Ask) -> Captioned:
  """One caption a prompt; none when one fails."""
  content = hash_frames(record.video, settings.frames)
  frames = cache(lambda: pick_frames(record.video, settings.frames))  # decoded once, if at all
  captions, usage, spent = [], Usage(), Usage()
  for prompt in settings.prompts:
    try:
      answer = ask(prompt.text, content, frames)
    except Refused as error:
      return Captioned((), usage, spent, f"{prompt.name}: {error.detail}", is_final=False)
    try:
      usage = usage.plus(answer.usage)
      spent = spent.plus(answer.usage) if answer.is_new else spent
      captions.append(read_caption(answer, prompt))
    except Refused as error:
      return Captioned((), usage, spent, f"{prompt.name}: {error.detail}")
  return Captioned(tuple(captions), usage, spent)


def caption_clips(
  clips: Iterable[tuple[ClipRecord, str]], settings: CaptionSettings, ask: Ask | None, threads: int
) -> Iterator[tuple[ClipRecord, Captioned]]:
  """`caption_clip` for records and camera words, in their order, several at a time.

  Args:
    threads: clips at a time; twice as many are held in memory.
  Yields:
    The record with its captions (as it was when they failed), and what they took.
  """
  pool, running = ThreadPoolExecutor(threads), deque()
  try:
    for record, camera in clips:
      running.append((record, pool.submit(caption_clip, record, camera, settings, ask)))
      if len(running) == 2 * threads:
        yield _end(*running.popleft())
    while running:
      yield _end(*running.popleft())
  finally:
    pool.shutdown(cancel_futures=True)


def _end(record: ClipRecord, future: Future[Captioned]) -> tuple[ClipRecord, Captioned]:
  found = future.result()
  return dataclasses.replace(record, captions=found.captions or record.captions), found


def hash_frames(video: np.ndarray | EncodedVideo, count: int) -> str:
  """Names what `pick_frames` gives, without decoding: the same for the same content."""
  digest = hashlib.sha256(f"{type(video).__name__} {video.shape} {count};".encode())
  digest.update(video.tobytes() if isinstance(video, np.ndarray) else video.data)
  return digest.hexdigest()


def pick_frames(video: np.ndarray | EncodedVideo, count: int) -> list[np.ndarray]:
  """The middle frames of `count` equal parts of a video, each once: uint8 [H,W,3].

  An encoded video is decoded a few frames at a time.
  """
  total = video.shape[0]
  places = sorted({(2 * i + 1) * total // (2 * count) for i in range(count)})
  if isinstance(video, np.ndarray):
    return [video[place] for place in places]
  picked, start = [], 0
  for chunk in video.chunks(min(_CHUNK, total - first) for first in range(0, total, _CHUNK)):
    picked += [chunk[p - start].copy() for p in places if start <= p < start + len(chunk)]
    start += len(chunk)
  return picked


def read_caption(answer: Answer, prompt: Prompt) -> str:
  """An answer as a caption: one line, without quotes around it.

  Raises:
    Refused: "caption_failed": it is no caption, by what can be told without understanding it.
  """
  words = "".join(c if c.isprintable() else " " for c in answer.text).split()
  text = _QUOTED.sub(r"\1", " ".join(words))
  fault = answer.fault or _find_fault(text, prompt)
  if fault:
    raise Refused(FAILED, fault)
  return text


def _find_fault(text: str, prompt: Prompt) -> str:
  plain = text.replace("’", "'")
  beginning = " ".join(prompt.text.split()[:_ECHO_WORDS])
  if not any(c.isalnum() for c in text):
    return "an empty answer"
  if len(text) > prompt.max_characters:
    return f"{len(text)} characters, more than max_characters={prompt.max_characters}"
  if found := _NO_CAPTION.search(plain):
    return f"no caption, but {shorten(text)!r} ({found[0]!r})"
  if beginning.casefold() in plain.casefold():
    return f"the prompt again: {shorten(text)!r}"
  return ""


def describe(scores: Mapping[str, float], camera: str, settings: CaptionSettings) -> str:
  """What was measured, as a sentence; "" when there is nothing to say."""
  parts = [settings.camera[camera]] if camera else []
  parts += [_say(scores[name], axis) for name, axis in settings.words.items() if name in scores]
  sentence = "; ".join(part for part in parts if part)
  return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def _say(score: float, axis: Axis) -> str:
  return str(axis[::2][bisect.bisect_right(axis[1::2], score)])


def _add_measured(captions: list[str], said: str, where: str) -> list[str]:
  if not said or where == "none":
    return captions
  if where == "own" or not captions:
    return [*captions, said]
  return [f"{caption}{'' if caption[-1:] in '.!?' else '.'} {said}" for caption in captions]

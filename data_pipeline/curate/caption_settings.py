"""Which captions a clip gets: settings of `data_pipeline.curate.captions`."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from data_pipeline.curate.endpoint import ChatSettings
from data_pipeline.curate.fields import check_choice, check_names, check_range, make
from data_pipeline.curate.motion import CAMERA
from data_pipeline.errors import BadInput

Axis = tuple[str | float, ...]  # words with the limits between them: ("little motion", 0.1, ...)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
  """A question that gives one caption.

  Attributes:
    name: for people, such as "short".
    text: of the question; the clip's frames go with it.
    max_characters: of a caption; a longer answer is refused.
  Raises:
    BadInput: no text, or no room for an answer.
  """

  name: str
  text: str
  max_characters: int

  def __post_init__(self) -> None:
    if not self.text.strip() or self.max_characters < 1:
      raise BadInput(
        f"curate.captions: prompt {self.name!r} has no text, or "
        f"max_characters={self.max_characters} is below 1. Correct it."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionSettings:
  """Which captions a clip gets.

  Attributes:
    prompts: asked of the endpoint in this order; () asks nothing.
    frames: of a clip that go with a prompt, evenly spaced.
    asked: about "all" clips, or only the "uncaptioned" ones, without a side-car caption.
    measured: the sentence on scores and camera goes nowhere ("none"), behind every caption
      ("append"), or is a caption of its own ("own"), as it is where there is none to append it to.
    words: score -> what is said of it: words with the limits between them, ascending, such as
      ("little motion", 0.1, "strong motion"). "" says nothing. A clip without the score is silent.
    camera: each word of `motion.CAMERA` -> what is said of it; "" says nothing.
    chat: the endpoint; None without prompts.
  Raises:
    BadInput: a value that is none of these.
  """

  prompts: tuple[Prompt, ...]
  frames: int
  asked: str
  measured: str
  words: Mapping[str, Axis]
  camera: Mapping[str, str]
  chat: ChatSettings | None

  def __post_init__(self) -> None:
    check_choice("curate.captions.asked", self.asked, ("all", "uncaptioned"))
    check_choice("curate.captions.measured", self.measured, ("none", "append", "own"))
    check_range("curate.captions.frames", self.frames, 1, 64)
    if self.prompts and self.chat is None:
      raise BadInput("curate.captions: there are prompts, but chat=None. Name an endpoint.")
    if set(self.camera) != set(CAMERA):
      raise BadInput(
        f"curate.captions: camera={dict(self.camera)} must say each of {', '.join(CAMERA)}."
      )
    for score, axis in self.words.items():
      _check_axis(score, axis)


def _check_axis(score: str, axis: Axis) -> None:
  limits, said = list(axis[1::2]), axis[::2]
  are_words = len(axis) % 2 == 1 and all(isinstance(word, str) for word in said)
  are_limits = all(isinstance(limit, (int, float)) for limit in limits)
  if not (are_words and are_limits and limits == sorted(set(limits))):
    raise BadInput(
      f"curate.captions: words.{score}={axis} are not words with ascending limits between them. "
      'Write them as ("little motion", 0.1, "strong motion").'
    )


def read_settings(config: Mapping[str, Any]) -> CaptionSettings:
  """Settings out of plain values, as `config.curate.captions` has them.

  Args:
    config: fields of `CaptionSettings`; `prompts` a sequence of dicts, `chat` a dict, which is
      looked at only when there are prompts.
  Raises:
    BadInput: a field is missing, unknown or unusable.
  """
  hints = typing.get_type_hints(CaptionSettings)
  if not isinstance(config, Mapping):
    raise BadInput(f"curate.captions={config!r} is no section. Give its settings by name.")
  check_names("curate.captions", set(hints), set(config))
  del hints["chat"]  # looked at only where somebody is asked
  made = {name: make(hints[name], f"curate.captions.{name}", config[name]) for name in hints}
  asks = bool(made["prompts"])
  chat = make(ChatSettings, "curate.captions.chat", config["chat"]) if asks else None
  return CaptionSettings(**made, chat=chat)

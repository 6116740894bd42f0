"""Captions that are longer than a text encoder takes: found before anything is encoded, and fitted.

A latent record's captions are those that its ids were made of: one that was cut is kept cut.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from sora_jax.models.text.encoder import TextEncoder
from sora_jax.parallel import hosts

LONG_CAPTIONS = ("refuse", "cut", "other")
_READERS = 8  # clips read at once
_AHEAD = 1024  # whose captions are held
_WAIT_SECONDS = 7 * 86_400


class TooLong(NamedTuple):
  """A caption over the limit of an encoder; `number` counts the clip's captions from 1."""

  number: int
  encoder: str
  tokens: int
  max_tokens: int


class CaptionLimits:
  """Chooses the captions that are kept of a clip.

  Args:
    encoders: each has to take every caption that is kept.
    policy: of a caption that is too long: "refuse" keeps it, so that encoding it fails; "cut" keeps
      its beginning; "other" leaves it out.
    captions: kept of each clip, its first ones that may be kept; 0 for all.
  Raises:
    BadInput: the policy is none of these.
  """

  def __init__(self, encoders: Sequence[TextEncoder], policy: str, captions: int):
    if policy not in LONG_CAPTIONS:
      raise BadInput(
        f"encode: --long-captions={policy} is not one of {', '.join(LONG_CAPTIONS)}. Choose one."
      )
    self._encoders, self.policy, self._captions = tuple(encoders), policy, captions

  def fit(self, captions: Sequence[str]) -> tuple[str, ...]:
    """The captions that are kept, in their order."""
    if self.policy == "other":
      captions = [caption for caption in captions if self._fits(caption)]
    kept = captions[: self._captions or None]
    if self.policy == "cut":
      kept = [caption if self._fits(caption) else self._cut(caption) for caption in kept]
    return tuple(kept)

  def find_long(self, captions: Sequence[str]) -> list[TooLong]:
    """Those that are too long, once each, of the captions that might be kept."""
    if self.policy != "other":
      captions = captions[: self._captions or None]
    found: dict[int, TooLong] = {}
    for encoder in self._encoders:
      for number, tokens in enumerate(encoder.count_tokens(captions), 1):
        if tokens > encoder.max_tokens:
          found.setdefault(number, TooLong(number, encoder.name, tokens, encoder.max_tokens))
    return [found[number] for number in sorted(found)]

  def _fits(self, caption: str) -> bool:
    return all(e.count_tokens([caption])[0] <= e.max_tokens for e in self._encoders)

  def _cut(self, caption: str) -> str:
    """The longest beginning of whole words that fits; of letters where that is twice as long, as
    in languages without spaces."""
    words = caption.split(" ")
    whole = " ".join(words[: _longest(len(words), lambda n: self._fits(" ".join(words[:n])))])
    letters = _longest(len(caption), lambda n: self._fits(caption[:n]))
    return whole if 2 * len(whole) >= letters else caption[:letters]


def _longest(most: int, fits: Callable[[int], bool]) -> int:
  """A large count up to `most` that fits, found by halving; 0 where none is found.

  The largest one, if each count below one that fits does too.
  """
  low, high = 0, most
  while low < high:
    middle = (low + high + 1) // 2
    low, high = (middle, high) if fits(middle) else (low, middle - 1)
  return low


class Checked(NamedTuple):
  """The findings of a look at all captions.

  Attributes:
    long: captions that are too long.
    clips: that have such captions.
  """

  long: int
  clips: int


def check_captions(clips: Dataset, rows: np.ndarray, limits: CaptionLimits) -> Checked:
  """Looks at the captions of clips before any is encoded; processes divide them.

  Args:
    clips: a dataset.
    rows: of it, int64.
    limits: what fits.
  Raises:
    BadInput: by "refuse" a caption is too long; by "other" a clip has captions, and none that fits.
      The first clip is named, and how many others there are. Also: a clip is damaged.
  """
  mine = rows[hosts.index() :: hosts.count()]
  found = _Census(limits)
  for clip, source, captions in _read(clips, mine):
    found.look(clip, source, captions)
  every = hosts.share("long captions", found.said, seconds=_WAIT_SECONDS)
  long, touched, refused = (sum(said[i] for said in every) for i in range(3))
  if refused:
    raise BadInput(_complain(min(said[3] for said in every if said[3]), refused, limits.policy))
  return Checked(long, touched)


def check_each(
  records: Iterable[tuple[str, str, Sequence[str]]], limits: CaptionLimits, where: str
) -> None:
  """Raises BadInput as `check_captions`, for (id, source, captions) of clips in this process."""
  found = _Census(limits)
  for clip, source, captions in records:
    found.look(clip, source, captions)
  if found.said[2]:
    raise BadInput(f"{_complain(found.said[3], found.said[2], limits.policy)} ({where})")


def _read(clips: Dataset, rows: np.ndarray) -> Iterator[tuple[str, str, tuple[str, ...]]]:
  """(id, source, captions) of clips by row, several read at a time."""

  def read(row: int) -> tuple[str, str, tuple[str, ...]]:
    record = clips.read(row)
    return record.id, record.source, record.captions

  with ThreadPoolExecutor(_READERS) as pool:
    for start in range(0, len(rows), _AHEAD):
      yield from pool.map(read, rows[start : start + _AHEAD].tolist())


class _Census:
  """Counts long captions.

  Attributes:
    said: JSON-able: long captions, clips that have some, captions or clips that are refused, and
      of the first such [clip, source, number, encoder, tokens, max_tokens], or None.
  """

  def __init__(self, limits: CaptionLimits):
    self._limits = limits
    self.said: list = [0, 0, 0, None]

  def look(self, clip: str, source: str, captions: Sequence[str]) -> None:
    long = self._limits.find_long(captions)
    if not long:
      return
    self.said[0] += len(long)
    self.said[1] += 1
    refused = {"refuse": len(long), "cut": 0, "other": int(len(long) == len(captions))}
    count = refused[self._limits.policy]
    self.said[2] += count
    if count and (self.said[3] is None or [clip, source] < self.said[3][:2]):
      self.said[3] = [clip, source, *long[0]]


def _complain(first: list, count: int, policy: str) -> str:
  clip, source, number, encoder, tokens, most = first
  what = f"caption {number} of clip {clip!r} (source {source!r}) has tokens={tokens}, over"
  limit = f"max_tokens={most} of text encoder {encoder} (special tokens included)"
  if policy == "other":
    others = f", as in {count - 1} other clips" if count > 1 else ""
    return (
      f"encode: {what} {limit}, and no other caption of the clip fits{others}. Give it a shorter "
      "one (sora curate --replace-captions), or --long-captions=cut."
    )
  others = f", and so have {count - 1} other captions" if count > 1 else ""
  return (
    f"encode: {what} {limit}{others}. Give --long-captions=cut for their beginnings or "
    "--long-captions=other to leave them out, or shorter captions (sora curate "
    "--replace-captions)."
  )

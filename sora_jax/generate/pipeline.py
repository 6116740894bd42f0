"""Text to video files: encoder, sampler and VAE of one run, put together."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.errors import BadInput
from data_pipeline.tokens import token_count
from sora_jax.generate.encode import decode_latents, latent_shape
from sora_jax.generate.sample import Caption, Sampler, Settings, Shape

MOST_TOKENS = 2**22  # of a video: ten times a minute of 832x480, the longest that recipes train on


class Request(NamedTuple):
  """One video to make.

  Attributes:
    prompt, negative: captions; an empty negative guides away from no caption.
    draw: tells videos of one seed apart.
  """

  prompt: str
  negative: str
  draw: int


def group_alike(kinds: Sequence[Hashable], size: int) -> list[list[int]]:
  """Places of one kind, at most `size` in a group, ascending; groups by their first place."""
  open_groups: dict[Hashable, list[int]] = {}
  groups: list[list[int]] = []
  for place, kind in enumerate(kinds):
    if kind not in open_groups:
      groups.append(open_groups.setdefault(kind, []))
    open_groups[kind].append(place)
    if len(open_groups[kind]) == size:
      del open_groups[kind]
  return groups


class Pipeline(NamedTuple):
  """What turns prompts into pixels: a text encoder, a `Sampler`, a `FrozenVAE`."""

  encoder: Any
  sampler: Sampler
  vae: Any

  def __call__(
    self,
    requests: Sequence[Request],
    *,
    seconds: float,
    width: int,
    height: int,
    fps: float,
    settings: Settings,
    rows: int,
  ) -> Iterator[np.ndarray]:
    """Videos uint8 [F,H,W,3] in the order of the requests, `rows` at a time.

    A program always has `rows` rows and the slots that its own captions need: a video depends on
    its request, `rows` and what is asked of all alone, and is the same bit for bit whatever is made
    beside it. What a group lacks is filled up with repetitions, which are thrown away.

    Raises:
      BadInput: a prompt longer than the encoder takes, a size that VAE and patch cannot make, or no
        rows.
    """
    if rows < 1:
      raise BadInput(f"sample: rows={rows} must be at least 1.")
    shape = self.shape_of(seconds=seconds, width=width, height=height, fps=fps)
    captions = self._captions([r.prompt for r in requests])
    negatives = self._captions([r.negative for r in requests])
    slots = [
      self.sampler.caption_slots(one, other, settings)
      for one, other in zip(captions, negatives, strict=True)
    ]
    made: dict[int, np.ndarray] = {}  # at most rows - 1 of a kind wait for their turn
    for group in group_alike(slots, rows):
      place = [*group, *[group[-1]] * (rows - len(group))]
      latents = self.sampler(
        [captions[i] for i in place],
        [negatives[i] for i in place],
        [requests[i].draw for i in place],
        shape,
        settings,
      )
      videos = decode_latents(self.vae, latents)
      made |= {i: video.copy() for i, video in zip(group, videos, strict=False)}
      first = group[0]
      while first in made:
        yield made.pop(first)
        first += 1

  def shape_of(self, *, seconds: float, width: int, height: int, fps: float) -> Shape:
    """The latent shape of a video. Raises BadInput: VAE and patch cannot make it; no one could."""
    shape = Shape(*latent_shape(seconds, width, height, fps, self.vae, self.sampler.patch), fps)
    tokens = token_count(shape[:3], self.sampler.patch)
    if tokens > MOST_TOKENS:
      raise BadInput(
        f"sample: seconds={seconds:g} of {width}x{height} at fps={fps:g} are {tokens} tokens, more"
        f" than {MOST_TOKENS}. Ask for something smaller or shorter."
      )
    return shape

  def choose_shift(self, settings: Settings, **size) -> float:
    """The shift that a video of this size is sampled with; see `Sampler.choose_shift`."""
    return self.sampler.choose_shift(settings, self.shape_of(**size))

  def _captions(self, texts: Sequence[str]) -> list[Caption | None]:
    """Ids and states of each text; None for an empty one."""
    words = sorted({text for text in texts if text})
    ids = self.encoder.tokenize(words)
    states = self.encoder.encode(words) if self.encoder.width else [None] * len(words)
    table = {w: Caption(i, s) for w, i, s in zip(words, ids, states, strict=True)}
    return [table.get(text) for text in texts]

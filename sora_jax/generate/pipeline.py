"""Text to video files: encoder, sampler and VAE of one run, put together."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sora_jax.generate.encode import decode_latents, latent_shape
from sora_jax.generate.sample import Caption, Sampler, Settings, Shape


class Request(NamedTuple):
  """One video to make.

  Attributes:
    prompt, negative: captions; an empty negative guides away from no caption.
    draw: tells videos of one seed apart.
  """

  prompt: str
  negative: str
  draw: int


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

    A last group is filled up with repetitions, which are thrown away: one shape is compiled, and a
    video does not depend on how many are asked for beyond a group.

    Raises:
      BadInput: a prompt longer than the encoder takes, or a size that VAE and patch cannot make.
    """
    shape = self.shape_of(seconds=seconds, width=width, height=height, fps=fps)
    captions = self._captions([r.prompt for r in requests])
    negatives = self._captions([r.negative for r in requests])
    for start in range(0, len(requests), rows):
      place = [min(i, len(requests) - 1) for i in range(start, start + rows)]
      latents = self.sampler(
        [captions[i] for i in place],
        [negatives[i] for i in place],
        [requests[i].draw for i in place],
        shape,
        settings,
      )
      yield from decode_latents(self.vae, latents)[: len(requests) - start]

  def shape_of(self, *, seconds: float, width: int, height: int, fps: float) -> Shape:
    """The latent shape of a video. Raises BadInput: VAE and patch cannot make it."""
    return Shape(*latent_shape(seconds, width, height, fps, self.vae, self.sampler.patch), fps)

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

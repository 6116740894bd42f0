"""Densities of the noise level t in training, the shift of larger samples, and weights over t.

All densities map standard uniform draws u in (0, 1) to t in [0, 1] (0 data, 1 noise), by the
inverse of their distribution function, so that one draw index gives one t on every mesh.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.errors import BadInput
from sora_jax.typed import Array, Float, typed

QUADRATURE = 256  # points of an expectation over t; that of min-SNR is right to 1e-3 of it


@typed
def uniform(u: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """t uniform in [0, 1)."""
  return u


@typed
def logit_normal(u: Float[Array, "*b"], mean: float, std: float) -> Float[Array, "*b"]:
  """t = sigmoid(mean + std·N(0,1)); a positive mean favours noise.

  Source: Esser et al. 2024, arXiv:2403.03206, eq. 19.
  """
  return jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(u))


@typed
def shift(t: Float[Array, "*#b"], alpha: Float[Array, "*#b"]) -> Float[Array, "*#b"]:
  """Moves t towards noise for alpha > 1: alpha t / (1 + (alpha - 1) t).

  In logits it adds ln alpha. Source: Esser et al. 2024, arXiv:2403.03206, eq. 23, with
  alpha = sqrt(m/n).
  """
  return alpha * t / (1 + (alpha - 1) * t)


@typed
def shift_of_tokens(
  tokens: Float[Array, "*b"], base_tokens: int, exponent: float, most: float
) -> Float[Array, "*b"]:
  """alpha = (tokens / base_tokens)^exponent, kept within [1/most, most].

  It is 1 at `base_tokens`; exponent 0 switches the shift off, and `most` 0 the bounds. Exponent 0.5
  gives a constant sample the same uncertainty at any token count (eq. 23 above); real ones are not
  constant, and published models shift by less (docs/diffusion.md). The bound holds on both sides:
  beyond it one end of t would hardly be trained.
  """
  alpha = (jnp.maximum(tokens, 1.0) / base_tokens) ** exponent
  return jnp.clip(alpha, 1 / most, most) if most else alpha


DENSITIES = ("uniform", "logit_normal")


@dataclasses.dataclass(frozen=True)
class Density:
  """`density(u, tokens) -> t`: a named density followed by the shift by token count.

  Attributes:
    name: "uniform" or "logit_normal".
    mean, std: of the logit-normal, in logits.
    base_tokens, shift_exponent, max_shift: see `shift_of_tokens`.
  """

  name: str
  mean: float
  std: float
  base_tokens: int
  shift_exponent: float
  max_shift: float

  def __call__(self, u: Array, tokens: Array) -> Array:
    """t of uniform draws u for segments of so many noisy patches; the shapes broadcast."""
    t = uniform(u) if self.name == "uniform" else logit_normal(u, self.mean, self.std)
    return shift(t, self.alpha(tokens))

  def alpha(self, tokens: Array) -> Array:
    """alpha of segments of so many noisy patches."""
    return shift_of_tokens(tokens, self.base_tokens, self.shift_exponent, self.max_shift)

  def sampling_shift(self, tokens: int) -> float:
    """The shift of an even grid of times that puts its middle at the median of training's t.

    Training's t has the logits mean + ln alpha + std·N(0,1), an even grid shifted by a has the
    median logit ln a: so a = alpha·exp(mean), or alpha where t is uniform.
    """
    alpha = float(self.alpha(jnp.float32(tokens)))
    return alpha * (1.0 if self.name == "uniform" else math.exp(self.mean))


def make_density(**settings) -> Density:
  """A density of checked settings, see `Density`.

  Raises:
    BadInput: unknown name, or a bound that is none.
  """
  density = Density(**settings)
  if density.name not in DENSITIES:
    raise BadInput(
      f"diffusion: density.name={density.name!r} is not one of {sorted(DENSITIES)}. Choose one."
    )
  if density.max_shift and not 1 <= density.max_shift < math.inf:
    raise BadInput(
      f"diffusion: density.max_shift={density.max_shift} is not 1 or more. Set 0 for no bound."
    )
  return density


@typed
def min_snr(t: Float[Array, "*b"], gamma: float) -> Float[Array, "*b"]:
  """Weight min((1-t)², gamma·t²) of a squared velocity error: min(SNR, gamma) of a clean error.

  SNR = ((1-t)/t)², and an error of the clean patch is t times that of the velocity.
  Source: Hang et al. 2023, arXiv:2303.09556, sec. 3.4 (there gamma = 5).
  """
  return jnp.minimum((1 - t) ** 2, gamma * t**2)


WEIGHTINGS = ("uniform", "min_snr")


@dataclasses.dataclass(frozen=True)
class Weighting:
  """`weighting(t) -> w`: the loss weight of a token at noise level t.

  Attributes:
    name: "uniform" (1 everywhere) or "min_snr".
    gamma: of `min_snr`: the SNR above which a token weighs no more.
  """

  name: str
  gamma: float

  def __call__(self, t: Array) -> Array:
    return jnp.ones_like(t) if self.name == "uniform" else min_snr(t, self.gamma)

  def expected(self, density: Density, tokens: Array) -> Array:
    """E[w(t)] of segments of so many noisy patches, over the t that training draws for them.

    A loss is divided by it, not by the weights of the few t that a step drew: with one segment a
    step these would cancel. With u = Φ(x) the mean over u is that over standard normal x, here by
    the trapezoidal rule over six standard deviations.
    """
    if self.name == "uniform":
      return jnp.ones_like(tokens)
    x = np.linspace(-6, 6, QUADRATURE)
    share = np.exp(-(x**2) / 2)
    share = jnp.asarray(share / share.sum(), jnp.float32)
    u = jax.scipy.special.ndtr(jnp.asarray(x, jnp.float32))
    return jnp.sum(share * self(density(u, tokens[..., None])), -1)


def make_weighting(*, name: str, gamma: float) -> Weighting:
  """A weighting of checked settings, see `Weighting`.

  Raises:
    BadInput: unknown name, or a gamma that is not positive.
  """
  if name not in WEIGHTINGS:
    raise BadInput(f"diffusion: weighting.name={name!r} is not one of {sorted(WEIGHTINGS)}.")
  if not gamma > 0:
    raise BadInput(f"diffusion: weighting.gamma={gamma} must be positive.")
  return Weighting(name, gamma)

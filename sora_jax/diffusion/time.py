"""Densities of the noise level t in training, the shift of larger samples, and weights over t.

All densities map standard uniform draws u in (0, 1) to t in [0, 1] (0 data, 1 noise), by the
inverse of their distribution function, so that one draw index gives one t on every mesh.
"""

import jax
import jax.numpy as jnp

from data_pipeline.errors import BadInput
from sora_jax.typed import Array, Float, typed


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
def shift(t: Float[Array, "*b"], alpha: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """Moves t towards noise for alpha > 1: alpha t / (1 + (alpha - 1) t).

  Source: Esser et al. 2024, arXiv:2403.03206, eq. 23, with alpha = sqrt(m/n).
  """
  return alpha * t / (1 + (alpha - 1) * t)


@typed
def shift_of_tokens(
  tokens: Float[Array, "*b"], base_tokens: int, exponent: float
) -> Float[Array, "*b"]:
  """alpha = (tokens / base_tokens)^exponent: 1 at `base_tokens`; exponent 0 switches the shift off.

  Exponent 0.5 gives a constant sample the same uncertainty at any token count (eq. 23 above).
  """
  return (jnp.maximum(tokens, 1.0) / base_tokens) ** exponent


DENSITIES = {"uniform": uniform, "logit_normal": logit_normal}


def make_density(*, name: str, mean: float, std: float, base_tokens: int, shift_exponent: float):
  """Returns `density(u, tokens) -> t`: a named density followed by the shift by token count.

  Args:
    name: "uniform" or "logit_normal".
    mean: of the logit-normal, in logits.
    std: of the logit-normal, in logits.
    base_tokens: noisy tokens of a segment at which the shift is 1.
    shift_exponent: see `shift_of_tokens`.
  Raises:
    BadInput: unknown name.
  """
  if name not in DENSITIES:
    raise BadInput(f"diffusion: density.name={name!r} is not one of {sorted(DENSITIES)}.")

  def density(u, tokens):
    t = uniform(u) if name == "uniform" else logit_normal(u, mean, std)
    return shift(t, shift_of_tokens(tokens, base_tokens, shift_exponent))

  return density


@typed
def min_snr(t: Float[Array, "*b"], gamma: float) -> Float[Array, "*b"]:
  """Weight min((1-t)², gamma·t²) of a squared velocity error: min(SNR, gamma) of a clean error.

  SNR = ((1-t)/t)², and an error of the clean patch is t times that of the velocity.
  Source: Hang et al. 2023, arXiv:2303.09556, sec. 3.4 (there gamma = 5).
  """
  return jnp.minimum((1 - t) ** 2, gamma * t**2)


WEIGHTINGS = ("uniform", "min_snr")


def make_weighting(*, name: str, gamma: float):
  """Returns `weighting(t) -> w`: the loss weight of a token at noise level t.

  Args:
    name: "uniform" (1 everywhere) or "min_snr".
    gamma: of `min_snr`: the SNR above which a token weighs no more.
  Raises:
    BadInput: unknown name, or a gamma that is not positive.
  """
  if name not in WEIGHTINGS:
    raise BadInput(f"diffusion: weighting.name={name!r} is not one of {sorted(WEIGHTINGS)}.")
  if not gamma > 0:
    raise BadInput(f"diffusion: weighting.gamma={gamma} must be positive.")
  return jnp.ones_like if name == "uniform" else lambda t: min_snr(t, gamma)

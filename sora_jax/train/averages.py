"""Moving averages of the parameters: by relative width (power functions of time), or by decay.

An average of width 0.05 remembers, with a standard deviation of 5 % of all steps done, however many
they are; one of a decay remembers as many steps in a short run as in a long one.
Source: Karras et al. 2023 (EDM2), arXiv:2312.02696, sec. 3.1 and appendix C.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.errors import BadInput

# Relative widths. Weights that fall with time would be wider than the mean of all steps, 12^-0.5.
NARROWEST, WIDEST = 0.001, 0.28
FIRST = "ema"  # the name of the average that is evaluated, sampled and exported


def solve_exponent(width: float) -> float:
  """The exponent g of weights t^g whose standard deviation is `width` times the steps done.

  width^2 = (g+1) / ((g+2)^2 (g+3)), a cubic in g. Source: EDM2, eq. 6 and appendix C.2.

  Args:
    width: in [NARROWEST, WIDEST].
  """
  inverse = width**-2
  return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


@dataclass(frozen=True)
class PowerAverage:
  """Average with weights that grow as a power of the step, so that its width is a share of them.

  Args:
    width: standard deviation of the weights over time, divided by the steps done.
  """

  width: float

  @property
  def number(self) -> float:
    """What names it."""
    return self.width

  @property
  def exponent(self) -> float:
    """See `solve_exponent`."""
    return solve_exponent(self.width)

  def share(self, step) -> jax.Array:
    """What step `step` (0, 1, ...) adds: 1 - (1 - 1/t)^(g+1) of the new parameters, t = step + 1.

    The first step copies. Source: EDM2, eq. 5.
    """
    t = jnp.asarray(step, jnp.float32) + 1
    return -jnp.expm1((self.exponent + 1) * jnp.log1p(-1 / t))  # to rounding also where it is small

  def measure(self, steps: int) -> float:
    """Relative width of the average after so many steps."""
    del steps
    return self.width


@dataclass(frozen=True)
class ExponentialAverage:
  """Exponential average with a short memory at the start.

  Args:
    decay: in [0, 1]; that of step `step` is min(decay, (1 + step) / (10 + step)), as in
      TensorFlow's `ExponentialMovingAverage(num_updates=step)`.
  """

  decay: float

  @property
  def number(self) -> float:
    """What names it."""
    return self.decay

  def share(self, step) -> jax.Array:
    """What step `step` (0, 1, ...) adds of the new parameters."""
    step = jnp.asarray(step, jnp.float32)
    return 1 - jnp.minimum(self.decay, (1 + step) / (10 + step))

  def measure(self, steps: int) -> float:
    """Relative width of the average after so many steps."""
    step = np.arange(steps, dtype=np.float64)
    keep = np.minimum(self.decay, (1 + step) / (10 + step))
    weights = (1 - keep) * np.append(np.cumprod(keep[:0:-1])[::-1], 1.0)  # kept by later steps
    mean = np.average(step, weights=weights)
    return math.sqrt(np.average((step - mean) ** 2, weights=weights)) / steps


Average = PowerAverage | ExponentialAverage


def ema_update(ema, params, share):
  """A step of an average in float32: `share` of the new parameters, what is left of the old."""
  return jax.tree.map(lambda old, new: old + share * (new.astype(jnp.float32) - old), ema, params)


def make_averages(
  *, ema_width, more_ema_widths, ema_decay, more_ema_decays
) -> dict[str, Average]:
  """The averages that a run keeps, by name: "ema" for the first, the number as text for the others.

  Widths are at most 0.28 and decays hardly ever below 0.5, so a number is one or the other.

  Raises:
    BadInput: a number that is none or out of its range, a first average of both kinds, or the same
      average twice.
  """
  widths = _numbers("more_ema_widths", more_ema_widths)
  decays = _numbers("more_ema_decays", more_ema_decays)
  for name, value in (("ema_width", ema_width), *(("more_ema_widths", x) for x in widths)):
    off = name == "ema_width" and value == 0
    if not _is_number(value) or not (off or NARROWEST <= value <= WIDEST):
      raise BadInput(
        f"optim: {name}={value!r} is not in [{NARROWEST}, {WIDEST}]: the share of the run that an"
        f" average remembers{', or 0 for none' if name == 'ema_width' else ''}. Set it so."
      )
  for name, value in (("ema_decay", ema_decay), *(("more_ema_decays", x) for x in decays)):
    if not _is_number(value) or not 0 <= value <= 1:
      raise BadInput(f"optim: {name}={value!r} is not in [0, 1]. Set it so.")
  if ema_width and ema_decay:
    raise BadInput(
      f"optim: ema_width={ema_width} and ema_decay={ema_decay} are two kinds of the average that is"
      " evaluated. Set one of them to 0; more_ema_widths and more_ema_decays keep further ones."
    )
  first = PowerAverage(ema_width) if ema_width else ExponentialAverage(ema_decay)
  further = [*map(PowerAverage, widths), *map(ExponentialAverage, decays)]
  values = [*widths, *decays, *filter(None, (ema_width, ema_decay))]
  if len(set(values)) < len(values):
    raise BadInput(
      f"optim: more_ema_widths={widths}, more_ema_decays={decays} have one twice, or that of"
      f" ema_width={ema_width} or ema_decay={ema_decay}, which is kept anyway. Leave it out."
    )
  named = {str(value): one for value, one in zip((*widths, *decays), further, strict=True)}
  return ({FIRST: first} if ema_width or ema_decay else {}) | named


def _is_number(value) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numbers(name: str, value) -> tuple:
  if not isinstance(value, (tuple, list)):
    raise BadInput(f"optim: {name}={value!r} is no tuple of numbers, such as (0.1,). Correct it.")
  return tuple(value)


SETTINGS = ("ema_width", "more_ema_widths", "ema_decay", "more_ema_decays")


def saved_averages(config: Mapping) -> dict[str, Average]:
  """The averages of a run by its saved config, one of this version; {} where it says nothing."""
  if "optim" not in config:
    return {}
  return make_averages(**{name: config["optim"][name] for name in SETTINGS})

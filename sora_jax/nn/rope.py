"""Rotary position embedding over seconds, rows, columns and caption index.

Source: Su et al. 2021, arXiv:2104.09864, eq. 34; axes share the head dimension as in
Heo et al. 2024, arXiv:2403.13298, sec. 3.2.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.errors import BadInput
from sora_jax.typed import Array, Float, typed

Periods = Sequence[float]  # the shortest and the longest of an axis, in its unit

# Rows and columns, in latent cells, and caption tokens. Of patches of two cells the shortest is
# sampled twice a turn: it tells even from odd ones, and no longer period is mistaken for it.
CELLS, TOKENS = (4.0, 512.0), (4.0, 2048.0)


def rotary_frequencies(head_dim: int, seconds: Periods) -> np.ndarray:
  """Angular frequencies [4, head_dim/2], radians per unit: a pair of features turns with one axis.

  A quarter of the pairs goes to each of rows, columns and caption index, the rest to seconds; the
  periods of an axis are spaced geometrically.

  Args:
    head_dim: features that turn, a multiple of 8.
    seconds: shortest and longest period in time. Latents further apart than half the shortest are
      told apart wrongly (Nyquist): its angle moves by more than half a turn from one to the next.
  Raises:
    BadInput: a head dimension or periods that are none.
  """
  if head_dim % 8:
    raise BadInput(
      f"rope: head_dim={head_dim} is not a multiple of 8. Change model.width or heads."
    )
  pairs = head_dim // 2
  quarter = pairs // 4
  counts = (pairs - 3 * quarter, quarter, quarter, quarter)
  table, column = np.zeros((4, pairs), np.float32), 0
  periods = (check_periods(seconds), CELLS, CELLS, TOKENS)
  for axis, (count, (short, long)) in enumerate(zip(counts, periods, strict=True)):
    table[axis, column : column + count] = 2 * np.pi / np.geomspace(short, long, count)
    column += count
  return table


def check_periods(seconds: Periods) -> tuple[float, float]:
  """The periods as a pair of floats. Raises BadInput: they are no two that ascend from above 0."""
  pair = tuple(seconds) if isinstance(seconds, (tuple, list)) else ()
  numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in pair)
  if len(pair) != 2 or not numbers or not 0 < pair[0] < pair[1] < math.inf:
    raise BadInput(
      f"rope: rotary_seconds={seconds!r} is no (shortest, longest) period, seconds above 0. "
      "Correct model.rotary_seconds."
    )
  return float(pair[0]), float(pair[1])


@typed
def rotary_angles(
  position: Float[Array, "b n 4"], head_dim: int, seconds: Periods
) -> Float[Array, "b n {head_dim}//2"]:
  """Angles in radians of every slot and pair, float32.

  Angles reach hundreds of radians: the default precision of accelerators (bfloat16 or TF32 factors)
  would be wrong by a radian, so the product is asked for in full float32.
  """
  return jnp.matmul(
    position.astype(jnp.float32),
    rotary_frequencies(head_dim, seconds),
    precision=jax.lax.Precision.HIGHEST,
  )


@typed
def rotate(
  x: Float[Array, "b n heads head_dim"], angles: Float[Array, "b n pairs"]
) -> Float[Array, "b n heads head_dim"]:
  """Turns feature pairs (i, i + head_dim/2) by their angle; norms are unchanged."""
  cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
  a, b = jnp.split(x.astype(jnp.float32), 2, -1)
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x.dtype)


@typed
def fourier_features(
  position: Float[Array, "b n 4"], features: int, seconds: Periods
) -> Float[Array, "b n {features}"]:
  """cos and sin of every axis at the rotary frequencies: a token's place, to add to its embedding.

  Rotary attention alone knows relative positions; its own place a token learns through others only.
  """
  angles = rotary_angles(position, features, seconds)
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)

"""Models, parameters and clips that the reference of the DiT and ours are both given.

numpy alone, so that torch's environment needs nothing else. `RandomState` draws the same numbers in
every release of numpy (NEP 19), hence no parameter has to be kept.
"""

import math
import zlib
from typing import Any, NamedTuple

import numpy as np

WIDTH, DEPTH, HEADS, CHANNELS, PATCH, VOCABULARY, STATES = 32, 2, 2, 3, (1, 2, 2), 17, 6
HIDDEN = 64  # of both kinds of MLP: gelu 2·32; swiglu 2·32·2/3 = 42.7, rounded up to 32
PATCH_DIM = CHANNELS * math.prod(PATCH)
FEATURES = 64  # of positions
CASES: dict[str, dict[str, Any]] = {
  "ids_swiglu_pooled": dict(mlp="swiglu", state_width=0, pooled_caption=True),
  "states_gelu": dict(mlp="gelu", state_width=STATES, pooled_caption=False),
}
DIRECTIONS = 4  # onto which the gradient of a leaf is projected


class Clip(NamedTuple):
  """One clip at a noise level.

  Attributes:
    shape: of the latent, (f, h, w).
    tokens: of its caption; 0 for a dropped one.
    given: latent frames that are given clean, from the first on.
    t: noise level of the others.
  """

  shape: tuple[int, int, int]
  fps: float
  tokens: int
  given: int
  t: float

  @property
  def patches(self) -> int:
    return math.prod(side // part for side, part in zip(self.shape, PATCH, strict=True))


CLIPS = (
  Clip((3, 4, 4), 8.0, 5, 0, 0.3125),
  Clip((1, 4, 6), 24.0, 3, 0, 0.875),
  Clip((2, 4, 2), 6.0, 0, 0, 0.625),
  Clip((3, 2, 4), 12.0, 2, 1, 0.4375),
)


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Standard normal numbers that belong to a name, rounded to float32."""
  state = np.random.RandomState(zlib.crc32(name.encode()))
  return state.standard_normal(shape).astype(np.float32)


def parameter_shapes(*, mlp: str, state_width: int, pooled_caption: bool) -> dict[str, tuple]:
  """Shape of every parameter of a model by its path; blocks are stacked."""
  d, heads, side = WIDTH, HEADS, WIDTH // HEADS
  parts = 2 if mlp == "swiglu" else 1
  shapes = {
    "caption/null": (d,),
    "patches/kernel": (PATCH_DIM, d),
    "patches/bias": (d,),
    "position/kernel": (FEATURES, d),
    "position/bias": (d,),
    "level/into/kernel": (256, d),
    "level/into/bias": (d,),
    "level/out/kernel": (d, d),
    "level/out/bias": (d,),
    "modulation/kernel": (d, 6 * d),
    "modulation/bias": (6 * d,),
    "head_modulation/kernel": (d, 2 * d),
    "head_modulation/bias": (2 * d,),
    "head/kernel": (d, PATCH_DIM),
    "head/bias": (PATCH_DIM,),
    "blocks/table": (DEPTH, 6, d),
    "blocks/attention/qkv/kernel": (DEPTH, d, 3, heads, side),
    "blocks/attention/norm_q/scale": (DEPTH, side),
    "blocks/attention/norm_k/scale": (DEPTH, side),
    "blocks/attention/out/kernel": (DEPTH, heads, side, d),
    "blocks/mlp/into/kernel": (DEPTH, d, parts, HIDDEN),
    "blocks/mlp/into/bias": (DEPTH, parts, HIDDEN),
    "blocks/mlp/out/kernel": (DEPTH, HIDDEN, d),
    "blocks/mlp/out/bias": (DEPTH, d),
  }
  if state_width:
    shapes |= {"caption/states/kernel": (state_width, d), "caption/states/bias": (d,)}
  else:
    shapes |= {"caption/table": (VOCABULARY, d)}
  if pooled_caption:
    shapes |= {"pool/into/kernel": (d, d), "pool/into/bias": (d,), "pool/out/kernel": (d, d)}
  return shapes


def make_parameters(case: str) -> dict[str, np.ndarray]:
  """Parameters in float32: nothing is zero or one, so that nothing is the identity."""
  values = {}
  for name, shape in parameter_shapes(**CASES[case]).items():
    value = draw(f"{case}/{name}", shape)
    if name.endswith("/kernel"):
      value = value / np.float32(math.sqrt(math.prod(shape) / shape[-1] / _stacked(name)))
    elif name.endswith("/scale"):
      value = 1 + value * np.float32(0.3)
    else:
      value = value * np.float32(0.4)
    values[name] = value.astype(np.float32)
  return values


def _stacked(name: str) -> int:
  return DEPTH if name.startswith("blocks/") else 1


def make_inputs(case: str, number: int) -> dict[str, np.ndarray | None]:
  """A clip's noisy patches, caption, and the cotangent that makes a scalar of the output."""
  clip, width = CLIPS[number], CASES[case]["state_width"]
  rng = np.random.RandomState(number)
  return {
    "z": draw(f"z/{number}", (clip.patches, PATCH_DIM)),
    "cotangent": draw(f"cotangent/{number}", (clip.patches, PATCH_DIM)),
    "ids": rng.randint(1, VOCABULARY, clip.tokens).astype(np.int32),
    "states": draw(f"states/{number}", (clip.tokens, width)) if width else None,
  }


def project(name: str, gradient: np.ndarray) -> np.ndarray:
  """The gradient of a leaf along a few drawn directions, float64."""
  directions = draw(f"direction/{name}", (DIRECTIONS, gradient.size)).astype(np.float64)
  return directions @ np.asarray(gradient, np.float64).reshape(-1)

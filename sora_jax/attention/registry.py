"""Attention backends by name. The choice is made once, in `build`."""

from data_pipeline.errors import BadInput
from sora_jax.attention.xla import xla_segment_attention

BACKENDS = {"xla": xla_segment_attention}


def segment_attention(backend: str):
  """The function `(q, k, v, segment) -> output` of a backend.

  Raises:
    BadInput: no backend of that name.
  """
  if backend not in BACKENDS:
    raise BadInput(f"attention: backend={backend!r} is not one of {sorted(BACKENDS)}.")
  return BACKENDS[backend]

"""Classifier-free guidance."""

from sora_jax.typed import Array, Float, typed


@typed
def classifier_free_guidance(
  conditional: Float[Array, "*b"],
  unconditional: Float[Array, "*b"],
  scale: float | Float[Array, ""],
) -> Float[Array, "*b"]:
  """u + scale (c - u): scale 1 is the conditional model, 0 the unconditional one, above 1 guides.

  Source: Ho & Salimans 2022, arXiv:2207.12598, eq. 6, with scale = 1 + w.
  """
  return unconditional + scale * (conditional - unconditional)

"""Text encoders: captions to token ids and token states."""

from sora_jax.models.text.encoder import TextEncoder, describe
from sora_jax.models.text.registry import (
  load_frozen_text_encoder,
  load_text_encoder,
  save_text_encoder,
)

__all__ = [
  "TextEncoder",
  "describe",
  "load_frozen_text_encoder",
  "load_text_encoder",
  "save_text_encoder",
]

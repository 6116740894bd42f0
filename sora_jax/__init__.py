"""Pretrains text-to-video diffusion transformers on variable-length spacetime patches, in JAX."""

__version__ = "0.1.0"

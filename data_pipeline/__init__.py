"""Videos, captions and numbers: everything before the accelerator. Imports neither jax nor flax."""

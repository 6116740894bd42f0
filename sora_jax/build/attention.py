"""Which attention kernel a run uses, on its mesh."""

from collections.abc import Callable

import jax

from data_pipeline.errors import BadInput
from sora_jax.attention.registry import choose_backend, segment_attention
from sora_jax.attention.ulysses import over_mesh


def attention_backend(config, mesh) -> str:
  """The name of the backend of `model.attention_backend` on a mesh's devices.

  Raises:
    BadInput: it does not run there, or not with this config's rows or dtype.
  """
  name = choose_backend(config.model.attention_backend, mesh.devices.flat[0].platform)
  if name == "splash":
    from sora_jax.attention.splash import check_slots  # Pallas takes its time to load

    check_slots(config.data.slots)
  if name == "tokamax" and not _is_hopper(mesh.devices.flat[0]):
    raise BadInput(
      "attention: backend='tokamax' is for Hopper and Blackwell GPUs, and this one is"
      f" {mesh.devices.flat[0].device_kind}. Set model.attention_backend=auto."
    )
  if name == "tokamax" and config.model.dtype != "bfloat16":
    raise BadInput(
      f"attention: backend='tokamax' takes bfloat16, and model.dtype={config.model.dtype}. Set"
      " model.dtype=bfloat16, or model.attention_backend=auto."
    )
  return name


def _is_hopper(device) -> bool:
  return device.compute_capability in ("9.0", "10.0")


def build_attention(config, mesh) -> Callable[..., jax.Array]:
  """`(q, k, v, segment) -> output` over a mesh. Raises BadInput as `attention_backend`, and for
  heads that do not divide over it."""
  attend = segment_attention(attention_backend(config, mesh))
  return over_mesh(attend, mesh, heads=config.model.heads)


def sampling_attention() -> Callable[..., jax.Array]:
  """That of this machine's devices, whatever a run was trained on."""
  return segment_attention(choose_backend("auto", jax.default_backend()))

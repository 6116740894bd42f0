"""Attention backends by name. The choice is made once, in `build`.

A segment is a run of equal ids, as rows are packed; `xla` alone would join runs of one id.
"""

import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

import jax

from data_pipeline.errors import BadInput


class Backend(NamedTuple):
  """Where a backend runs, and what makes it.

  Attributes:
    platforms: of jax; () for any.
    interpreted: whether it also runs elsewhere, in Pallas' interpreter: exact and slow.
    needs: a package that it is an adapter of; "" for none.
  """

  platforms: tuple[str, ...] = ()
  interpreted: bool = False
  needs: str = ""


BACKENDS = {
  "xla": Backend(),
  "blocked": Backend(),
  "splash": Backend(("tpu",), interpreted=True),
  "triton": Backend(("gpu", "cuda"), interpreted=True),
  "tokamax": Backend(("gpu", "cuda"), needs="tokamax"),
}
AUTO = {"tpu": "splash", "gpu": "triton", "cuda": "triton"}  # elsewhere blocked


def choose_backend(name: str, platform: str) -> str:
  """A backend's name; "auto" chooses by platform.

  Raises:
    BadInput: no backend of that name, or not on this platform.
  """
  if name == "auto":
    return AUTO.get(platform, "blocked")
  if name not in BACKENDS:
    raise BadInput(
      f"attention: backend={name!r} is not one of {['auto', *sorted(BACKENDS)]}. Change"
      " model.attention_backend."
    )
  needed = BACKENDS[name].platforms
  if needed and platform not in needed:
    raise BadInput(
      f"attention: backend={name!r} runs on {needed[0]}, and these devices are {platform}. Set"
      " model.attention_backend=auto."
    )
  return name


def segment_attention(backend: str, *, interpret: bool = False) -> Callable[..., jax.Array]:
  """The function `(q, k, v, segment) -> output` of a backend.

  Args:
    interpret: a Pallas backend runs in the interpreter, on any platform.
  Raises:
    BadInput: no backend of that name, or its package is not installed.
  """
  if backend not in BACKENDS:
    choose_backend(backend, "")
  try:
    module = importlib.import_module(f"sora_jax.attention.{backend}")
  except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != BACKENDS[backend].needs:
      raise
    raise BadInput(
      f"attention: backend={backend!r} needs the package {error.name}, which is not installed."
      " Install sora_jax[hopper], or set model.attention_backend=auto."
    ) from error
  function = getattr(module, f"{backend}_segment_attention")
  return functools.partial(function, interpret=True) if interpret else function

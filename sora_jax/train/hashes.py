"""SHA-256 over the values of a tree: equal for equal values, on any mesh and in any container."""

import hashlib

import jax
import numpy as np

from sora_jax.parallel.rules import named_leaves


def tree_sha256(tree) -> str:
  """Hex digest over (path, dtype, shape, little-endian bytes) of every leaf, in path order.

  Args:
    tree: arrays of numpy or jax (of a single process), in dicts, tuples or boxes.
  """
  digest = hashlib.sha256()
  for name, leaf in named_leaves(tree).items():
    value = np.asarray(jax.device_get(leaf))
    # Bytes through unsigned words: bfloat16 has no byte order of its own to convert.
    words = np.ascontiguousarray(value).reshape(-1).view(f"u{value.itemsize}")
    digest.update(f"{name} {value.dtype.name} {value.shape}\n".encode())
    digest.update(words.astype(f"<u{value.itemsize}", copy=False).data)
  return digest.hexdigest()


def state_hashes(state) -> dict[str, str]:
  """`params_sha256`, `ema_sha256` and `opt_sha256`.

  Args:
    state: a `State`, or the dict of its fields as a checkpoint gives it back.
  """
  parts = state if isinstance(state, dict) else state._asdict()
  return {f"{part}_sha256": tree_sha256(parts[part]) for part in ("params", "ema", "opt")}

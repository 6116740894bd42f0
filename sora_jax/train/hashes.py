"""Digests over the values of a tree: equal for equal values, on any mesh and in any container."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.parallel.rules import named_leaves

_HOST_WORDS = 2**22  # summed at once: their products' sum stays below 2^64
_MASK = np.uint64(0xFFFFFFFF)


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


def host_checksums(tree) -> dict[str, list[int]]:
  """`checksums` of numpy leaves, one after the other on the host: no device has to hold them."""
  return {name: _host_sums(np.asarray(leaf)) for name, leaf in named_leaves(tree).items()}


def _host_sums(leaf: np.ndarray) -> list[int]:
  words = np.ascontiguousarray(leaf).reshape(-1).view(f"u{leaf.itemsize}")
  first = second = 0
  for begin in range(0, words.size, _HOST_WORDS):
    part = words[begin : begin + _HOST_WORDS].astype(np.uint64)
    place = np.arange(begin + 1, begin + 1 + part.size, dtype=np.uint64)
    first += int(part.sum())
    second += int((part * (place & _MASK) & _MASK).sum())
  return [first & int(_MASK), second & int(_MASK)]


def checksums(tree) -> dict[str, list[int]]:
  """Two sums modulo 2^32 a leaf, `sum w_i` and `sum (i + 1) w_i` over its words of 1, 2 or 4 bytes.

  Computed where the leaves lie, in one pass, without moving them: integer sums do not depend on the
  mesh. Any change within one word is seen (a flipped bit of a disk), after Fletcher 1982.
  """
  named = named_leaves(tree)
  sums = jax.device_get(_sums(list(named.values())))
  return {name: [int(a), int(b)] for name, (a, b) in zip(named, sums, strict=True)}


@jax.jit
def _sums(leaves):
  return [word_sums(leaf) for leaf in leaves]


def word_sums(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Sum of an array's words, and of each times its place from 1 on: uint32, wrapping around."""
  if leaf.dtype != jnp.bool_:
    leaf = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"u{leaf.dtype.itemsize}"))
  words, place = leaf.astype(jnp.uint32), jnp.ones((), jnp.uint32)
  for axis, stride in enumerate(np.cumprod((1, *leaf.shape[:0:-1]), dtype=np.uint64)[::-1]):
    if leaf.ndim:  # the flat index, without a reshape, which would gather a sharded leaf
      index = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
      place = place + index * np.uint32(stride & np.uint64(0xFFFFFFFF))
  return jnp.sum(words, dtype=jnp.uint32), jnp.sum(words * place, dtype=jnp.uint32)


def state_hashes(state) -> dict[str, str]:
  """`params_sha256`, `ema_sha256` and `opt_sha256`.

  Args:
    state: a `State`, or the dict of its fields as a checkpoint gives it back.
  """
  parts = state if isinstance(state, dict) else state._asdict()
  return {f"{part}_sha256": tree_sha256(parts[part]) for part in ("params", "ema", "opt")}

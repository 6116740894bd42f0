"""Context parallelism: slots of a row on several devices, and whole rows inside of attention.

Source: Jacobs et al. 2023, "DeepSpeed Ulysses", arXiv:2309.14509: an all-to-all turns shards of the
sequence into shards of the heads, attention runs as on one device, another one turns it back. Each
moves 1/context of what a gather of keys and values would.
"""

from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from data_pipeline.errors import BadInput

Attend = Callable[..., jax.Array]


def over_mesh(
  attend: Attend,
  mesh: Mesh,
  *,
  heads: int,
  rows_axes: tuple[str, ...] = ("data", "fsdp"),
  context_axis: str = "context",
  heads_axis: str = "tensor",
) -> Attend:
  """`attend` with rows, slots and heads divided over a mesh.

  Args:
    attend: `(q, k, v [b,n,heads,head_dim], segment [b,n]) -> [b,n,heads,head_dim]` of a backend.
    mesh: has the axes.
    heads: of the model.
    rows_axes, context_axis, heads_axis: that rows, slots and heads lie along.
  Returns:
    The same function on global arrays, to be called under jit; `attend` itself on a single device.
  Raises:
    BadInput: heads do not divide over context * tensor.
  """
  context, tensor = mesh.shape[context_axis], mesh.shape[heads_axis]
  if heads % (context * tensor):
    raise BadInput(
      f"mesh: context={context} * tensor={tensor} does not divide model.heads={heads}: inside of"
      " attention each device has whole rows of some heads. Choose divisors of the heads."
    )
  if mesh.size == 1:
    return attend
  tokens = PartitionSpec(rows_axes, context_axis, heads_axis, None)

  def local(q, k, v, segment):
    if context == 1:
      return attend(q, k, v, segment)
    q, k, v = (_slots_to_heads(x, context_axis) for x in (q, k, v))
    segment = jax.lax.all_gather(segment, context_axis, axis=1, tiled=True)
    return _heads_to_slots(attend(q, k, v, segment), context_axis)

  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(tokens, tokens, tokens, PartitionSpec(rows_axes, context_axis)),
    out_specs=tokens,
    check_vma=False,  # Pallas kernels do not say along which axes their outputs vary
  )


def _slots_to_heads(x: jax.Array, axis: str) -> jax.Array:
  """[b, n/context, heads, head_dim] to [b, n, heads/context, head_dim]."""
  return jax.lax.all_to_all(x, axis, split_axis=2, concat_axis=1, tiled=True)


def _heads_to_slots(x: jax.Array, axis: str) -> jax.Array:
  """Inverse of `_slots_to_heads`."""
  return jax.lax.all_to_all(x, axis, split_axis=1, concat_axis=2, tiled=True)

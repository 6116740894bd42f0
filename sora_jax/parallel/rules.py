"""Sharding is data: a table of (regular expression, PartitionSpec) over parameter paths such as
`blocks/attention/qkv/kernel`.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipeline.errors import BadInput

Rules = Sequence[tuple[str, PartitionSpec]]

# Every parameter whole on every device: what plain data parallelism wants.
REPLICATED: Rules = ((r".*", PartitionSpec()),)


def over_context(rules: Rules) -> Rules:
  """The table with what lies in shards over `fsdp` divided over `context` as well.

  Less memory where there are fewer rows than devices; gathers go over both axes then.
  """

  def widen(axis):
    return ("fsdp", "context") if axis == "fsdp" else axis

  return tuple((path, PartitionSpec(*map(widen, spec))) for path, spec in rules)


def path_name(path) -> str:
  """`blocks/attention/qkv/kernel` of a jax key path, without a parameter box's last `value`."""
  parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
  if len(parts) > 1 and parts[-1] == "value":
    parts.pop()
  return "/".join(parts)


def named_leaves(tree) -> dict[str, Any]:
  """The leaves by path name, sorted by it: the same order for every kind of tree.

  Raises:
    ValueError: two leaves share a name.
  """
  pairs = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]
  named = dict(sorted(pairs, key=lambda pair: pair[0]))
  if len(named) != len(pairs):
    raise ValueError(f"parameter paths are not unique: {[name for name, _ in pairs]}")
  return named


def match_rule(name: str, rules: Rules) -> PartitionSpec:
  """The spec of the one rule whose expression matches the whole of `name`.

  Raises:
    BadInput: no rule or more than one matches.
  """
  found = [(pattern, spec) for pattern, spec in rules if re.fullmatch(pattern, name)]
  if len(found) == 1:
    return found[0][1]
  raise BadInput(
    f"sharding: parameter {name} is matched by {len(found)} rules"
    f" ({', '.join(pattern for pattern, _ in found) or 'none'}), exactly one is needed."
    " Mend the rule table."
  )


def shardings(shapes, rules: Rules, mesh: Mesh):
  """The sharding of every leaf.

  Args:
    shapes: tree of arrays or `jax.ShapeDtypeStruct`.
    rules: each path must match exactly one.
  Returns:
    The same tree with a `NamedSharding` at each leaf.
  Raises:
    BadInput: a path without its one rule, or a spec that does not fit the shape.
  """

  def place(path, leaf):
    name = path_name(path)
    spec = match_rule(name, rules)
    _check_spec(name, leaf.shape, spec, mesh)
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(place, shapes)


def _check_spec(name: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> None:
  if len(spec) > len(shape):
    raise BadInput(
      f"sharding: {name} has shape {shape}, its spec {spec} has more axes. Mend the rule table."
    )
  for axis, (size, names) in enumerate(zip(shape, spec, strict=False)):
    names = (names,) if isinstance(names, str) else names or ()
    parts = math.prod(mesh.shape[mesh_axis] for mesh_axis in names)
    if size % parts:
      raise BadInput(
        f"sharding: {name} axis {axis} of size {size} (shape {shape}) does not divide over"
        f" {'*'.join(names)}={parts}. Choose another mesh or width, or mend the rule table."
      )

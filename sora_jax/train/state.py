"""What a training step changes, and so all that a checkpoint holds."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sora_jax.parallel.mesh import replicated
from sora_jax.parallel.rules import Rules, named_leaves, path_name, shardings
from sora_jax.train.averages import FIRST


class State(NamedTuple):
  """Training state: a plain pytree.

  Attributes:
    step: int32 scalar; steps done so far.
    params: parameters, float32 unless the model says otherwise.
    ema: float32 moving average of `params`: the same tree, buffers of its own; {} for none.
    opt: optax state.
    averages: further averages like `ema`, by their width or decay as text ("0.1", "0.9999").
  """

  step: Any
  params: Any
  ema: Any
  opt: Any
  averages: dict[str, Any] = {}  # noqa: RUF012 (of a NamedTuple; never written)

  @property
  def averaged(self) -> Any:
    """What is evaluated and exported: the average, or the parameters where none is kept."""
    return self.ema or self.params


class Progress(NamedTuple):
  """What the host knows of a run. Python integers: an int32 would end at 2.1 B tokens.

  Attributes:
    cursor: JSON-able position of the loader after the last batch that the state has seen.
    tokens_seen: tokens trained on, padding not counted.
    clips_seen: segments trained on.
  """

  cursor: dict
  tokens_seen: int = 0
  clips_seen: int = 0


def init_state(params, optimizer, names: Collection[str] = (FIRST,)) -> State:
  """A fresh state at step 0. May be jitted or evaluated for shapes.

  Args:
    params: the parameter tree.
    optimizer: optax gradient transformation.
    names: of the averages that are kept, "ema" among them or not.
  """

  def copy():  # a real one: a buffer shared by two leaves cannot be donated
    return jax.tree.map(lambda value: jnp.array(value, dtype=jnp.float32, copy=True), params)

  averages = {name: copy() for name in names if name != FIRST}
  first = copy() if FIRST in names else {}
  return State(jnp.zeros((), jnp.int32), params, first, optimizer.init(params), averages)


def state_shardings(shapes: State, rules: Rules, mesh: Mesh) -> State:
  """Shardings of a whole state: averages and moments lie like the parameter that they belong to.

  Args:
    shapes: the state or `jax.eval_shape` of it.
    rules: table over parameter paths, see `sora_jax.parallel.rules`.
  """
  params = shardings(shapes.params, rules, mesh)
  whole = replicated(mesh)
  known = {
    name: (leaf.shape, place)
    for (name, leaf), place in zip(
      named_leaves(shapes.params).items(), named_leaves(params).values(), strict=True
    )
  }

  def place(path, leaf):
    parts = path_name(path).split("/")
    for start in range(len(parts)):  # the longest tail that is a parameter's path
      shape, sharding = known.get("/".join(parts[start:]), (None, whole))
      if shape == leaf.shape:
        return sharding
    return whole

  opt = jax.tree_util.tree_map_with_path(place, shapes.opt)
  ema = params if shapes.ema else {}
  return State(whole, params, ema, opt, dict.fromkeys(shapes.averages, params))


def abstract_state(shapes: State, places: State) -> State:
  """Shapes and shardings together, as a restore wants them: a tree of `jax.ShapeDtypeStruct`."""
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
  )

"""One optimiser step, the same for every model: the loss is an argument."""

from collections.abc import Mapping

from sora_jax.train.averages import Average
from sora_jax.train.optim import advance
from sora_jax.train.state import State


def make_step(gradient_fn, optimizer, averages: Mapping[str, Average]):
  """Builds `step(state, frozen, batch) -> (state, metrics)`, a pure function to be jitted.

  Args:
    gradient_fn: `(params, frozen, batch) -> ((loss, metrics), gradients)` over the global batch,
      see `make_gradient`.
    optimizer: of optax; gradient clipping is part of it.
    averages: of the parameters, float32, by name.
  Returns:
    The step. Its metrics are those of the loss plus `loss` and the norms of `advance`.
  """

  def step(state: State, frozen, batch):
    (loss, metrics), gradients = gradient_fn(state.params, frozen, batch)
    state, norms = advance(state, gradients, optimizer, averages)
    return state, {**metrics, **norms, "loss": loss}

  return step

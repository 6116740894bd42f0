"""One optimiser step, the same for every model: the loss is an argument."""

import jax
import jax.numpy as jnp
import optax

from sora_jax.train.optim import ema_update
from sora_jax.train.state import State


def make_step(loss_fn, optimizer: optax.GradientTransformation, *, ema_decay: float):
  """Builds `step(state, frozen, batch) -> (state, metrics)`, a pure function to be jitted.

  Args:
    loss_fn: `(params, frozen, batch) -> (loss, metrics)`, a scalar over the global batch.
    optimizer: of optax; gradient clipping is part of it.
    ema_decay: of the float32 average of the parameters.
  Returns:
    The step. Its metrics are those of the loss plus `loss` and `grad_norm` (before clipping).
  """

  def step(state: State, frozen, batch):
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, metrics), gradients = gradient_fn(state.params, frozen, batch)
    updates, opt = optimizer.update(gradients, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = ema_update(state.ema, params, ema_decay, state.step)
    metrics = dict(metrics, loss=loss, grad_norm=optax.tree.norm(gradients))
    return State(step=state.step + jnp.int32(1), params=params, ema=ema, opt=opt), metrics

  return step

"""Optimiser and learning-rate schedules; one step of a training state."""

import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from data_pipeline.errors import BadInput
from sora_jax.parallel.rules import path_name
from sora_jax.train.averages import FIRST, Average, ema_update
from sora_jax.train.clip import clip_by_history
from sora_jax.train.muon import STACKED, muon_and_adam
from sora_jax.train.state import State

# Six bias vectors of a block in one array: shifts, scales and gates of its modulation.
MODULATION = re.compile(r"(^|.*/)blocks/(\d+/)?table")


def _constant(done, *, floor):
  return jnp.ones_like(done)


def _cosine(done, *, floor):
  return floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * done))


def _linear(done, *, floor):
  return 1 - (1 - floor) * done


# name -> (shape over the decay phase, whether that phase is all that follows the warm-up, and
# how much of its first step it has done in it)
SCHEDULES = {
  "constant": (_constant, True, 0),
  "cosine": (_cosine, True, 0),
  "wsd": (_linear, False, 1),
}


def make_schedule(
  *,
  lr: float,
  schedule: str,
  warmup_steps: int,
  total_steps: int,
  decay_steps: int,
  min_lr_ratio: float,
):
  """Learning rate as a function of the steps done: 0 gives that of the first step.

  A linear warm-up that reaches `lr` in step `warmup_steps` (the first step is not at zero), then
  `constant`; `cosine`, which `total_steps` steps done bring to `min_lr_ratio * lr`, so that the
  last step is a little above it (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without
  restarts); or `wsd`: constant, and a straight line to the same floor over the last `decay_steps`
  steps, the first of them below `lr` and the last at the floor (warm-up, stable, decay; Hu et al.
  2024, arXiv:2404.06395, sec. 4).

  Raises:
    BadInput: an unknown name, or phases that do not fit into `total_steps`.
  """
  if schedule not in SCHEDULES:
    raise BadInput(f"optim: schedule={schedule!r} is not one of {', '.join(SCHEDULES)}.")
  shape, whole, ahead = SCHEDULES[schedule]
  length = total_steps - warmup_steps if whole else decay_steps
  if schedule != "constant" and not 0 < length <= total_steps - warmup_steps:
    raise BadInput(
      f"optim: schedule={schedule} with warmup_steps={warmup_steps}, decay_steps={decay_steps} does"
      f" not fit into total_steps={total_steps}. Lower optim.warmup_steps or decay_steps, or train"
      " longer."
    )

  def rate(count):
    warm = jnp.minimum(1.0, (count + 1) / max(1, warmup_steps))
    done = jnp.clip((count + ahead - (total_steps - length)) / max(1, length), 0.0, 1.0)
    return lr * warm * shape(done, floor=min_lr_ratio)

  return rate


def decay_mask(params):
  """True where weight decay applies: matrices, not vectors (biases, norms, single tokens).

  A vector is a bias, a leaf of at most one axis (the layer axis of stacked blocks not counted), or
  one of the rows of a block's modulation table.
  """

  def decays(path, leaf):
    name = path_name(path)
    is_vector = name.endswith("/bias") or MODULATION.fullmatch(name)
    return leaf.ndim - bool(STACKED.fullmatch(name)) > 1 and not is_vector

  return jax.tree_util.tree_map_with_path(decays, params)


def _adamw(rate, *, b1, b2, eps, weight_decay, momentum_dtype):
  return optax.adamw(
    rate,
    b1=b1,
    b2=b2,
    eps=eps,
    weight_decay=weight_decay,
    mask=decay_mask,
    mu_dtype=momentum_dtype,
  )


def _muon(rate, *, b1, b2, eps, weight_decay, momentum_dtype):
  """Muon (Jordan et al. 2024) on the blocks' kernels, AdamW elsewhere.

  Orthogonalised updates have an RMS of 0.2, so that AdamW's learning rate and weight decay carry
  over (Liu et al. 2025, arXiv:2502.16982, eq. 4). The decay is one for both, before the rate.
  """
  rules = muon_and_adam(b1=b1, b2=b2, eps=eps, momentum_dtype=momentum_dtype)
  # The rules' updates are descents already, so the decay has their sign.
  decay = optax.add_decayed_weights(-weight_decay, decay_mask)
  return optax.chain(rules, decay, optax.scale_by_schedule(rate))


OPTIMIZERS = {"adamw": _adamw, "muon": _muon}
MOMENTS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def store_variance(rule: optax.GradientTransformation, dtype) -> optax.GradientTransformation:
  """`rule` with its second moments kept in a dtype; it computes with them in float32.

  Optax keeps them as the parameters are.
  """

  def cast(state, dtype):
    def one(path, leaf):
      return leaf.astype(dtype) if "nu" in path_name(path).split("/") else leaf

    return jax.tree_util.tree_map_with_path(one, state)

  def update(updates, state, params=None):
    updates = jax.tree.map(lambda g: g.astype(jnp.float32), updates)
    updates, state = rule.update(updates, cast(state, jnp.float32), params)
    return updates, cast(state, dtype)

  return optax.GradientTransformation(lambda params: cast(rule.init(params), dtype), update)


def make_optimizer(
  *,
  name: str,
  lr: float,
  schedule: str,
  warmup_steps: int,
  total_steps: int,
  decay_steps: int,
  min_lr_ratio: float,
  weight_decay: float,
  b1: float,
  b2: float,
  eps: float,
  clip_norm: float,
  clip_sigmas: float,
  clip_decay: float,
  momentum_dtype: str,
  variance_dtype: str,
) -> optax.GradientTransformation:
  """Clipping by the global norm and by its history, then the named optimiser.

  `clip_norm` 0 switches the first off, `clip_sigmas` 0 the second, see `clip_by_history`.

  `momentum_dtype` is of the first moments (AdamW's, Muon's momentum), `variance_dtype` of the
  second ones. An average in bfloat16, of 8 bits, stands still where it should move by less than
  1/256 of its size a step: 1-b2 has to be well above that.

  Weight decay is decoupled, times the learning rate (Loshchilov & Hutter 2019, arXiv:1711.05101),
  and leaves biases, norms and single tokens alone, see `decay_mask`.

  Raises:
    BadInput: an unknown name, a schedule that does not fit, a number out of its range.
  """
  if name not in OPTIMIZERS:
    raise BadInput(f"optim: name={name!r} is not one of {', '.join(OPTIMIZERS)}.")
  dtypes = dict(momentum_dtype=momentum_dtype, variance_dtype=variance_dtype)
  for setting, dtype in dtypes.items():
    if dtype not in MOMENTS:
      raise BadInput(f"optim: {setting}={dtype!r} is not one of {', '.join(MOMENTS)}.")
  if variance_dtype == "bfloat16" and 1 - b2 < 1 / 64:
    raise BadInput(
      f"optim: variance_dtype=bfloat16 with b2={b2} would stand still: it moves by {1 - b2:.2g} of"
      " its size a step, of which bfloat16 sees 1/256. Set b2=0.95, or variance_dtype=float32."
    )
  if not (0 < lr < math.inf and 0 <= clip_norm < math.inf):
    raise BadInput(
      f"optim: lr={lr} must be positive, clip_norm={clip_norm} too, or 0 (off). Set them so."
    )
  if not (0 <= b1 < 1 and 0 <= b2 < 1 and eps > 0 and 0 <= weight_decay < math.inf):
    raise BadInput(
      f"optim: b1={b1}, b2={b2} must lie in [0, 1), eps={eps} above 0, "
      f"weight_decay={weight_decay} at 0 or above."
    )
  rate = make_schedule(
    lr=lr,
    schedule=schedule,
    warmup_steps=warmup_steps,
    total_steps=total_steps,
    decay_steps=decay_steps,
    min_lr_ratio=min_lr_ratio,
  )
  settings = dict(b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
  rule = OPTIMIZERS[name](rate, **settings, momentum_dtype=MOMENTS[momentum_dtype])
  rule = store_variance(rule, MOMENTS[variance_dtype])
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  history = [clip_by_history(clip_sigmas, clip_decay)] if clip_sigmas else []
  return optax.chain(clip, *history, rule)


def advance(
  state: State, gradients, optimizer, averages: Mapping[str, Average]
) -> tuple[State, dict]:
  """One optimiser step; pure, to be called under jit.

  Args:
    averages: of the state, by name, see `make_averages`. They take in the new parameters.
  Returns:
    The next state, and global L2 norms: `grad_norm` of the gradients before clipping, `param_norm`
    of the parameters after the update (not finite when the update was not).
  """
  updates, opt = optimizer.update(gradients, state.opt, state.params)
  params = optax.apply_updates(state.params, updates)
  moved = {
    name: ema_update(
      state.ema if name == FIRST else state.averages[name], params, average.share(state.step)
    )
    for name, average in averages.items()
  }
  norms = {"grad_norm": optax.tree.norm(gradients), "param_norm": optax.tree.norm(params)}
  return State(state.step + 1, params, moved.pop(FIRST, {}), opt, moved), norms

"""Solvers of dz/dt = v(z, t) from noise (t = 1) to data (t = 0). The network is an argument."""

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.errors import BadInput


def time_grid(steps: int, alpha: float = 1.0) -> np.ndarray:
  """Times 1 = t_0 > … > t_steps = 0, evenly spaced and then shifted towards noise by `alpha`.

  Source of the shift: Esser et al. 2024, arXiv:2403.03206, eq. 23.
  """
  if steps < 1:
    raise BadInput(f"sample: steps={steps} must be at least 1.")
  t = np.linspace(1.0, 0.0, steps + 1)
  return (alpha * t / (1 + (alpha - 1) * t)).astype(np.float32)


def euler_step(velocity, z, t, t_next):
  """First order: z + (t' - t) v(z, t)."""
  return z + (t_next - t) * velocity(z, t)


def heun_step(velocity, z, t, t_next):
  """Second order (explicit trapezoid); the last step, into t = 0, is an Euler step.

  Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1.
  """
  slope = velocity(z, t)
  guess = z + (t_next - t) * slope
  corrected = lambda: z + (t_next - t) * 0.5 * (slope + velocity(guess, t_next))  # noqa: E731
  return jax.lax.cond(t_next > 0, corrected, lambda: guess)


SOLVERS = {"euler": euler_step, "heun": heun_step}


def integrate(solver: str, velocity, noise, times):
  """Follows the flow from `noise` along `times`.

  Args:
    solver: "euler" or "heun".
    velocity: function (z, t scalar) -> dz/dt, traced once.
    noise: z at times[0], any shape.
    times: descending, [steps+1], from `time_grid`.
  Returns:
    z at times[-1].
  """
  if solver not in SOLVERS:
    raise BadInput(f"sample: solver={solver!r} is not one of {sorted(SOLVERS)}.")
  step = SOLVERS[solver]
  pairs = jnp.stack([jnp.asarray(times[:-1]), jnp.asarray(times[1:])], -1)
  z, _ = jax.lax.scan(lambda z, p: (step(velocity, z, p[0], p[1]), None), noise, pairs)
  return z

"""Which host keeps the others waiting.

In a synchronous run all hosts show the same step time, whoever is late. What differs is the time
that each takes by itself to have the next batch ready: load, count, start the copy.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather_hosts(value: float) -> np.ndarray:
  """A number of each process, [processes], the same on all. Every process has to call it."""
  if jax.process_count() == 1:
    return np.array([value])
  return np.asarray(multihost_utils.process_allgather(np.float32(value)), np.float64).reshape(-1)


def summarise_hosts(host_seconds: np.ndarray, step_seconds: float) -> dict[str, Any]:
  """What the log says of the hosts.

  Args:
    host_seconds: a step of each host by itself, [hosts].
    step_seconds: of a step, the same for all.
  Returns:
    `host_seconds` of all hosts, the `slowest_host`, and `straggling`: the share of a step by which
    it is behind the median host. Near 1, the others wait for it most of the time.
  """
  slowest = int(np.argmax(host_seconds))
  behind = float(host_seconds[slowest] - np.median(host_seconds))
  return {
    "host_seconds": [round(float(seconds), 6) for seconds in host_seconds],
    "slowest_host": slowest,
    "straggling": behind / max(step_seconds, 1e-9),
  }

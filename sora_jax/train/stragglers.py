"""Which host keeps the others waiting for its batches.

In a synchronous run all hosts show the same step time, whoever is late. What differs is the time
that each takes by itself to have the next batch ready: load, count, start the copy. A slow device
is not seen here: a profile tells.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Hosts:
  """Tells all hosts how long each took, without stopping for it.

  Among several processes an exchange waits in the devices' queue behind the step that is running:
  what a call returns is what the call before it has sent.
  """

  def __init__(self):
    self._sent: jax.Array | None = None

  def __call__(self, seconds: float) -> np.ndarray | None:
    """Seconds of each process, [processes]; None when there is nothing to tell yet.

    Every process has to call it equally often.
    """
    if jax.process_count() == 1:
      return np.array([seconds])
    before, self._sent = self._sent, _share(seconds)
    return None if before is None else np.asarray(before, np.float64)


def _share(value: float) -> jax.Array:
  """A number of each process as one array that all of them hold; does not wait."""
  first = {device.process_index: device for device in reversed(jax.devices())}
  mesh = Mesh(np.array([first[i] for i in sorted(first)]), ("hosts",))
  mine = NamedSharding(mesh, PartitionSpec("hosts"))
  array = jax.make_array_from_process_local_data(mine, np.array([value], np.float32))
  with jax.set_mesh(mesh):  # not the run's, which may have further devices of each process
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(array)


def summarise_hosts(host_seconds: np.ndarray | None, step_seconds: float) -> dict[str, Any]:
  """What the log says of the hosts.

  Args:
    host_seconds: a step's batch took each host by itself, [hosts]; None: nothing to say.
    step_seconds: of a step, the same for all.
  Returns:
    `host_seconds` of all hosts, the `slowest_host`, and `straggling`: the share of a step by which
    it is behind the median host. Near 1, the others wait for it most of the time.
  """
  if host_seconds is None:
    return {}
  slowest = int(np.argmax(host_seconds))
  behind = float(host_seconds[slowest] - np.median(host_seconds))
  return {
    "host_seconds": [round(float(seconds), 6) for seconds in host_seconds],
    "slowest_host": slowest,
    "straggling": behind / max(step_seconds, 1e-9),
  }

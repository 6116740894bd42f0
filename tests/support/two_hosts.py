"""One of two processes that share a batch and a value of one of them, and tell each other how long
they took; run by its test.
"""

import sys

import jax
import numpy as np

number = int(sys.argv[2])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, number)

from sora_jax.parallel.broadcast import first_slice, to_all_slices  # noqa: E402
from sora_jax.parallel.mesh import make_mesh, replicated  # noqa: E402
from sora_jax.parallel.place import make_put  # noqa: E402
from sora_jax.train.stragglers import Hosts, summarise_hosts  # noqa: E402

mesh = make_mesh(data=2)
rows = np.arange(12, dtype=np.int32).reshape(4, 3)
mine = rows[2 * number : 2 * number + 2]  # each process reads its own rows of the batch
batch = make_put(mesh)({"text_ids": mine})["text_ids"]
assert batch.shape == (4, 3)
np.testing.assert_array_equal(batch.addressable_data(0), mine)

whole = replicated(mesh)
value = np.array([1.5, -0.0, np.nan], np.float32)
read = None if number else jax.device_put(value, first_slice(whole, 2))
told = to_all_slices(jax.ShapeDtypeStruct((3,), np.float32, sharding=whole), 2, read)
assert np.asarray(told.addressable_data(0)).tobytes() == value.tobytes(), "bit for bit"

hosts = Hosts()
assert hosts(0.25 * (1 + number)) is None  # on its way
print(summarise_hosts(hosts(0.0), 1.0))

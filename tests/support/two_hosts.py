"""One of two processes that tell each other how long they took; run by its test."""

import sys

import jax

jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))

from sora_jax.train.stragglers import Hosts, summarise_hosts  # noqa: E402

hosts = Hosts()
assert hosts(0.25 * (1 + int(sys.argv[2]))) is None  # on its way
print(summarise_hosts(hosts(0.0), 1.0))

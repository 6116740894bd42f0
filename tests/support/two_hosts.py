"""One of two processes that tell each other how long they took; run by its test."""

import sys

import jax

jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))

from sora_jax.train.stragglers import gather_hosts, summarise_hosts  # noqa: E402

print(summarise_hosts(gather_hosts(0.25 * (1 + int(sys.argv[2]))), 1.0))

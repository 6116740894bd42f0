"""The `sora` program: `sora COMMAND …`, same as `python -m sora_jax COMMAND …`."""

import sys

from sora_jax.commands.entry import main

if __name__ == "__main__":
  sys.exit(main())

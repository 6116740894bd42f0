"""The `sora` program: `sora COMMAND …`, same as `python -m sora_jax COMMAND …`."""

from sora_jax.commands.entry import program as main

if __name__ == "__main__":
  main()

"""The config of a run, settled before anything is built: of this version, whole, and in range."""

from data_pipeline.worlds.settings import check_world
from sora_jax.build.migrations import fill_in
from sora_jax.build.schema import check_run
from sora_jax.commands.progress import say
from sora_jax.train.migrations import changed


def settle(config, file: str, command: str) -> None:
  """Fills in what a config of an earlier version lacks, and checks every setting.

  What is filled in is said, and what a run by it computes otherwise than one of that version.

  Args:
    config: a ConfigDict, changed in place.
    file: that it is from, for people.
    command: of whose lines this one is.
  Raises:
    BadInput: settings are missing, unknown, or of another kind or range.
  """
  otherwise = changed(config.to_dict(), file)
  if line := fill_in(config, file):
    say(f"{command}: {line}")
  for text in otherwise:
    say(f"{command}: {file}: {text}")
  plain = config.to_dict()
  check_run(plain, file)
  if "world" in plain:
    check_world(plain["world"])

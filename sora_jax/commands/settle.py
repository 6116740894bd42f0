"""The config of a run, settled before anything is built: of this version, whole, and in range."""

from data_pipeline.worlds.settings import check_world
from sora_jax.build.migrations import fill_in
from sora_jax.build.schema import check_run
from sora_jax.commands.progress import say


def settle(config, file: str, command: str) -> None:
  """Fills in what a config of an earlier version lacks, says so, and checks every setting.

  Args:
    config: a ConfigDict, changed in place.
    file: that it is from, for people.
    command: of whose lines this one is.
  Raises:
    BadInput: settings are missing, unknown, or of another kind or range.
  """
  if line := fill_in(config, file):
    say(f"{command}: {line}")
  plain = config.to_dict()
  check_run(plain, file)
  if "world" in plain:
    check_world(plain["world"])

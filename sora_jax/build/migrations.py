"""Configs of earlier versions, as this one means them (the table: `train/migrations.py`)."""

from sora_jax.train.migrations import VERSION, describe, lacking


def fill_in(config, where: str) -> str:
  """Fills in, in place, what a run's config of an earlier version lacks, see `migrate`.

  Args:
    config: a ConfigDict, locked or not.
    where: the file it is from, for people.
  Returns:
    One line that says what was filled in; "" when nothing was.
  Raises:
    BadInput: a version that is none, or a newer one.
  """
  before = config.to_dict()
  filled = lacking(before, where)
  with config.unlocked():
    for one in filled:
      *groups, name = one.key.split(".")
      group = config
      for each in groups:
        group = group[each]
      group[name] = one.old
    config.version = VERSION
  return describe(before, where, filled)

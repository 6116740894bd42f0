"""What a setting that a config lacks meant before it was one: configs of earlier versions.

`config.version` counts the versions of the settings' meaning; a config without it is of version 1.
A version adds settings, and each has a meaning that leaves everything as it was before. This table
is the only place that knows it. It lies below `build`, since a checkpoint's config is compared with
a run's here; it takes nested dicts of plain values.
"""

import copy
import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from data_pipeline.errors import BadInput

VERSION = 2  # that of experiments/common.py
FACTOR_OF_VERSION_1 = 4  # frames a latent, whatever the VAE had


class Added(NamedTuple):
  """A setting that a version added.

  Attributes:
    key: dotted name; it is filled in where its group is there.
    old: what configs of before meant.
    text: for people, what the setting is.
  """

  key: str
  old: Any
  text: str


ADDED: dict[int, tuple[Added, ...]] = {
  2: (
    Added("init_step", -1, "of init_from; -1: its newest"),
    Added("model.rotary_seconds", (0.5, 128.0), "rotary periods in time"),
    Added("diffusion.density.max_shift", 0.0, "bound of the shift; 0: none"),
    Added("optim.ema_width", 0.0, "relative width of the average; 0: by ema_decay"),
    Added("optim.more_ema_widths", (), "of further averages"),
  ),
}


class Replaced(NamedTuple):
  """A value that a version writes otherwise, and means the same.

  Attributes:
    key: dotted name.
    old, new: what configs of before wrote for it, and what is written now.
    text: for people, what it means.
  """

  key: str
  old: Any
  new: Any
  text: str


REPLACED: dict[int, tuple[Replaced, ...]] = {
  2: (Replaced("optim.clip_norm", None, 0.0, "0: no clipping, written None before"),),
}


class Changed(NamedTuple):
  """A setting by which a version computes otherwise, so that a resumed run does from there on.

  Attributes:
    key, value: dotted name, and the value that it is about.
    text: for people, what changed.
  """

  key: str
  value: Any
  text: str


CHANGED: dict[int, tuple[Changed, ...]] = {
  2: (
    Changed(
      "optim.name",
      "muon",
      "orthogonalises q, k, v, gate and value apart (they were one matrix), beside plain AdamW (it"
      " was Nesterov's)",
    ),
    Changed(
      "diffusion.weighting.name",
      "min_snr",
      "divides the weights by their expectation (it was by their sum within the step)",
    ),
    Changed(
      "optim.schedule", "wsd", "reaches its floor in the last step (it missed that by a step)"
    ),
  ),
}
OLD = {one.key: one.old for added in ADDED.values() for one in added}
_ABSENT = object()


def version_of(config: Mapping, where: str) -> int:
  """The version of a config's settings.

  Raises:
    BadInput: none, or one that this version of sora_jax does not know.
  """
  if "version" not in config:
    return 1
  version = config["version"]
  if type(version) is not int or version < 1:
    raise BadInput(f"{where}: version={version!r} is not a version. Set version={VERSION}.")
  if version > VERSION:
    raise BadInput(
      f"{where}: version={version} is above {VERSION}: a newer sora_jax wrote it. Use that one."
    )
  return version


def lacking(config: Mapping, where: str) -> list[Added]:
  """The settings that a config of an earlier version lacks, or writes otherwise.

  Raises:
    BadInput: as `version_of`.
  """
  later = range(version_of(config, where) + 1, VERSION + 1)
  absent = [one for version in later for one in ADDED[version] if _is_absent(config, one.key)]
  return absent + [
    Added(one.key, one.new, one.text)
    for version in later
    for one in REPLACED[version]
    if _value(config, one.key) == one.old
  ]


def changed(config: Mapping, where: str) -> list[str]:
  """What a run of an earlier version computes otherwise from here on, a line each."""
  later = range(version_of(config, where) + 1, VERSION + 1)
  flat = {(one.key, one.value): one.text for version in later for one in CHANGED[version]}
  return [
    f"{key}={value} {text}" for (key, value), text in flat.items() if _value(config, key) == value
  ]


def _value(config: Mapping, key: str) -> Any:
  """A setting by its dotted name; `_ABSENT` where it is absent."""
  found: Any = config
  for one in key.split("."):
    found = found[one] if isinstance(found, Mapping) and one in found else _ABSENT
  return found


def migrate(config: Mapping, where: str) -> tuple[dict, str]:
  """Fills in what a config of an earlier version lacks, and replaces what it writes otherwise.

  Args:
    config: nested dicts; it stays as it is.
    where: what it is of, for people.
  Returns:
    The config as of `VERSION`, and what `describe` says of it.
  Raises:
    BadInput: as `version_of`.
  """
  new, filled = copy.deepcopy(dict(config)), lacking(config, where)
  for one in filled:
    *groups, name = one.key.split(".")
    functools.reduce(dict.__getitem__, groups, new)[name] = one.old
  return new | {"version": VERSION}, describe(config, where, filled)


def check_time_factor(version: int, time_factor: int, where: str) -> None:
  """Refuses to go on with a model whose latents stood at wrong seconds.

  Args:
    version: of the settings that it was trained with.
    time_factor: of the VAE that made its latents.
    where: what it is, for people.
  Raises:
    BadInput: that version took the factor for another.
  """
  if version == 1 and time_factor != FACTOR_OF_VERSION_1:
    raise BadInput(
      f"{where} is of version 1, which took time_factor={FACTOR_OF_VERSION_1} for every VAE's, and "
      f"its VAE has {time_factor}: the model learnt wrong seconds. Train anew, or use that version."
    )


def describe(config: Mapping, where: str, filled: list[Added]) -> str:
  """One line that says what was filled in; "" when nothing was."""
  if not filled:
    return ""
  settings = ", ".join(f"{one.key}={show(one.old)} ({one.text})" for one in filled)
  return (
    f"{where} is of version {version_of(config, where)} of the settings (this is {VERSION}): means"
    f" what it did, with {settings}"
  )


def _is_absent(config: Mapping, key: str) -> bool:
  """Whether a setting is absent while its group is there; a VAE's `model` is another group."""
  *groups, name = key.split(".")
  group: Any = config
  for one in groups:
    group = group.get(one) if isinstance(group, Mapping) else None
  if not isinstance(group, Mapping) or (groups == ["model"] and group.get("name") != "dit"):
    return False
  return name not in group


def show(value) -> str:
  """A value as `--config.KEY=` takes it: tuples, also those that JSON made lists, no blanks."""
  if isinstance(value, (list, tuple)):
    return f"({','.join(map(show, value))}{',' * (len(value) == 1)})"
  return repr(value) if isinstance(value, str) and value == "" else str(value)


def as_json(config: Mapping) -> dict:
  """The config as a JSON file gives it back."""
  return json.loads(json.dumps(config))

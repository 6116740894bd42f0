"""What may change when a run resumes, and what may not."""

import fnmatch
import itertools
import json
import os
import platform
from importlib.metadata import version
from typing import Any

import jax

from data_pipeline.errors import BadInput
from sora_jax.train.migrations import VERSION, as_json, migrate, show, version_of
from sora_jax.train.migrations import changed as computes_otherwise

# Settings that change where or how often, never what is learnt from which data. The dataset may
# move (its fingerprint is compared); weights to start from are read by a run's first session alone.
MAY_CHANGE = (
  "mesh.*",
  "shard_over_context",
  "accumulate_steps",
  "total_steps",
  "every.*",
  "keep.*",
  "evaluate.*",
  "plan.*",
  "profile.*",
  "wait.*",
  "spike.*",
  "sample.*",
  "init_from",
  "init_step",
  "init_weights",
  "model.remat",
  "model.attention_backend",
  "data.path",
  "data.skip_steps",
  "data.threads",
  "data.prefetch",
)
# Settings that a config may lack, each of a group that the run's data or model may not have. All
# others are in any config that passed the checks of its command.
MAY_LACK = (
  "codec.*",
  "codec_text",
  "loss.terms.*",
  "plan.*",
  "world.*",
  "film.*",
  "curate.*",
  "encode.*",
)
# Settings that a refusal names; more would be another config altogether, but for what an upgrade
# changed: of a checkpoint of an earlier version all are named.
_SHOWN = 4
_OF = "resume: the checkpoint's config"


def environment() -> dict:
  """What bit-exact resume depends on, beside the config."""
  devices = jax.devices()
  return {
    "jax": jax.__version__,
    "jaxlib": version("jaxlib"),
    "optax": version("optax"),
    "python": platform.python_version(),
    "machine": platform.machine(),
    "device_kind": devices[0].device_kind,
    "devices": len(devices),
    "processes": jax.process_count(),
    "matmul_precision": str(jax.config.values["jax_default_matmul_precision"]),
    "threefry_partitionable": bool(jax.config.values["jax_threefry_partitionable"]),
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    "LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", ""),
  }


def warn_inexact(platform: str, flags: str) -> list[str]:
  """A warning where a resumed run may differ in its last bits, whatever is compared.

  On GPUs some of XLA's kernels add in no fixed order, and autotuning may choose others next time.

  Args:
    platform: of the devices, as `jax.default_backend()` says.
    flags: the environment's XLA_FLAGS.
  """
  words = {word.removesuffix("=true") for word in flags.split()}
  pinned = "--xla_gpu_autotune_level=0" in words
  exact = "--xla_gpu_deterministic_ops" in words or (
    pinned and "--xla_gpu_exclude_nondeterministic_ops" in words
  )
  if platform not in ("gpu", "cuda", "rocm") or exact:
    return []
  return [
    "resume will not be exact to the bit on this GPU. Set XLA_FLAGS='--xla_gpu_deterministic_ops="
    "true --xla_gpu_autotune_level=0' if it must be; training is then slower."
  ]


def run_facts(config: dict, *, dataset_fingerprint: str, plan_fingerprint: str) -> dict:
  """The facts of a run that each of its checkpoints keeps, as JSON gives them back.

  Args:
    config: the resolved config as nested dicts.
    dataset_fingerprint: of the dataset folder.
    plan_fingerprint: of the pack plan.
  """
  return json.loads(
    json.dumps(
      {
        "config": config,
        "environment": environment(),
        "dataset_fingerprint": dataset_fingerprint,
        "plan_fingerprint": plan_fingerprint,
      }
    )
  )


def flatten(config: dict, prefix: str = "") -> dict:
  """Nested dicts to `{"data.slots": 4096, ...}`; an empty dict stays as a value."""
  flat = {}
  for key, value in config.items():
    name = f"{prefix}{key}"
    flat |= flatten(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
  return flat


def changes(saved: dict, now: dict) -> dict[str, tuple]:
  """Flat names whose values differ -> (saved, now), "absent" where one side lacks the name."""
  old, new = flatten(saved), flatten(now)
  return {
    name: (old.get(name, "absent"), new.get(name, "absent"))
    for name in sorted(old.keys() | new.keys())
    if old.get(name, "absent") != new.get(name, "absent")
  }


def check_resume(saved: dict, now: dict) -> list[str]:
  """Compares a checkpoint's facts with those of the run that would continue it.

  Args:
    saved, now: of `run_facts`.
  Returns:
    Warnings, one line each, for changes that are allowed but not without effect.
  Raises:
    BadInput: a setting, the dataset or the pack plan changed, which may not.
  """
  changed, line = check_config(saved["config"], now["config"]), told(saved["config"])
  for key, what in (("dataset_fingerprint", "dataset"), ("plan_fingerprint", "pack plan")):
    if saved[key] != now[key]:
      raise BadInput(
        f"resume: {key}={now[key]} is not the checkpoint's {saved[key]} (another {what})."
        f" Use a new --workdir, or the {what} that the run began with."
      )
  ignored = [
    f"resume: {name}={show(value)} of the checkpoint is no setting, and nothing read it: left out"
    for name, value in no_settings(saved["config"], now["config"]).items()
  ]
  warnings = ignored + _schedule_warning(changed, now["config"]) + _environment_warning(saved, now)
  now_on = [f"resume: {text}" for text in computes_otherwise(saved["config"], "the checkpoint")]
  return [f"resume: {line}"] * bool(line) + now_on + warnings


def told(saved: dict) -> str:
  """A line on a checkpoint's config of an earlier version, taken as it was meant; "" for others."""
  return migrate(saved, "the checkpoint's config")[1]


def check_config(saved: dict, now: dict) -> dict[str, tuple]:
  """Compares the configs alone, before anything is built from the new one.

  Those of earlier versions are compared by what they meant (see `migrations`).

  Returns:
    The changes, all of them allowed: flat name -> (saved, now).
  Raises:
    BadInput: a setting changed that may not.
  """
  is_older, unread = version_of(saved, _OF) < VERSION, no_settings(saved, now)
  saved, now = (as_json(migrate(config, "resume: config")[0]) for config in (saved, now))
  changed = changes(saved, now)
  refused = {
    name: pair
    for name, pair in changed.items()
    if not _is_one(name, MAY_CHANGE) and name not in unread
  }
  if refused:
    shown = dict(itertools.islice(refused.items(), len(refused) if is_older else _SHOWN))
    pairs = ((key, show(before), show(after)) for key, (before, after) in shown.items())
    listed = "; ".join(f"{key}: {a} in the checkpoint, {b} now" for key, a, b in pairs)
    if len(refused) > len(shown):
      listed += f"; and {len(refused) - len(shown)} more settings"
    settings = ", ".join(f"{name}={show(a)}" for name, (a, _) in shown.items() if a != "absent")
    back = f", or set {settings}" if settings and shown == refused else ""
    raise BadInput(f"resume: {listed}. Use a new --workdir{back}.")
  return {name: pair for name, pair in changed.items() if name not in unread}


def no_settings(saved: dict, now: dict) -> dict[str, Any]:
  """What a checkpoint of an earlier version has beside its settings, which nothing ever read.

  Versions before the settings were checked let it pass. A config that was checked has no room for
  it, and has every setting of its model.

  Args:
    saved: config of the checkpoint.
    now: that of the run which would continue it, checked.
  Returns:
    Flat name -> value.
  """
  model, new = (flatten(config).get("model.name") for config in (saved, now))
  if version_of(saved, _OF) >= VERSION or model != new:
    return {}
  names = flatten(saved).keys() - flatten(now).keys()
  return {n: flatten(saved)[n] for n in sorted(names) if not _is_one(n, MAY_LACK)}


def _is_one(name: str, patterns: tuple[str, ...]) -> bool:
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _schedule_warning(changed: dict, config: dict) -> list[str]:
  schedule = flatten(config).get("optim.schedule")
  if "total_steps" not in changed or schedule in (None, "constant"):
    return []
  old, new = changed["total_steps"]
  return [
    f"resume: total_steps={new} was {old}, so the learning rate of the {schedule} schedule differs"
    " from here on."
  ]


def _environment_warning(saved: dict, now: dict) -> list[str]:
  changed = changes(saved["environment"], now["environment"])
  if not changed:
    return []
  listed = "; ".join(f"{name}: {a!r} before, {b!r} now" for name, (a, b) in changed.items())
  return [f"resume: {listed}. The run continues, but not bit for bit as before."]

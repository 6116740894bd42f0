"""`sora inspect --workdir DIR`: what the last checkpoint of a run holds."""

import jax

from data_pipeline.errors import BadInput
from sora_jax.commands.progress import say
from sora_jax.train.averages import saved_averages
from sora_jax.train.checkpoint import STORED, Checkpoints
from sora_jax.train.goodput import goodput
from sora_jax.train.hashes import state_hashes, tree_sha256
from sora_jax.train.migrations import migrate
from sora_jax.train.workdir import find_checkpoints, open_run_folder


def describe_run(workdir, step: int | None = None) -> dict:
  """Reads a checkpoint on any machine, the newest by default: needs neither dataset nor mesh.

  Returns:
    `step`, `tokens_seen`, `clips_seen`, `cursor`, `params_sha256`, `ema_sha256`, `opt_sha256`,
    `averages_sha256` of further averages by width or decay, `average_widths` of all by name (the
    share of the steps done that they remember), `parameters` (how many numbers), the facts of the
    run (`config`, `environment`, fingerprints) and `goodput`.
  Raises:
    BadInput: no checkpoint there, or a damaged one.
  """
  folder = find_checkpoints(opened := open_run_folder(str(workdir)))
  if folder is None:
    raise BadInput(
      f"inspect: --workdir={workdir} holds no checkpoints folder. Give a workdir of sora train."
    )
  with Checkpoints(folder, read_only=True) as checkpoints:
    saved = checkpoints.all_steps()
    if not saved:
      raise BadInput(
        f"inspect: --workdir={workdir} holds no finished checkpoint. Let sora train save one first."
      )
    found = checkpoints.look(step, lambda number: _read(checkpoints, number))
    if found is None:
      raise BadInput(f"inspect: --step={step} is not saved in {folder}, which has {saved}.")
    progress, run, further, state = found
  meant, line = migrate(run["config"], f"inspect: the config of --workdir={workdir}")
  if line:
    say(line)
  at = int(state["step"])
  return {
    "step": at,
    **progress._asdict(),
    **state_hashes(state),
    "average_widths": {
      name: average.measure(at) if at else 0.0
      for name, average in saved_averages(meant).items()
    },
    "averages_sha256": {part.split("/")[1]: tree_sha256(state[part]) for part in further},
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(state["params"])),
    **run,
    "goodput": goodput(opened),
  }


def _read(checkpoints: Checkpoints, step: int) -> tuple:
  progress, run = checkpoints.describe(step)
  further = [f"averages/{decay}" for decay in checkpoints.averages(step)]
  return progress, run, further, checkpoints.read(step, parts=(*STORED, *further))


def print_goodput(found: dict) -> None:
  """Where the wall time of a run went, for people."""
  stops = ", ".join(f"{count} x {reason}" for reason, count in found["stops"].items())
  wall, redone = found["wall_seconds"], found["redone_steps"]
  say(f"wall time      {wall:,.0f} s, starts: {found['starts']} ({stops}), steps redone: {redone}")
  for name, share in found["shares"].items():
    say(f"  {name:12} {share:7.2%} {share * wall:12,.1f} s")

"""Plans every recipe on every pod that it names, and the peer's case: the tables of docs/pods.md.

  python -m experiments.benchmarks.pods --out=runs/pods.md
  python -m experiments.benchmarks.pods --recipes=sora_14b --stages=high

Each plan is a `sora plan` of its own (a minute or so; what did not change is kept). Pods whose
compiler is not installed (extra [plan] for TPUs, [cuda] for GPUs) are named as not planned. Exit 2
when a recipe does not fit.
"""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

from experiments.recipe import STAGES

RECIPES = ("sora_300m", "sora_1b", "sora_5b", "sora_14b")
HEAD = "| recipe | pod | mesh | GiB of | step | bound by | MFU | wire GiB | days | chip-hours |"
# The peer's case on its pods: topology, rows, settings; docs/pods.md says what these are.
EXACT = ("--config.model.param_dtype=float32", "--config.optim.momentum_dtype=float32")
EXACT += ("--config.optim.variance_dtype=float32",)
PEER = (
  ("v5p:2x2x1", 1, "fsdp=1,context=4", ("--config.shard_over_context=True",)),
  ("v5p:4x4x4", 16, "fsdp=16,context=4", ()),
  ("v5p:4x4x4", 16, "fsdp=16,context=4", ("--config.model.remat=attention",)),
  ("v5p:4x4x4", 16, "fsdp=16,context=4", ("--config.model.remat=offload",)),
  ("v5p:4x4x4", 16, "fsdp=16,context=4", EXACT),
  ("v5p:4x4x4", 16, "fsdp=16,context=4", (*EXACT, "--config.optim.ema_width=0.05")),
  ("v6e:16x16", 64, "fsdp=64,context=4", ()),
)


def plan(config: str, topology: str, *options: str) -> dict:
  """The JSON of `sora plan`, or {"error": its complaint}."""
  words = [sys.executable, "-m", "sora_jax", "plan", f"--config={config}", "--json"]
  done = subprocess.run(
    [*words, f"--topology={topology}", *options], capture_output=True, text=True, check=False
  )
  lines = done.stdout.strip().splitlines()
  if done.returncode in (0, 2) and lines:
    return json.loads(lines[-1])
  said = done.stderr.strip().splitlines()
  return {"error": said[-1] if said else f"exit {done.returncode}"}


def mesh_text(found: dict) -> str:
  return " ".join(f"{axis}={size}" for axis, size in found["mesh"].items() if size > 1) or "-"


def row(name: str, pod: str, found: dict) -> str:
  """A line of the table."""
  if "error" in found:
    return f"| {name} | {pod} | not planned: {found['error']} |||||||||"
  need, has = found["hbm_gib_per_device"], found["hbm_gib_available"]
  asked = "?" if need is None else f"{need:.1f}"
  room = f"{asked} of {has:.1f}{'' if found['fits'] else ' **no**'}"
  if "step_seconds" not in found:
    return f"| {name} | {pod} | {mesh_text(found)} | {room} | refused ||||||"
  mfu = "-" if found["mfu"] is None else f"{found['mfu']:.0%}"
  return (
    f"| {name} | {pod} | {mesh_text(found)} | {room} | {found['step_seconds']:.1f} s |"
    f" {found['bottleneck']} | {mfu} | {found['collective_bytes']['wire_gib']:.0f} |"
    f" {found['days']:.1f} | {found['chip_hours']:,.0f} |"
  )


def peer_row(topology: str, options: tuple, found: dict) -> str:
  changed = " ".join(o.removeprefix("--config.") for o in options) or "as it is"
  if "error" in found or "step_seconds" not in found:
    return f"| {topology} | {changed} | {found.get('error') or found.get('refused')} |||||"
  wire = found["collective_bytes"]
  kinds = ", ".join(f"{k} {v}" for k, v in wire["wire_gib_by_kind_and_axis"].items() if v >= 0.1)
  return (
    f"| {topology} | {changed} | {found['hbm_gib_per_device']:.1f} | {wire['wire_gib']:.0f} |"
    f" {found['step_seconds']:.1f} s | {found['mfu'] or 0:.1%} | {kinds} |"
  )


def main(argv=None) -> int:
  p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  p.add_argument("--recipes", default=",".join(RECIPES))
  p.add_argument("--stages", default=",".join(STAGES))
  p.add_argument("--no-peer", action="store_true", help="leave out the peer's case")
  p.add_argument("--out", default="", help="file for the tables (default: stdout alone)")
  args = p.parse_args(argv)
  lines, misfits = [HEAD, "|" + "---|" * 10], 0

  def tell(line: str) -> None:
    lines.append(line)
    print(line, flush=True)

  for name in args.recipes.split(","):
    pods = importlib.import_module(f"experiments.{name}").PODS
    for stage in args.stages.split(","):
      for pod in (pod for pod in pods if stage in pods[pod]):
        config = f"experiments/{name}.py:{stage},{pod}"
        found = plan(config, pod.replace("-", ":"))
        misfits += not found.get("fits", "not installed" in found.get("error", ""))
        tell(row(f"{name}:{stage}", pod, found))
  if not args.no_peer:
    tell("\n| pod | `:peer` with | GiB | wire GiB | step | MFU | wire by kind and axis |")
    tell("|---|---|---|---|---|---|---|")
    for topology, rows, mesh, options in PEER:
      words = (f"--config.data.rows={rows}", f"--mesh={mesh}", *options)
      tell(peer_row(topology, options, plan("experiments/sora_14b.py:peer", topology, *words)))
  if args.out:
    Path(args.out).write_text("\n".join(lines) + "\n", encoding="utf-8")
  return 2 if misfits else 0


if __name__ == "__main__":
  sys.exit(main())

"""How full and how even the pack plan is, and how long it takes: on heavy-tailed mixtures.

  python -m experiments.benchmarks.packing            tables on stderr
  python -m experiments.benchmarks.packing --json     the last line is JSON

`fill` is the share of slots that hold a token, empty rows of unfinished steps included; `best` the
most that any packing could reach for these lengths. `imbalance` is that of 64 data-parallel ranks:
cost of the slowest over the mean, minus 1, averaged over the steps. Plans of 10 and 100 million
clips are made in processes of their own, so that their peak memory is their own; one core.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipeline.packing import PackSettings, Plan, check_fit, cost_of, plan_window
from data_pipeline.stream import Mixture, Pool
from experiments.benchmarks.mixtures import MIXTURES, make_columns

RANKS = 64


def make_settings(args) -> PackSettings:
  return PackSettings(
    slots=args.slots,
    caption_slots=args.slots // 2,
    segments=256,
    rows=args.rows,
    patch=(1, 2, 2),
    caption_dropout=0.1,
    cost=cost_of(args.width),
    window_clips=args.window_clips,
  )


def best_fill(plan: Plan) -> float:
  """The bound L2 of Martello & Toth 1990 (Knapsack Problems, sect. 8.3.2) on the bins, as fill."""
  slots, rows = plan.settings.slots, plan.settings.rows
  lengths = np.sort(plan.patches + plan.caption_tokens)
  total = np.concatenate([[0], np.cumsum(lengths)])
  half = np.searchsorted(lengths, slots / 2, "right")
  bound = -(-len(lengths) // plan.settings.segments)
  for least in np.unique(lengths[:half])[:2000].tolist() or [0]:
    first = np.searchsorted(lengths, least)
    alone = np.searchsorted(lengths, slots - least, "right")  # from here on nothing fits beside
    room = (alone - half) * slots - (total[alone] - total[half])
    more = max(0, -(-int(total[half] - total[first] - room) // slots))
    bound = max(bound, len(lengths) - half + more)
  bins = -(-bound // rows) * rows
  return int(total[-1]) / (bins * slots)


def mix_spread(plan: Plan) -> dict:
  """How unlike the steps are: share of their tokens in the longer half (by tokens) of the segments.

  `steps` is its standard deviation over the steps as planned, `random` that of as many bins thrown
  together at random, `drift` the correlation of the share with the place in the window.
  """
  lengths = plan.patches + plan.caption_tokens
  order = np.sort(lengths)
  middle = order[np.searchsorted(np.cumsum(order), order.sum() / 2)]
  bin_of = np.repeat(np.arange(len(plan.offsets) - 1), np.diff(plan.offsets))
  both = np.bincount(bin_of, lengths, len(plan.offsets) - 1)
  long = np.bincount(bin_of, lengths * (lengths >= middle), len(plan.offsets) - 1)
  shuffled = np.random.default_rng(0).permutation(len(both))
  share = {}
  for name, bins in (("steps", slice(None)), ("random", shuffled)):
    parts = [v[bins].reshape(plan.steps, -1).sum(axis=1) for v in (long, both)]
    share[name] = parts[0] / np.maximum(parts[1], 1)
  drift = np.corrcoef(np.arange(plan.steps), share["steps"])[0, 1] if plan.steps > 2 else 0.0
  spread = {name: float(value.std()) for name, value in share.items()}
  return spread | {"drift": float(np.nan_to_num(drift))}


def measure_mixture(name: str, args) -> dict:
  columns = make_columns(name, args.window_clips)
  pool = Pool(columns=columns, rows=range(args.window_clips))
  begin = time.perf_counter()
  plan = plan_window(Mixture([pool], seed=0), make_settings(args), epoch=0, window=0)
  return {
    "name": name,
    "fill": plan.fill,
    "best": best_fill(plan),
    "imbalance": plan.imbalance(args.ranks),
    "steps": plan.steps,
    "tokens_per_clip": plan.tokens / len(plan.record),
    "seconds": time.perf_counter() - begin,
    "mix": mix_spread(plan),
  }


def peak_gib() -> float:
  """Peak memory of this process in GiB, the pages of the mapped index that it read included."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def plan_many(args) -> dict:
  """Plans of many windows of one dataset, in this process: seconds and peak memory."""
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
  with tempfile.TemporaryDirectory() as folder:
    made = make_columns(args.mixture, args.clips, folder=Path(folder))
    del made
    columns = {path.stem: np.load(path, mmap_mode="r") for path in Path(folder).glob("*.npy")}
    settings = make_settings(args)
    begin = time.perf_counter()
    mixture = Mixture([Pool(columns=columns, rows=range(args.clips))], seed=0)
    check_fit(mixture.pools[0], settings)  # as the loader does before it plans
    checked = time.perf_counter() - begin
    windows = mixture.windows(settings.window_clips)
    seconds, segments = [], 0
    for window in range(min(windows, args.windows or windows)):
      plan = plan_window(mixture, settings, epoch=0, window=window)
      segments += len(plan.bin(0).record) and len(plan.record)
      seconds.append(time.perf_counter() - begin)
    return {
      "clips": segments,
      "windows": windows,
      "check_seconds": checked,
      "first_bin_seconds": seconds[0],
      "seconds": seconds[-1],
      "peak_gib": peak_gib(),
    }


def plan_apart(args, clips: int, windows: int) -> dict:
  """`plan_many` in a process of its own."""
  command = [sys.executable, "-m", "experiments.benchmarks.packing", "--clips", str(clips)]
  for name in ("slots", "rows", "width", "mixture"):
    command += [f"--{name}", str(getattr(args, name))]
  command += ["--windows", str(windows), "--window-clips", str(args.window_clips)]
  done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
  return json.loads(done.stdout.splitlines()[-1])


def parse(argv=None):
  p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  p.add_argument("--json", action="store_true", help="only the JSON line, no tables")
  p.add_argument("--slots", type=int, default=32_768, help="token slots of a row")
  p.add_argument("--rows", type=int, default=64, help="rows of a step")
  p.add_argument("--ranks", type=int, default=RANKS, help="data-parallel ranks")
  p.add_argument("--width", type=int, default=768, help="of the model, for the cost of a token")
  p.add_argument("--window-clips", type=int, default=2**20)
  p.add_argument("--mixture", choices=MIXTURES, default="web_video", help="of the large plans")
  p.add_argument("--clips", type=int, default=0, help="only plan so many clips, in this process")
  p.add_argument("--windows", type=int, default=0, help="with --clips: the first windows alone")
  return p.parse_args(argv)


def show(result: dict) -> None:
  console = Console(stderr=True)
  table = Table("mixture", "fill", "best", "imbalance", "steps", "mix: steps/random", "seconds")
  for one in result["mixtures"]:
    table.add_row(
      one["name"],
      f"{100 * one['fill']:.2f} %",
      f"{100 * one['best']:.2f} %",
      f"{100 * one['imbalance']:.3f} %",
      f"{one['steps']:,}",
      f"{one['mix']['steps']:.3f} / {one['mix']['random']:.3f}",
      f"{one['seconds']:.2f}",
    )
  console.print(table)
  console.print(
    f"10 M clips: {result['plan_10m_seconds']:.1f} s, {result['plan_10m_peak_gib']:.2f} GiB; "
    f"100 M: first bin after {result['plan_100m_first_bin_seconds']:.1f} s "
    f"({result['plan_100m_check_seconds']:.1f} s for the check of all lengths), "
    f"{result['plan_100m_window_seconds']:.1f} s a window, {result['plan_100m_peak_gib']:.2f} GiB"
  )


def main(argv=None) -> None:
  args = parse(argv)
  if args.clips:
    print(json.dumps(plan_many(args)))
    return
  ten, hundred = plan_apart(args, 10_000_000, 0), plan_apart(args, 100_000_000, 3)
  result = {
    "mixtures": [measure_mixture(name, args) for name in MIXTURES],
    "plan_10m_seconds": ten["seconds"],
    "plan_10m_peak_gib": ten["peak_gib"],
    "plan_100m_first_bin_seconds": hundred["first_bin_seconds"],
    "plan_100m_check_seconds": hundred["check_seconds"],
    "plan_100m_window_seconds": (hundred["seconds"] - hundred["check_seconds"]) / 3,
    "plan_100m_peak_gib": hundred["peak_gib"],
    "settings": {name: getattr(args, name) for name in ("slots", "rows", "ranks", "width")},
  }
  if not args.json:
    show(result)
  print(json.dumps(result))


if __name__ == "__main__":
  main()

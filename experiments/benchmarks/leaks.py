"""Does reading for long cost memory? Resident memory of this process over many thousand clips.

  python -m experiments.benchmarks.leaks --clips 100000          a table on stderr
  python -m experiments.benchmarks.leaks --clips 100000 --json   the last line is JSON

Packed batches are read from a folder of latents made for the occasion (or --data), and clips from
one of encoded video. `growth_mib` is how much more is held in the last tenth of the run than in the
second: what starting costs is not counted.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.dataset import Dataset
from experiments.benchmarks.loader import make_clips, make_latents, open_clips, open_ours

PARTS = 10


def resident_mib() -> float:
  """Resident memory of this process that is no file's, in MiB."""
  lines = Path("/proc/self/status").read_text().splitlines()
  (value,) = (line.split()[1] for line in lines if line.startswith("RssAnon"))
  return int(value) / 1024


def watch(batches: Iterator[dict], count, clips: int) -> dict:
  """Reads so many clips and looks at the memory on the way.

  Args:
    batches: the loader.
    count: batch -> its clips.
    clips: to read.
  """
  seen, memory = 0, []
  while seen < clips:
    seen += count(next(batches))
    memory.append((seen, resident_mib()))
    if len(memory) % 200 == 0:
      print(f"leaks: {seen:,} clips, {memory[-1][1]:.0f} MiB", file=sys.stderr)
  tenths = [[m for n, m in memory if (n - 1) * PARTS // seen == part] for part in range(PARTS)]
  medians = [statistics.median(part) for part in tenths if part]
  return {
    "clips": seen,
    "mib": [round(value, 1) for value in medians],
    "growth_mib": round(medians[-1] - medians[1], 1),
    "peak_mib": round(max(m for _, m in memory), 1),
  }


def main(argv=None) -> None:
  p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  p.add_argument("--json", action="store_true", help="only the JSON line")
  p.add_argument("--clips", type=int, default=100_000, help="packed clips to read")
  p.add_argument("--decoded-clips", type=int, default=10_000, help="encoded clips to read")
  p.add_argument("--workers", type=int, default=2)
  p.add_argument("--prefetch", type=int, default=4)
  args = p.parse_args(argv)
  result = {}
  with tempfile.TemporaryDirectory() as folder:
    make_latents(Path(folder) / "latents", 2000)
    batches = open_ours(Dataset.open(Path(folder) / "latents", kind="latent"), args)
    count = lambda batch: int(batch["segment"].max(axis=1).sum())  # noqa: E731
    result["latents"] = watch(batches, count, args.clips)
    batches.close()
    make_clips(Path(folder) / "clips", 200)
    batches = open_clips(Dataset.open(Path(folder) / "clips", kind="clip"), args)
    result["encoded_clips"] = watch(batches, lambda batch: len(batch["video"]), args.decoded_clips)
    batches.close()
  if not args.json:
    for name, one in result.items():
      print(f"{name}: {one['clips']:,} clips, MiB by tenths {one['mib']}", file=sys.stderr)
  print(json.dumps(result))


if __name__ == "__main__":
  main()

"""How fast batches come out of the loaders, beside a torch DataLoader doing the same job.

  python -m experiments.benchmarks.loader             a table on stderr
  python -m experiments.benchmarks.loader --json      the last line is JSON

`latents`: packed batches of latent records. `clips`: windows of encoded video, for a VAE. Both
sides read the same records of the same folder (made for the occasion), in the same bins or windows,
with the same number of workers: our threads, torch's processes. They take turns of --seconds each,
--turns times; rates are medians over the turns. Without torch (`pip install 'sora_jax[bench]'`) its
column is left out, and said so.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipeline.clips import clip_batches
from data_pipeline.dataset import Dataset
from data_pipeline.loader import latent_batches
from data_pipeline.packing import cost_of
from data_pipeline.records import ClipRecord, LatentRecord
from data_pipeline.video_writer import encode_video
from data_pipeline.writer import DatasetWriter
from experiments.benchmarks.mixtures import MIXTURES

SETTINGS = dict(
  split="train",
  seed=0,
  slots=16_384,
  caption_slots=4_096,
  segments=128,
  rows=8,
  patch=(1, 2, 2),
  caption_dropout=0.1,
  given_first_frame=0.0,
  cost=cost_of(768),
)
WINDOWS = dict(rows=8, frames=17, height=128, width=128)
META = dict(time_factor=4)  # of the latents, which no VAE made
CHANNELS, STATE_WIDTH, MOST_TOKENS = 16, 384, 8_000


def make_latents(folder: Path, clips: int) -> None:
  """Latents of the mixture `web_video`, at most MOST_TOKENS each, with MiniLM-sized states."""
  rng = np.random.default_rng(0)
  f, h, w = MIXTURES["web_video"](rng, clips)
  f = np.minimum(f, np.maximum(1, 4 * MOST_TOKENS // (h * w)))
  words = np.clip(rng.lognormal(np.log(60), 0.6, clips), 5, 250).astype(int)
  numbers = rng.standard_normal(4 * MOST_TOKENS * CHANNELS).astype(ml_dtypes.bfloat16)
  states = rng.standard_normal((250, STATE_WIDTH)).astype(ml_dtypes.bfloat16)
  with DatasetWriter(folder, "latent", name="bench", shard_bytes=2**28, meta=META) as out:
    for i in range(clips):
      shape = (int(f[i]), int(h[i]), int(w[i]), CHANNELS)
      start = int(rng.integers(0, numbers.size - np.prod(shape) + 1))
      out.add(
        LatentRecord(
          id=str(i),
          source=str(i),
          licence="CC0-1.0",
          split="train",
          start_frame=0,
          frames=4 * shape[0] - 3,
          height=8 * shape[1],
          width=8 * shape[2],
          crop=(0, 0, 0, 0),
          fps=16.0,
          latent=numbers[start : start + np.prod(shape)].reshape(shape),
          captions=("a caption",),
          text_ids={"words": (np.arange(1, 1 + words[i], dtype=np.int32),)},
          text_states={"words": (states[: words[i]],)},
          attributes="",
        )
      )


def make_clips(folder: Path, clips: int) -> None:
  """H.264 clips of 320x192 pixels, 33 to 97 frames of a moving texture: 1 to 4 s at 24 fps."""
  rng = np.random.default_rng(0)
  texture = np.kron(rng.integers(0, 256, (64, 96, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
  with DatasetWriter(folder, "clip", name="bench", shard_bytes=2**26, meta={}) as out:
    for i in range(clips):
      count = int(rng.integers(33, 98))
      (y, x), (dy, dx) = rng.integers(0, 100, 2), rng.integers(0, 3, 2)
      frames = (texture[y + dy * t // 2 :, x + dx * t // 2 :][:192, :320] for t in range(count))
      video = encode_video(frames, width=320, height=192, fps=24, codec="h264", quality=20)
      out.add(
        ClipRecord(
          id=str(i),
          source=str(i),
          licence="CC0-1.0",
          split="train",
          start_frame=0,
          fps=24.0,
          video=video,
          captions=(),
          attributes="",
          truth=b"",
        )
      )


def open_clips(dataset: Dataset, args):
  return clip_batches(
    dataset, **WINDOWS, seed=0, split="train", threads=args.workers, prefetch=args.prefetch
  )


def open_torch_clips(dataset: Dataset, args) -> Iterator[dict]:
  """Batches of the same windows in the same order, as our loader draws them."""
  from experiments.benchmarks.torch_clips import torch_clips

  ours = open_clips(dataset, args)
  ours.close()
  return iter(
    torch_clips(
      str(dataset.path), ours.choose, **WINDOWS, workers=args.workers, prefetch=args.prefetch
    )
  )


def open_ours(dataset: Dataset, args):
  return latent_batches(
    [dataset], **SETTINGS, threads=args.workers, prefetch=args.prefetch, window_clips=2**20
  )


def open_torch(dataset: Dataset, args) -> Iterator[dict]:
  """Batches of epoch after epoch of the same plans."""
  from experiments.benchmarks.torch_job import torch_batches

  ours = open_ours(dataset, args)
  ours.close()
  epoch = 0
  while True:
    plan = ours.plan(epoch)
    yield from torch_batches(str(dataset.path), plan, workers=args.workers, prefetch=args.prefetch)
    epoch += 1


JOBS = {"latents": (open_ours, open_torch), "clips": (open_clips, open_torch_clips)}


def check_same(dataset: Dataset, args, openers: tuple, steps: int = 3) -> None:
  """The two jobs are the same job: what torch makes of a step is what we make of it."""
  ours, others = (opener(dataset, args) for opener in openers)
  for _ in range(steps):
    mine, theirs = next(ours), next(others)
    for key, value in theirs.items():
      apart = np.abs(mine[key].astype(np.float32) - value.float().numpy()).mean()
      # Grey levels: PyAV's plain conversion takes BT.709 for BT.601. Other windows are 80 apart.
      if apart > (16 if key == "video" else 1e-6):
        raise SystemExit(f"loader: the torch job differs from ours in {key} by {apart:.3g}.")
  close(ours)
  close(others)


def close(batches) -> None:
  """Ends the workers; those of a torch iterator go with it."""
  getattr(batches, "close", lambda: None)()


def measure(batches: Iterator[dict], seconds: float) -> dict:
  """Rates over so many seconds, after two batches that start the workers."""
  for _ in range(2):
    next(batches)
  begin = time.perf_counter()
  tokens = clips = bins = size = 0
  while (spent := time.perf_counter() - begin) < seconds:
    batch = next(batches)
    size += sum(value.nbytes for value in batch.values())
    if "segment" in batch:
      segment = np.asarray(batch["segment"])
      tokens += int((segment > 0).sum())
      clips += int(segment.max(axis=1).sum())
      bins += len(segment)
    else:
      clips += len(batch["video"])
  rates = dict(clips=clips, bins=bins, tokens=tokens, mb=size / 1e6)
  return {f"{name}_per_second": value / spent for name, value in rates.items() if value}


def compare(dataset: Dataset, args, openers: tuple) -> dict:
  """Medians of each side's rates over turns taken in alternation, and the ratio with its spread."""
  turns: dict[str, list[dict]] = {"ours": []}
  if args.torch:
    check_same(dataset, args, openers)
    turns["torch"] = []
  for _ in range(args.turns):
    for side, done in turns.items():
      batches = openers[side == "torch"](dataset, args)
      done.append(measure(batches, args.seconds))
      close(batches)
      del batches
  result: dict = {
    side: {name: statistics.median(turn[name] for turn in done) for name in done[0]}
    for side, done in turns.items()
  }
  if args.torch:
    pairs = zip(turns["ours"], turns["torch"], strict=True)
    ratios = sorted(a["clips_per_second"] / b["clips_per_second"] for a, b in pairs)
    result["ratio"] = statistics.median(ratios)
    result["ratios"] = [round(ratio, 2) for ratio in ratios]
  return result


def has_torch() -> bool:
  try:
    import torch  # noqa: F401
  except ImportError:
    print("loader: torch is not installed, its column is left out.", file=sys.stderr)
    return False
  return True


def parse(argv=None):
  p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  p.add_argument("--json", action="store_true", help="only the JSON line, no table")
  p.add_argument("--data", help="latent dataset to read instead of one made for the occasion")
  p.add_argument("--clips", type=int, default=3000, help="latents made (0.4 MB each)")
  p.add_argument("--videos", type=int, default=150, help="encoded clips made")
  p.add_argument("--workers", type=int, default=2, help="threads of ours, processes of torch")
  p.add_argument("--prefetch", type=int, default=4, help="batches kept ready")
  p.add_argument("--seconds", type=float, default=8.0, help="of a turn")
  p.add_argument("--turns", type=int, default=3)
  args = p.parse_args(argv)
  args.torch = has_torch()
  return args


def show(what: str, result: dict) -> None:
  table = Table(what, *(name.replace("_per_second", "/s") for name in result["ours"]))
  for side in ("ours", "torch"):
    if side in result:
      table.add_row(side, *(f"{value:,.0f}" for value in result[side].values()))
  console = Console(stderr=True)
  console.print(table)
  if "ratio" in result:
    console.print(f"ours / torch: {result['ratio']:.2f} (turns: {result['ratios']})")


def main(argv=None) -> None:
  args = parse(argv)
  with tempfile.TemporaryDirectory() as folder:
    if not args.data:
      make_latents(Path(folder) / "latents", args.clips)
    make_clips(Path(folder) / "clips", args.videos)
    latents = Dataset.open(args.data or Path(folder) / "latents", kind="latent")
    clips = Dataset.open(Path(folder) / "clips", kind="clip")
    result = {
      "latents": compare(latents, args, JOBS["latents"]),
      "clips": compare(clips, args, JOBS["clips"]),
      "workers": args.workers,
      "rows": SETTINGS["rows"],
    }
  if not args.json:
    for what in JOBS:
      show(what, result[what])
  print(json.dumps(result))


if __name__ == "__main__":
  main()

"""`sora eval`: scores a run. Suite `adherence`: do samples show what their captions say?"""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.records import ClipRecord
from sora_jax.commands.options import make_folder, make_parser
from sora_jax.commands.progress import say, track
from sora_jax.commands.run import open_run
from sora_jax.commands.sample import choose_settings
from sora_jax.evals.adherence import judge_all, merge, score
from sora_jax.generate.media import read_mp4, write_mp4
from sora_jax.generate.pipeline import Request

CRF = 12
GROUPS = {
  "trained": "held_out",
  "held_out": "held_out_combination",
}  # group of samples -> split of captions


def parser():
  p = make_parser(
    "eval",
    "Scores a run. adherence: samples captions of unseen clips and judges the decoded files.",
    "sora eval --workdir=runs/demo/dit --suite=adherence --data=runs/demo/clips --samples=96",
  )
  p.add_argument("--workdir", required=True, help="run of a DiT")
  p.add_argument("--suite", required=True, choices=["adherence"], help="what to measure")
  p.add_argument(
    "--data", required=True, help="clip records of a generated world: captions and truth"
  )
  p.add_argument("--samples", type=int, default=96, help="of each group (default 96)")
  p.add_argument("--out", help="folder for videos and scores; default: WORKDIR/eval/SUITE-STEP")
  p.add_argument("--step", type=int, help="checkpoint; default: the newest")
  p.add_argument("--weights", default="ema", help="ema (default) or params")
  for name, kind in (("steps", int), ("guidance", float), ("solver", str), ("shift", float)):
    p.add_argument(f"--{name}", type=kind, help="of the sampler; default: config.sample")
  p.add_argument("--seed", type=int, default=0)
  p.set_defaults(size=None, seconds=None, fps=None)
  return p


def run(args) -> dict:
  opened = open_run(args.workdir, step=args.step, weights=args.weights)
  out = Path(args.out or Path(args.workdir) / "eval" / f"{args.suite}-{opened.step}")
  make_folder("--out", out)
  result = measure_adherence(opened, Dataset.open(args.data, kind="clip"), args, out)
  if not args.json:
    for name, facts in result["adherence"].items():
      low, high = facts["interval"]
      say(
        f"{name:10} {facts['score']:.3f} [{low:.3f}, {high:.3f}]  "
        f"held out {facts['held_out']:.3f}  chance {facts['chance']:.3f}  "
        f"ceiling {facts['ceiling']:.3f}  p {facts['p_value']:.1e}"
      )
  return result


def measure_adherence(opened, clips: Dataset, args, out: Path) -> dict:
  """Samples, writes, decodes and judges; also judges the real clips of the same captions.

  Returns:
    `adherence` (see `evals.adherence.merge`), `samples` (one a video: file, caption, group, judged)
    and what was asked of the sampler. The same is written to `OUT/scores.json`.
  """
  size, settings = choose_settings(args, opened.config.sample)
  chosen = {group: choose_clips(clips, split, args.samples) for group, split in GROUPS.items()}
  first = chosen["trained"][0].video
  size |= dict(seconds=len(first) / size["fps"], width=first.shape[2], height=first.shape[1])
  scores, samples = {}, []
  for number, (group, records) in enumerate(chosen.items()):
    folder = out / group
    folder.mkdir(parents=True, exist_ok=True)
    requests = [Request(caption_of(r, i), "", number * 2**20 + i) for i, r in enumerate(records)]
    videos = opened.pipeline(requests, **size, settings=settings, rows=opened.config.sample.rows)
    files = [folder / f"{i:04d}.mp4" for i in range(len(records))]
    for path, video in zip(files, track(videos, f"sample {group}", len(files)), strict=True):
      write_mp4(path, video, size["fps"], crf=CRF)
    attributes = [json.loads(record.attributes) for record in records]
    verdicts = judge_all([read_mp4(path)[0] for path in files], attributes)
    scores[group] = score(verdicts, attributes)
    samples += [
      dict(file=str(path.relative_to(out)), caption=request.prompt, group=group, judged=verdict)
      for path, request, verdict in zip(files, requests, verdicts, strict=True)
    ]
  ceiling = judge_real(chosen["trained"], out / "real.mp4")
  result = {
    "adherence": merge(scores["trained"], scores["held_out"], ceiling),
    "step": opened.step,
    "samples": samples,
    "sampler": {**settings._asdict(), **size},
    "out": str(out),
  }
  (out / "scores.json").write_text(json.dumps(result, indent=1) + "\n")
  return result


def choose_clips(clips: Dataset, split: str, count: int) -> list[ClipRecord]:
  """The first clips of a split that have its most common moving shape and claim a direction.

  Raises:
    BadInput: the split has fewer of them.
  """
  rows = clips.indices(split)
  shapes = Counter(
    (int(clips.index["frames"][r]), int(clips.index["height"][r]), int(clips.index["width"][r]))
    for r in rows
  )
  moving = [shape for shape, _ in shapes.most_common() if shape[0] > 1]
  found = []
  for row in rows:
    record = clips.read(int(row))
    facts = json.loads(record.attributes or "{}")
    named = facts.get("objects") and all(o["direction"] for o in facts["objects"])
    if moving and record.video.shape[:3] == moving[0] and named:
      found.append(record)
    if len(found) == count:
      return found
  raise BadInput(
    f"eval: split {split} of {clips.path} has {len(found)} clips of its commonest shape whose "
    f"captions name a direction, fewer than samples={count}. "
    "Generate more clips, or lower --samples."
  )


def caption_of(record: ClipRecord, i: int) -> str:
  """Captions in turn, so that every wording is asked."""
  return record.captions[i % len(record.captions)]


def judge_real(records, path: Path) -> dict:
  """The judge's score on real clips that went through the same file format: the ceiling."""
  videos = []
  for record in records:
    write_mp4(path, record.video, record.fps, crf=CRF)
    videos.append(np.asarray(read_mp4(path)[0]))
  path.unlink()
  attributes = [json.loads(record.attributes) for record in records]
  return score(judge_all(videos, attributes), attributes)

"""`sora eval`: scores a run. Suite `adherence`: do samples show what their captions say?"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.paths import is_url
from data_pipeline.records import ClipRecord
from data_pipeline.video import as_frames
from data_pipeline.worlds import judge
from data_pipeline.worlds.agreement import looks_of
from data_pipeline.worlds.laws import MIN_FRAMES, MIN_SECONDS
from sora_jax.commands.options import make_folder, make_parser, real_option, whole_option
from sora_jax.commands.paths import path_option
from sora_jax.commands.progress import say, track
from sora_jax.commands.run import check_seconds, open_run
from sora_jax.commands.sample import SHIFT_HELP, choose_settings, read_shift
from sora_jax.evals.adherence import judge_all, merge, score
from sora_jax.generate.media import read_mp4, replacing, write_mp4
from sora_jax.generate.pipeline import Request
from sora_jax.models.text.encoder import describe
from sora_jax.train.hashes import tree_sha256

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
  p.add_argument("--workdir", type=path_option, required=True, help="run of a DiT")
  p.add_argument("--suite", required=True, choices=["adherence"], help="what to measure")
  p.add_argument(
    "--data",
    type=path_option,
    required=True,
    help="clip records of a generated world: captions and truth",
  )
  p.add_argument("--samples", type=whole_option(1), default=96, help="of each group (default 96)")
  p.add_argument(
    "--out", type=path_option, help="folder for videos and scores; default: WORKDIR/eval/SUITE-STEP"
  )
  p.add_argument("--step", type=whole_option(), help="checkpoint; default: the newest")
  p.add_argument(
    "--weights",
    default="ema",
    help="ema (default), params, or ema:NUMBER, an average by its width (also one that was not"
    " kept: it is made from all checkpoints) or its decay",
  )
  p.add_argument("--shift", type=read_shift, metavar="auto|NUMBER", help=SHIFT_HELP)
  for name, kind in (
    ("steps", whole_option(1, 10**5)),
    ("guidance", real_option(-1e6, 1e6)),
    ("solver", str),
  ):
    p.add_argument(f"--{name}", type=kind, help="of the sampler; default: config.sample")
  p.add_argument("--seed", type=whole_option(0, 2**32 - 1), default=0)
  p.set_defaults(size=None, seconds=None, fps=None)
  return p


def run(args) -> dict:
  if is_url(args.workdir) and not args.out:
    raise BadInput(f"eval: of --workdir={args.workdir} the videos want a folder. Give --out.")
  opened = open_run(args.workdir, step=args.step, weights=args.weights)
  check_seconds(opened, args.workdir, math.inf)  # whatever videos the suite has
  out = Path(args.out or Path(args.workdir) / "eval" / f"{args.suite}-{opened.step}")
  make_folder("--out", out)
  result = measure_adherence(opened, Dataset.open(args.data, kind="clip"), args, out)
  if not args.json:
    for name, facts in result["adherence"].items():
      say(f"{name:10} {show_score(facts, '')}\n  held out {show_score(facts, 'held_out')}")
  return {key: value for key, value in result.items() if key != "samples"}  # see OUT/scores.json


def show_score(facts: dict, group: str) -> str:
  """A score with its 95 % interval, chance, ceiling and p-value, on one line."""
  key = (lambda name: f"{group}_{name}") if group else (lambda name: name)
  low, high = facts[key("interval")]
  return (
    f"{facts[group or 'score']:.3f} [{low:.3f}, {high:.3f}]  chance {facts[key('chance')]:.3f}  "
    f"ceiling {facts[key('ceiling')]:.3f}  p {facts[key('p_value')]:.1e}"
  )


def measure_adherence(opened, clips: Dataset, args, out: Path) -> dict:
  """Samples, writes, decodes and judges; also judges the real clips of the same captions.

  Returns:
    `adherence` (see `evals.adherence.merge`), `samples` (one a video: file, caption, group,
      judged, and reasons, what is seen instead where judged says False)
    and what was asked. The same is written to `OUT/scores.json`; where that answers the same
    question already, it is returned and nothing is sampled.
  """
  _, settings = choose_settings(args, opened.config.sample)
  look = common_look(clips, GROUPS["trained"])
  size = dict(seconds=look.frames / look.fps, width=look.width, height=look.height, fps=look.fps)
  settings = settings._replace(alpha=opened.pipeline.choose_shift(settings, **size))
  asked = describe_question(opened, clips, args.samples, {**settings._asdict(), **size})
  found = read_scores(out, asked)
  if found is not None:
    say(f"eval: {out / 'scores.json'} answers this already")
    return found
  chosen = {
    group: choose_clips(clips, split, args.samples, look) for group, split in GROUPS.items()
  }
  scores, ceilings, samples = {}, {}, []
  for number, (group, records) in enumerate(chosen.items()):
    folder = out / group
    folder.mkdir(parents=True, exist_ok=True)
    requests = [Request(caption_of(r, i), "", number * 2**20 + i) for i, r in enumerate(records)]
    videos = opened.pipeline(requests, **size, settings=settings, rows=opened.config.sample.rows)
    files = [folder / f"{i:04d}.mp4" for i in range(len(records))]
    for path, video in zip(files, track(videos, f"sample {group}", len(files)), strict=True):
      (out / "scores.json").unlink(missing_ok=True)  # not before what was asked has proved sound
      write_mp4(path, video, size["fps"], crf=CRF)
    attributes = [json.loads(record.attributes) for record in records]
    verdicts = judge_all([read_mp4(path)[0] for path in files], attributes)
    scores[group] = score([verdict.agrees for verdict in verdicts], attributes)
    ceilings[group] = judge_real(records, out / "real.mp4")
    samples += [
      dict(
        file=str(path.relative_to(out)),
        caption=request.prompt,
        draw=request.draw,  # for sora sample
        group=group,
        judged=verdict.agrees,
        reasons=verdict.reasons,
      )
      for path, request, verdict in zip(files, requests, verdicts, strict=True)
    ]
  result = {
    "adherence": merge(
      scores["trained"], scores["held_out"], ceilings["trained"], ceilings["held_out"]
    ),
    **asked,
    "samples": samples,
    "out": str(out),
  }
  with replacing(out / "scores.json") as temporary:
    temporary.write_text(json.dumps(result, indent=1) + "\n")
  return result


def describe_question(opened, clips: Dataset, count: int, sampler: dict) -> dict:
  """All that decides the scores: weights, model, codec, captions and how samples are made."""
  pipeline = opened.pipeline
  asked = {
    "step": opened.step,
    "sampler": sampler,
    "sample_count": count,
    "sample_rows": opened.config.sample.rows,
    "data_fingerprint": clips.fingerprint,
    "weights_sha256": tree_sha256(pipeline.sampler.params),
    "model": opened.config.model.to_dict(),
    "vae_fingerprint": pipeline.vae.fingerprint,
    "text": describe(pipeline.encoder),
    "judge_version": judge.VERSION,
  }
  return json.loads(json.dumps(asked))


def read_scores(out: Path, asked: dict) -> dict | None:
  """What an earlier session measured, if it was asked the same and its videos are all there."""
  try:
    found = json.loads((out / "scores.json").read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
  if any(found.get(key) != value for key, value in asked.items()):
    return None
  if not all((out / sample["file"]).is_file() for sample in found["samples"]):
    return None
  return found | {"out": str(out)}


class Look(NamedTuple):
  """Frames, height and width in pixels, and frames a second of a clip."""

  frames: int
  height: int
  width: int
  fps: float


def common_look(clips: Dataset, split: str) -> Look:
  """The most common look of a split's clips that are long enough to judge their motion.

  Raises:
    BadInput: there are none.
  """
  columns = (clips.index[name][clips.indices(split)].tolist() for name in Look._fields)
  looks = Counter(
    look
    for look in map(Look._make, zip(*columns, strict=True))
    if look.frames >= MIN_FRAMES and (look.frames - 1) / look.fps >= MIN_SECONDS
  )
  if not looks:
    raise BadInput(
      f"eval: split {split} of {clips.path} has no clips of {MIN_FRAMES} frames and "
      f"{MIN_SECONDS:g} seconds or more, in which motion can be judged. Generate data with some."
    )
  return looks.most_common(1)[0][0]


def choose_clips(clips: Dataset, split: str, count: int, look: Look) -> list[ClipRecord]:
  """The first clips of a split that look so, have captions and claim a direction that can be told.

  Raises:
    BadInput: the split has fewer of them.
  """
  found = []
  for row in clips.indices(split):
    if any(clips.index[name][row] != value for name, value in look._asdict().items()):
      continue
    record = clips.read(int(row))
    facts = json.loads(record.attributes or "{}")
    named = facts.get("objects") and all(one.direction for one in looks_of(facts))
    if named and record.captions:
      found.append(record)
    if len(found) == count:
      return found
  raise BadInput(
    f"eval: split {split} of {clips.path} has {len(found)} clips of {look.width}x{look.height}, "
    f"{look.frames} frames at {look.fps:g} a second whose captions name a direction that can be "
    f"judged, fewer than samples={count}. "
    "Generate more clips, or lower --samples."
  )


def caption_of(record: ClipRecord, i: int) -> str:
  """Captions in turn, so that every wording is asked."""
  return record.captions[i % len(record.captions)]


def judge_real(records, path: Path) -> dict:
  """The judge's score on real clips that went through the same file format: the ceiling."""
  videos = []
  for record in records:
    write_mp4(path, as_frames(record.video), record.fps, crf=CRF)
    videos.append(np.asarray(read_mp4(path)[0]))
  path.unlink()
  attributes = [json.loads(record.attributes) for record in records]
  return score([verdict.agrees for verdict in judge_all(videos, attributes)], attributes)

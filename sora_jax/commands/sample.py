"""`sora sample`: makes video from prompts."""

import argparse
import math
from pathlib import Path

from data_pipeline.errors import BadInput
from data_pipeline.text_lines import read_lines
from sora_jax.commands.options import make_folder, make_parser, real_option, whole_option
from sora_jax.commands.paths import path_option
from sora_jax.commands.progress import track
from sora_jax.commands.run import check_seconds, open_run
from sora_jax.generate.media import check_writable, write_mp4, write_png
from sora_jax.generate.pipeline import Request
from sora_jax.generate.sample import Settings

KINDS = (".mp4", ".png")  # of files that are made; a picture is of a single frame
MOST_DRAW = 2**63
SHIFT_HELP = "of the solver's times towards noise; 1 is none, auto that of the run's training"
SIDES = range(1, 2**14 + 1)  # pixels


def parser():
  p = make_parser(
    "sample",
    "Makes video from a prompt, or one video for each line of a file.",
    """
    sora sample --workdir=runs/demo/dit --prompt="a large yellow circle drifts up" --out=up.mp4
    sora sample --workdir=runs/demo/dit --prompts=prompts.txt --out=new/ --seconds=0.6 --size=48x32
    """,
  )
  p.add_argument("--workdir", type=path_option, required=True, help="run of a DiT")
  what = p.add_mutually_exclusive_group(required=True)
  what.add_argument("--prompt", help="caption of the video")
  what.add_argument(
    "--prompts", type=path_option, metavar="FILE", help="a caption a line; --out is then a folder"
  )
  p.add_argument("--negative-prompt", default="", help="caption to guide away from")
  p.add_argument(
    "--out",
    type=path_option,
    required=True,
    help="MP4 file (PNG with --seconds=0), or with --prompts a folder for 0000.mp4 …",
  )
  how = p.add_argument_group("size and sampler", "what is not given is the run's config.sample")
  how.add_argument(
    "--seconds",
    type=real_option(0.0, 3600.0),
    help="length; 0 makes a single frame",
  )
  how.add_argument("--size", type=parse_size, metavar="WxH", help="pixels")
  how.add_argument("--fps", type=real_option(0.0, 1000.0, above=True), help="frames a second")
  how.add_argument("--steps", type=whole_option(1, 10**5), help="solver steps")
  how.add_argument(
    "--guidance",
    type=real_option(-1e6, 1e6),
    help="scale s of u + s(c-u); 1 is no guidance",
  )
  how.add_argument("--solver", help="euler or heun")
  how.add_argument("--shift", type=read_shift, metavar="auto|NUMBER", help=SHIFT_HELP)
  p.add_argument(
    "--seed",
    type=whole_option(0, 2**32 - 1),
    default=0,
    help="same seed and draw, same file",
  )
  p.add_argument(
    "--draw",
    type=int,
    default=0,
    help="tells samples of one seed apart; with --prompts that of the first caption, each later one"
    " has one more (default 0)",
  )
  p.add_argument(
    "--rows",
    type=whole_option(1, 2**16),
    help="videos made at once (default: config.sample.rows; fewer are quicker where there are few"
    " captions, and others by rounding)",
  )
  p.add_argument("--step", type=whole_option(), help="checkpoint; default: the newest")
  p.add_argument(
    "--weights",
    default="ema",
    help="ema (default), params, or ema:NUMBER, an average by its width (also one that was not"
    " kept: it is made from all checkpoints) or its decay",
  )
  p.add_argument(
    "--crf",
    type=whole_option(0, 51),
    default=12,
    help="H.264 quality, 0 best to 51 (default 12)",
  )
  return p


def run(args) -> dict:
  prompts = read_prompts(args)
  if not 0 <= args.draw <= MOST_DRAW - len(prompts):
    raise BadInput(f"sample: --draw={args.draw} is not between 0 and 2**63. Give a smaller one.")
  files = out_files(args, len(prompts))
  opened = open_run(args.workdir, step=args.step, weights=args.weights)
  size, settings = choose_settings(args, opened.config.sample)
  check_seconds(opened, args.workdir, size["seconds"])
  requests = [Request(p, args.negative_prompt, args.draw + i) for i, p in enumerate(prompts)]
  rows = opened.config.sample.rows if args.rows is None else args.rows
  if files[0].suffix.lower() == ".png" and opened.pipeline.shape_of(**size).f > 1:
    raise BadInput(f"sample: --out={files[0]} is a picture. Give x.mp4, or --seconds=0.")
  settings = settings._replace(alpha=opened.pipeline.choose_shift(settings, **size))
  videos = opened.pipeline(requests, **size, settings=settings, rows=rows)
  for path, video in zip(files, track(videos, "sample", len(files)), strict=True):
    if path.suffix.lower() == ".png":
      write_png(path, video[0])
    else:
      write_mp4(path, video, size["fps"], crf=args.crf)
  return describe(opened.step, args.weights, files, requests, size, settings, rows)


def describe(step: int, weights: str, files, requests, size: dict, settings: Settings, rows: int):
  """What was made of what: enough to make any of the files again, alone."""
  how = settings._asdict()
  shift, seed = how.pop("alpha"), how.pop("seed")
  return {
    "files": [str(path) for path in files],
    "samples": [
      {"file": str(path), "prompt": one.prompt, "negative_prompt": one.negative, "draw": one.draw}
      for path, one in zip(files, requests, strict=True)
    ],
    "step": step,
    "weights": weights,
    "seed": seed,
    "rows": rows,
    "shift": shift,
    **how,
    **size,
  }


def read_shift(text: str) -> float:
  """--shift: a positive number, or 0 for auto. Raises ArgumentTypeError: neither."""
  try:
    shift = 0.0 if text == "auto" else float(text)
  except ValueError:
    shift = math.nan
  if text != "auto" and not 0 < shift < math.inf:
    raise argparse.ArgumentTypeError(f"shift={text} must be positive (1 is none), or auto")
  return shift


def read_prompts(args) -> list[str]:
  """The prompt, or the lines of the prompt file that are not empty."""
  if args.prompt is not None:
    return [args.prompt]
  lines = read_lines(args.prompts, "sample: --prompts=")
  prompts = [line.strip() for line in lines if line.strip()]
  if not prompts:
    raise BadInput(
      f"sample: --prompts={args.prompts} has no line with a caption. Write one a line."
    )
  return prompts


def out_files(args, count: int) -> list[Path]:
  """Where the videos go; refuses a place that cannot be written before any work is done."""
  out = Path(args.out)
  if args.prompt is not None:
    if out.suffix.lower() not in KINDS:
      raise BadInput(f"sample: --out={out} is no file of {' or '.join(KINDS)}. Name one, as x.mp4.")
    check_writable(out)
    return [out]
  make_folder("--out", out)
  return [out / f"{i:04d}.mp4" for i in range(count)]


def choose_settings(args, defaults) -> tuple[dict, Settings]:
  """What the options say, and `config.sample` where they say nothing."""

  def pick(name):
    given = getattr(args, name)
    return defaults[name] if given is None else given

  width, height = args.size or (defaults.width, defaults.height)
  size = dict(seconds=pick("seconds"), width=width, height=height, fps=pick("fps"))
  return size, Settings(pick("steps"), pick("guidance"), pick("solver"), pick("shift"), args.seed)


def parse_size(text: str) -> tuple[int, int]:
  """ "640x480" to (640, 480). Raises ArgumentTypeError: it is no size."""
  width, _, height = text.lower().partition("x")
  are_numbers = width.isdecimal() and height.isdecimal()
  if not (are_numbers and int(width) in SIDES and int(height) in SIDES):
    raise argparse.ArgumentTypeError(
      f"{text} is not WIDTHxHEIGHT of 1 to {SIDES[-1]} pixels, such as 64x48"
    )
  return int(width), int(height)

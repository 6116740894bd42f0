"""`sora inspect`: what is in a run or in a dataset."""

from pathlib import Path

from data_pipeline.dataset import Dataset, choose_tokenizer
from data_pipeline.errors import BadInput
from data_pipeline.loader import make_pools
from data_pipeline.packing import PackSettings, check_fit, cost_of, plan_window
from data_pipeline.stream import Mixture
from sora_jax.commands.inspect_clips import choose_rows, export_clips, print_clips
from sora_jax.commands.inspect_data import describe_dataset, print_dataset
from sora_jax.commands.inspect_page import write_dataset_page
from sora_jax.commands.inspect_run import describe_run, print_goodput
from sora_jax.commands.options import make_parser, whole_option
from sora_jax.commands.paths import path_option
from sora_jax.commands.progress import say


def parser():
  p = make_parser(
    "inspect",
    "Shows step, counters, hashes and config of a run, or counts and pack efficiency of a dataset."
    " Packing assumes that every clip has its caption.",
    """
    sora inspect --workdir=runs/demo/dit --json
    sora inspect --data=runs/demo/latents --slots=256 --rows=16 --ranks=4 --json
    sora inspect --data=data/clips --html=clips.html
    sora inspect --data=data/clips --clips --split=held_out | head
    sora inspect --data=data/clips --export=look --limit=20
    """,
  )
  where = p.add_mutually_exclusive_group(required=True)
  where.add_argument("--workdir", type=path_option, help="run of sora train")
  where.add_argument("--data", type=path_option, help="dataset of clip or latent records")
  p.add_argument("--step", type=whole_option(), help="checkpoint of --workdir; default: the newest")
  p.add_argument(
    "--slots",
    type=whole_option(0, 2**26),
    default=0,
    help="token slots a row: also packs the train split",
  )
  p.add_argument(
    "--caption-slots",
    type=whole_option(0, 2**26),
    default=0,
    help="caption tokens a row, data.caption_slots of a run (default: --slots, no limit)",
  )
  p.add_argument(
    "--segments",
    type=whole_option(0, 2**26),
    default=0,
    help="clips a row, data.segments of a run (default: --slots, no limit)",
  )
  p.add_argument(
    "--ranks",
    type=whole_option(1, 2**20),
    default=1,
    help="data-parallel ranks for the imbalance (default 1)",
  )
  p.add_argument(
    "--rows",
    type=whole_option(0, 2**20),
    default=0,
    help="rows a step (default: one a rank)",
  )
  p.add_argument(
    "--width",
    type=whole_option(1, 2**17),
    default=768,
    help="of the model, for the cost of a token (default 768)",
  )
  p.add_argument(
    "--patch",
    type=whole_option(1, 64),
    nargs=3,
    default=(1, 2, 2),
    metavar=("T", "H", "W"),
    help="latent frames, rows and columns of a patch in packing (default 1 2 2)",
  )
  p.add_argument(
    "--text", default="", help="text encoder whose caption tokens are packed (default: the first)"
  )
  what = p.add_mutually_exclusive_group()
  what.add_argument(
    "--html", type=path_option, help="file: also writes a page of histograms and a contact sheet"
  )
  what.add_argument(
    "--clips", action="store_true", help="instead prints a JSON line a clip on stdout"
  )
  what.add_argument(
    "--export",
    type=path_option,
    metavar="FOLDER",
    help="instead writes clips as lossless video (H.264 of RGB in MP4; latents decoded), and "
    "manifest.jsonl",
  )
  p.add_argument("--split", default="", help="of --html, --clips, --export: only its clips")
  p.add_argument(
    "--limit",
    type=whole_option(),
    default=0,
    help="of them: at most so many clips, on the sheet of --html",
  )
  return p


def run(args) -> dict:
  if args.workdir:
    if args.html or args.clips or args.export or args.split or args.limit:
      raise BadInput("inspect: --html, --clips, --export, --split and --limit ask for --data.")
    facts = describe_run(args.workdir, args.step)
    if not args.json:
      for key in ("step", "tokens_seen", "clips_seen", "parameters", "cursor"):
        say(f"{key:14} {facts[key]}")
      for part in ("params", "ema", "opt"):
        say(f"{part + '_sha256':14} {facts[part + '_sha256']}")
      for decay, digest in facts["averages_sha256"].items():
        say(f"{'ema:' + decay:14} {digest}")
      for name, width in facts["average_widths"].items():
        who = name if name == "ema" else f"ema:{name}"
        say(f"{who:14} spread over {width:.2g} of the steps done (standard deviation)")
      say(f"config         {args.workdir.rstrip('/')}/config.json")
      print_goodput(facts["goodput"])
    return facts
  if args.step is not None:
    raise BadInput("inspect: --step asks for --workdir.")
  dataset = Dataset.open(args.data, kind=None)
  rows = choose_rows(dataset, args.split, 0 if args.html else args.limit)
  if args.clips:
    return print_clips(dataset, rows)
  if args.export:
    return export_clips(dataset, rows, Path(args.export))
  facts = describe_dataset(args.data)
  if args.slots:
    facts |= describe_packing(args)
  if args.html:
    write_dataset_page(dataset, facts, rows, args.limit, Path(args.html))
    facts["html"] = args.html
  if not args.json:
    print_dataset(facts)
  return facts


def describe_packing(args) -> dict:
  """Packs one epoch of the train split and tells how well the bins are filled and balanced.

  Every clip has its caption (no dropout); caption slots and segments bind where they are given.
  """
  if args.rows % args.ranks:
    raise BadInput(
      f"inspect: --rows={args.rows} does not divide over --ranks={args.ranks}. Change one of them."
    )
  dataset = Dataset.open(args.data, kind="latent")
  settings = PackSettings(
    slots=args.slots,
    caption_slots=args.caption_slots or args.slots,
    segments=args.segments or args.slots,
    rows=args.rows or args.ranks,
    patch=tuple(args.patch),
    caption_dropout=0.0,
    cost=cost_of(args.width),
  )
  text = choose_tokenizer([dataset], args.text)
  mixture = Mixture(make_pools([dataset], "train", text), seed=0)
  check_fit(mixture.pools[0], settings)
  steps, tokens, imbalance = 0, 0, 0.0
  for window in range(mixture.windows(settings.window_clips)):
    plan = plan_window(mixture, settings, epoch=0, window=window)
    steps += plan.steps
    tokens += plan.tokens
    imbalance += plan.imbalance(args.ranks) * plan.steps
  fill = tokens / (steps * settings.rows * settings.slots)
  return {"fill": fill, "imbalance": imbalance / steps, "steps": steps}

"""`sora curate`: raw videos to clip records, and clips of named sources out of them again."""

from pathlib import Path

from data_pipeline.curate import tables
from data_pipeline.curate.job import curate
from data_pipeline.curate.settings import read_settings
from data_pipeline.curate.spool import Work
from data_pipeline.curate.take_down import take_down
from data_pipeline.errors import BadInput
from data_pipeline.folder import absolute, discard
from sora_jax.commands.curate_summary import summarise
from sora_jax.commands.options import make_parser
from sora_jax.commands.progress import Meter, say


def parser():
  p = make_parser(
    "curate",
    "Cuts raw videos into clips, scores, filters, captions and writes them, on Apache Beam. Other "
    "options than these go to Beam and its runner. After a failure, run it again: it makes what is "
    "missing.",
    """
    sora curate --config=experiments/curate_default.py --input=videos --out=data/clips
    sora curate --config=experiments/curate_default.py --input=more --out=data/clips --append
    sora curate --out=data/clips --remove=a.mp4,b.mp4 --data=data/latents
    sora curate --config=experiments/curate_default.py --input='gs://bucket/*.mp4' \\
      --out=/mnt/bucket/clips --runner=DataflowRunner --project=P --region=R --temp_location=gs://b/t
    """,
    beam=True,
  )
  p.add_argument(
    "--input",
    help="folder, glob, url, CSV or JSONL list, WebDataset tars, or tfds:NAME[:SPLIT]",
  )
  p.add_argument("--out", required=True, help="folder of the dataset")
  p.add_argument("--workers", type=int, help="processes on this machine (default: one a core)")
  p.add_argument(
    "--append",
    action="store_true",
    help="add new sources to the dataset at --out; tries again what crashed, timed out or was away",
  )
  p.add_argument(
    "--remove", metavar="SOURCES", help="take down: names apart by commas, or @FILE, one a line"
  )
  p.add_argument(
    "--data",
    action="append",
    default=[],
    metavar="LATENTS",
    help="with --remove: latents made of the clips, beside those that sora encode registered",
  )
  p.add_argument(
    "--clean", action="store_true", help="remove the work folder of --out when all is done"
  )
  return p


def run(args) -> dict:
  if args.remove is not None:
    _refuse(args, "--remove", ("input", "append", "others"))
    result = take_down(args.out, _read_names(args.remove), args.data)
    tables.renew_report(args.out)  # its pictures may be of what is gone
    return result
  _refuse(args, "curation", ("data",))
  if args.config is None or not args.input:
    raise BadInput("curate: --config=FILE.py and --input are needed. See sora curate --help.")
  if args.workers is not None and args.workers < 1:
    raise BadInput(f"curate: --workers={args.workers} must be at least 1.")
  if "curate" not in args.config:
    raise BadInput("curate: the config has no group `curate`. See experiments/curate_default.py.")
  with Meter() as meter:
    result = curate(
      args.input,
      args.out,
      read_settings(args.config.curate.to_dict()),
      workers=args.workers,
      options=args.others,
      is_append=args.append,
      progress=meter,
    )
  for line in summarise(result, for_people=not args.json):
    say(line)
  if args.clean:
    discard(Work.of(args.out).folder, path=absolute(args.out))
  return result


def _refuse(args, what: str, names: tuple[str, ...]) -> None:
  given = [name for name in names if getattr(args, name)]
  if given:
    values = ", ".join(f"--{n}" if n != "others" else " ".join(args.others) for n in given)
    raise BadInput(f"curate: {values} does not go with {what}. Leave it out.")


def _read_names(given: str) -> list[str]:
  """Sources apart by commas, or the lines of @FILE."""
  if given.startswith("@"):
    try:
      lines = Path(given[1:]).read_text(encoding="utf-8").splitlines()
    except OSError as error:
      raise BadInput(f"curate: --remove={given} cannot be read ({error.strerror}).") from error
  else:
    lines = given.split(",")
  names = [name.strip() for name in lines if name.strip()]
  if not names:
    raise BadInput(f"curate: --remove={given} names no source. Give names, or @FILE.")
  return names

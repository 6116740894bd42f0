"""`sora curate`: raw videos to clip records, other captions for them, and take-downs."""

from data_pipeline.curate import tables
from data_pipeline.curate.job import curate
from data_pipeline.curate.new_captions import replacing_captions
from data_pipeline.curate.settings import Settings, read_settings
from data_pipeline.curate.spool import Work
from data_pipeline.curate.take_down import take_down
from data_pipeline.errors import BadInput
from data_pipeline.folder import absolute, discard
from data_pipeline.paths import expand_home
from data_pipeline.text_lines import read_lines
from sora_jax.commands.curate_summary import summarise
from sora_jax.commands.options import make_parser, whole_option
from sora_jax.commands.paths import path_option
from sora_jax.commands.progress import Meter, say


def parser():
  p = make_parser(
    "curate",
    "Cuts raw videos into clips, scores, filters, captions and writes them, on Apache Beam. Other "
    "options than these go to Beam and its runner. After a failure, run it again: it makes what is "
    "missing.",
    """
    sora curate --config=curate_default --input=videos --out=data/clips
    sora curate --config=curate_default --input=more --out=data/clips --append
    sora curate --config=curate_default --input=videos --out=data/clips \\
      --replace-captions
    sora curate --out=data/clips --remove=a.mp4,b.mp4 --data=data/latents
    sora curate --config=curate_default --input='gs://bucket/*.mp4' \\
      --out=/mnt/bucket/clips --runner=DataflowRunner --project=P --region=R --temp_location=gs://b/t
    """,
    beam=True,
  )
  p.add_argument(
    "--input",
    type=path_option,
    help="folder, glob, url, CSV or JSONL list, WebDataset tars, or tfds:NAME[:SPLIT]",
  )
  p.add_argument("--out", type=path_option, required=True, help="folder of the dataset")
  p.add_argument(
    "--workers",
    type=whole_option(1, 4096),
    help="processes on this machine (default: one a core)",
  )
  p.add_argument(
    "--append",
    action="store_true",
    help="add new sources to the dataset at --out; tries again what crashed, timed out or was away",
  )
  p.add_argument(
    "--remove", metavar="SOURCES", help="take down: names apart by commas, or @FILE, one a line"
  )
  p.add_argument(
    "--replace-captions",
    action="store_true",
    help="give the clips of known sources the captions that the input says now, and their latents "
    "ids and states of these; videos and latents are not encoded again",
  )
  p.add_argument(
    "--data",
    type=path_option,
    action="append",
    default=[],
    metavar="LATENTS",
    help="with --remove or --replace-captions: latents made of the clips, beside those that sora "
    "encode registered",
  )
  p.add_argument(
    "--clean", action="store_true", help="remove the work folder of --out when all is done"
  )
  return p


def run(args) -> dict:
  if args.remove is not None:
    _refuse(args, "--remove", ("input", "append", "replace_captions", "others"))
    result = take_down(args.out, _read_names(args.remove), args.data)
    tables.renew_report(args.out)  # its pictures may be of what is gone
    return result
  if args.replace_captions:
    _refuse(args, "--replace-captions", ("append", "clean", "others"))
  else:
    _refuse(args, "curation", ("data",))
  if args.config is None or not args.input:
    raise BadInput("curate: --config=FILE.py and --input are needed. See sora curate --help.")
  if "curate" not in args.config:
    raise BadInput("curate: the config has no group `curate`. See --config=curate_default.")
  settings = read_settings(args.config.curate.to_dict())
  return _replace_captions(args, settings) if args.replace_captions else _curate(args, settings)


def _curate(args, settings: Settings) -> dict:
  with Meter() as meter:
    result = curate(
      args.input,
      args.out,
      settings,
      workers=args.workers,
      options=args.others,
      is_append=args.append,
      progress=meter,
      tell=lambda line: say(f"curate: {line}"),
    )
  for line in summarise(result, for_people=not args.json):
    say(line)
  _say_captions(result)
  if args.clean:
    discard(Work.of(args.out).folder, path=absolute(args.out))
  return result


def _say_captions(result: dict) -> None:
  if result["taken_down"]:
    say(f"curate: {result['taken_down']} sources of the input were taken down: they stay away")
  long = result["long_captions"]
  if long["clips"]:
    say(
      f"curate: {long['clips']} clips have captions of more than {tables.LONG_WORDS} words and "
      f"marks, the longest {long['words']} ({long['longest']}). Text encoders take 256 (minilm) or "
      "512 (bytes) tokens: see sora encode --long-captions"
    )


def _replace_captions(args, settings: Settings) -> dict:
  given = args.input, args.out, settings, args.data
  with replacing_captions(*given, workers=args.workers) as job:
    renewals = []
    if job.latents:
      from sora_jax.commands.latent_captions import LatentCaptions  # brings JAX

      renewals = [LatentCaptions(dataset) for dataset in job.latents]
    for renewal in renewals:
      renewal.check(job.captions())
    clips = job.apply()
    say(f"curate: the captions of the clips in {args.out} are replaced")
    renewed = {str(r.path): r.renew(clips, job.sources, job.newest) for r in renewals}
    result = job.finish() | {"latents": renewed, "fingerprint": clips.fingerprint}
  say(
    f"curate: {result['clips']} clips have other captions now ({result['emptied']} of them none), "
    f"{result['unchanged']} have the same"
  )
  if result["new"]:
    say(f"curate: {result['new']} sources of the input are new: --append adds them")
  return {"out": str(args.out)} | result


def _refuse(args, what: str, names: tuple[str, ...]) -> None:
  given = [name for name in names if getattr(args, name)]
  if given:
    values = ", ".join(f"--{n}" if n != "others" else " ".join(args.others) for n in given)
    raise BadInput(f"curate: {values} does not go with {what}. Leave it out.")


def _read_names(given: str) -> list[str]:
  """Sources apart by commas, or the lines of @FILE."""
  if given.startswith("@"):
    lines = read_lines(expand_home(given[1:]), "curate: --remove=@")
  else:
    lines = given.split(",")
  names = [name.strip() for name in lines if name.strip()]
  if not names:
    raise BadInput(f"curate: --remove={given} names no source. Give names, or @FILE.")
  return names

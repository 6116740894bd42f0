"""`sora encode`: clip records to latent records, as renditions for a stage."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.renditions import Rule, read_rules
from sora_jax.commands.caption_limits import LONG_CAPTIONS
from sora_jax.commands.encode_job import SHARD_BYTES, EncodeJob
from sora_jax.commands.options import make_parser, whole_option
from sora_jax.commands.paths import path_option
from sora_jax.models.frozen_vae import FrozenVAE, load_frozen_vae
from sora_jax.models.text.encoder import TextEncoder
from sora_jax.models.text.registry import load_text_encoder
from sora_jax.parallel import hosts
from sora_jax.train.stop import leaving_at_signals
from sora_jax.train.workdir import open_run_folder

DOES = "Encodes clip records with a trained VAE and a text encoder. A killed job is continued."
EXAMPLE = """
sora encode --workdir=runs/demo/vae --text=minilm --data=runs/demo/clips --out=runs/demo/latents
sora encode --workdir=runs/film/vae --data=film/clips --out=film/latents \\
  --config=film:encode
"""


class EncodeParser:
  """Takes `--config`, which is optional: without it every clip is encoded as it is."""

  def __init__(self):
    self._plain = make_parser("encode", DOES, EXAMPLE)
    self._plain.add_argument(
      "--config",
      metavar="FILE.py[:ARG]",
      help="experiment whose encode.renditions say what is made of every clip: sizes, rates, "
      "lengths (default: clips as they are)",
    )
    self._with_config = make_parser("encode", DOES, EXAMPLE, config=True)
    for p in (self._plain, self._with_config):
      add_options(p)

  def parse_args(self, args=None) -> argparse.Namespace:
    words = sys.argv[1:] if args is None else list(args)
    has_config = any(w == "--config" or w.startswith(("--config=", "--config.")) for w in words)
    return (self._with_config if has_config else self._plain).parse_args(words)


def parser() -> EncodeParser:
  return EncodeParser()


def add_options(p) -> None:
  p.add_argument("--workdir", type=path_option, required=True, help="finished run of a VAE")
  p.add_argument(
    "--text",
    default="minilm",
    help="text encoders apart by commas: minilm (token states), bytes (ids alone). Training reads "
    "the first, or that of data.text (default: minilm)",
  )
  p.add_argument(
    "--text-folder",
    type=path_option,
    help="folder with the files of a single encoder; default: its package",
  )
  p.add_argument(
    "--states",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="store the states of caption tokens, not only their ids (default: yes); sora train needs "
    "those of minilm",
  )
  p.add_argument("--data", type=path_option, required=True, help="dataset of clip records")
  p.add_argument("--out", type=path_option, required=True, help="folder of the latent dataset")
  p.add_argument(
    "--rows",
    type=whole_option(1, 2**16),
    default=64,
    help="clips encoded at once (default 64; fewer where they have many pixels)",
  )
  p.add_argument(
    "--patch-side",
    type=whole_option(1, 64),
    default=2,
    help="sides become multiples of so many latents (default 2)",
  )
  p.add_argument(
    "--captions",
    type=whole_option(),
    default=0,
    help="captions kept of each clip (default 0: all)",
  )
  p.add_argument(
    "--long-captions",
    choices=LONG_CAPTIONS,
    default="refuse",
    help="captions of more tokens than a text encoder takes: refuse to begin, cut them after the "
    "last word that fits, or keep other captions of the clip instead (default: refuse)",
  )
  p.add_argument(
    "--mesh",
    type=whole_option(0, 2**16),
    default=0,
    help="devices of a process that share a batch (default 0: all)",
  )
  p.add_argument(
    "--shard-bytes",
    type=whole_option(1, 2**50),
    default=SHARD_BYTES,
    help="of a part, about: a killed job begins its last part again (default 2**28)",
  )
  p.add_argument(
    "--start-over", action="store_true", help="remove what a job of other settings left unfinished"
  )


def run(args) -> dict | None:
  with leaving_at_signals("encode"), hosts.naming_lost_peers():
    hosts.initialize()
    done = encode(args)
  return done if hosts.is_first() else None


def encode(args) -> dict:
  rules = None if args.config is None else config_rules(args.config)
  encoders = load_encoders(args.text, args.text_folder)
  vae = load_frozen_vae(open_run_folder(args.workdir) / "frozen" / "vae")
  job = EncodeJob(
    Dataset.open(args.data, kind="clip"),
    vae,
    encoders,
    Path(args.out),
    rows=args.rows,
    patch_side=args.patch_side,
    captions=args.captions,
    rules=rules,
    states=args.states,
    devices=args.mesh,
    shard_bytes=args.shard_bytes,
    start_over=args.start_over,
    long_captions=args.long_captions,
  )
  dataset = job.run()
  return job.report | {"out": str(args.out), "fingerprint": dataset.fingerprint}


def load_encoders(names: str, folder: str | None) -> list[TextEncoder]:
  """The encoders of `--text`. Raises BadInput: one is unknown or named twice."""
  wanted = [name.strip() for name in names.split(",")]
  if len(set(wanted)) < len(wanted) or (folder and len(wanted) > 1):
    raise BadInput(
      f"encode: --text={names} names an encoder twice, or several for one --text-folder. Name each "
      "once, and give a folder for a single one."
    )
  return [load_text_encoder(name, folder) for name in wanted]


def config_rules(config) -> dict[str, Rule]:
  """The renditions that a config asks for. Raises BadInput: it has none, or wrong ones."""
  found = config.to_dict().get("encode")
  if not isinstance(found, dict) or not isinstance(found.get("renditions"), dict):
    raise BadInput(
      "encode: the config has no encode.renditions. Add encode = dict(renditions=dict(NAME=dict("
      "pixels=...))), or leave --config out."
    )
  for name in sorted(found.keys() - {"renditions"}):
    raise BadInput(
      f"encode: encode.{name}={found[name]!r} is not a setting: there is encode.renditions only. "
      "Remove it; all else is an option of sora encode."
    )
  return read_rules(found["renditions"])


def encode_dataset(
  clips: Dataset, vae: FrozenVAE, encoders: Sequence[TextEncoder], out: Path, **settings
):
  """Writes the latents of `clips`, or opens them when they are there: see `EncodeJob`."""
  return EncodeJob(clips, vae, encoders, out, **settings).run()

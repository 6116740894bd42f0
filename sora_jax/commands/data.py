"""`sora data`: builds an embedded dataset as clip records."""

import json
from pathlib import Path

from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.worlds.physworld import WORLD_VERSION
from data_pipeline.worlds.write import world_records
from data_pipeline.writer import DatasetWriter
from sora_jax.commands.options import make_parser
from sora_jax.commands.progress import say, track

SHARD_BYTES = 2**28


def parser():
  p = make_parser(
    "data",
    "Builds the generated dataset that config.world describes.",
    "sora data --config=experiments/demo.py --out=runs/demo/clips",
    config=True,
  )
  p.add_argument("--out", required=True, help="folder of the dataset")
  return p


def run(args) -> dict:
  dataset = make_world(args.config.world.to_dict(), Path(args.out))
  return {"out": str(args.out), "clips": len(dataset), "fingerprint": dataset.fingerprint}


def make_world(world: dict, out: Path) -> Dataset:
  """Writes a world's clips, or opens them when they are there already.

  Raises:
    BadInput: the folder holds another dataset, or clips of another version of the generator.
  """
  world = json.loads(json.dumps(world))
  meta = {"world": world, "world_version": WORLD_VERSION}
  if (out / "meta.json").exists():
    dataset = Dataset.open(out, kind="clip")
    _check_same(dataset, meta)
    say(f"data: {out} is there already, {len(dataset)} clips")
    return dataset
  with DatasetWriter(out, "clip", name=world["name"], shard_bytes=SHARD_BYTES, meta=meta) as writer:
    for record in track(world_records(world), "data", world["clips"]):
      writer.add(record)
  return Dataset.open(out, kind="clip")


def _check_same(dataset: Dataset, meta: dict) -> None:
  if dataset.meta.get("world") != meta["world"]:
    raise BadInput(
      f"data: {dataset.path} holds a dataset of another config. Give another --out, or remove it."
    )
  version = dataset.meta.get("world_version")
  if version != meta["world_version"]:
    raise BadInput(
      f"data: world_version={version} of {dataset.path} is not {meta['world_version']}: another "
      "version of the generator made its clips. Give another --out, or remove it."
    )

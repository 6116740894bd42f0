"""`sora train`: trains a VAE or a DiT in a workdir; run again, it resumes by itself."""

import itertools
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from data_pipeline import hashing
from data_pipeline.access import copy_folder
from data_pipeline.dataset import Dataset, choose_tokenizer
from data_pipeline.errors import BadInput
from data_pipeline.row import check_alike
from sora_jax.build.attention import attention_backend, build_attention
from sora_jax.build.dit import dit_task
from sora_jax.build.positions import slowest_patches, warn_aliasing
from sora_jax.build.run import build_mesh, build_optimizer, build_schedule, check_microbatches
from sora_jax.build.vae import clips_of, vae_task
from sora_jax.commands.data import make_world
from sora_jax.commands.encode import encode_dataset
from sora_jax.commands.options import make_folder, make_parser, whole_option
from sora_jax.commands.paths import dataset_paths, path_option
from sora_jax.commands.progress import say, track
from sora_jax.commands.settle import settle
from sora_jax.generate.encode import encode_clips
from sora_jax.models.frozen_vae import (
  FrozenVAE,
  latent_statistics,
  load_frozen_vae,
  save_frozen_vae,
)
from sora_jax.models.text.registry import load_frozen_text_encoder, load_text_encoder
from sora_jax.models.vae import make_codec
from sora_jax.parallel import hosts
from sora_jax.parallel.broadcast import slice_count
from sora_jax.train.checkpoint import LAG, Checkpoints
from sora_jax.train.hashes import tree_sha256
from sora_jax.train.migrations import check_time_factor, version_of
from sora_jax.train.run_folder import check_workdir, lock, saved_config, tell
from sora_jax.train.session import train
from sora_jax.train.stop import leaving_at_signals
from sora_jax.train.task import Schedule
from sora_jax.train.weights import Origin, check_origin, compare_seconds
from sora_jax.train.workdir import Mirror, find_checkpoints, open_run_folder, open_workdir, url_of

PREPARE_SECONDS = 86_400  # that processes wait while the first one makes data, once a run
STATISTICS_CLIPS = 256  # clips, or windows of them, that the latents' mean and std come from
STEP_FILE = "step.json"  # in an exported VAE: the step, codec and parameters that it is of
FROZEN = {"vae": load_frozen_vae, "text": load_frozen_text_encoder}  # a run's copies, by folder


def parser():
  p = make_parser(
    "train",
    "Trains what the config describes. An existing workdir is resumed.",
    """
    sora train --config=demo:debug --workdir=runs/debug
    sora train --config=demo:dit --workdir=runs/demo/dit --config.total_steps=2000
    """,
    config=True,
  )
  p.add_argument(
    "--workdir",
    type=path_option,
    required=True,
    help="folder or URL of the run, for all processes",
  )
  p.add_argument(
    "--coordinator",
    default="",
    metavar="HOST:PORT",
    help="of process 0; Slurm, GKE, Cloud TPU and sora launch say it by themselves",
  )
  p.add_argument(
    "--processes",
    type=whole_option(0, 2**20),
    default=0,
    help="of the run, with --coordinator",
  )
  p.add_argument(
    "--process",
    type=whole_option(-1, 2**20),
    default=-1,
    help="this one's number, from 0 on",
  )
  return p


def run(args) -> dict | None:
  settle(args.config, args.config_file, "train")
  wait = args.config.wait
  with leaving_at_signals("train"):
    hosts.initialize(
      args.coordinator,
      args.processes,
      args.process,
      start_seconds=wait.start_seconds,
      silence_seconds=wait.silence_seconds,
    )
    workdir = make_folder("--workdir", open_workdir(args.workdir, fresh=False))
    with hosts.naming_lost_peers():
      done = run_training(args.config, workdir)
  return done if hosts.is_first() else None


def run_training(config, workdir: Path) -> dict:
  """Refuses what is no run; else trains in the workdir, which no other process uses meanwhile."""
  schedule, mesh = build_schedule(config), build_mesh(config)
  # These refuse before data is made.
  build_optimizer(config)
  check_microbatches(config, mesh)
  if config.model.name == "dit":
    build_attention(config, mesh)
  with ExitStack() as stack:
    mirror = Mirror(workdir)

    def take() -> None:
      stack.enter_context(lock(workdir))
      stack.enter_context(mirror)

    hosts.first_does("lock", take, seconds=config.wait.start_seconds)
    check_shared(config, workdir)
    push = mirror.push if hosts.is_first() else lambda: None
    return train_locked(config, workdir, schedule, mesh, push)


def check_shared(config, workdir: Path) -> None:
  """Raises BadInput where processes have folders of their own under the same name."""
  if hosts.count() == 1:
    return
  seconds = config.wait.start_seconds
  if url := url_of(workdir):
    if not config.data.path:
      raise BadInput(
        f"train: --workdir={url} has no room for data that the run makes for many processes. Make"
        " it with sora data and sora encode, and give --config.data.path."
      )
    return
  mark = workdir / "shared"
  word = hosts.share("word", str(time.time_ns()), seconds=seconds)[0]
  hosts.first_does("mark", lambda: mark.write_text(word), seconds=seconds)
  end = time.monotonic() + LAG
  while not (sees := mark.is_file() and mark.read_text() == word) and time.monotonic() < end:
    time.sleep(1.0)
  mine = hosts.share("marked", sees, seconds=seconds)
  hosts.first_does("unmark", mark.unlink, seconds=seconds)
  odd = [i for i, found in enumerate(mine) if found != mine[0]]
  if odd:
    raise BadInput(
      f"train: --workdir={workdir} of {hosts.name_processes(odd)} is not that of process 0. Use a"
      " folder of a file system that all hosts mount, or a URL."
    )


def train_locked(config, workdir: Path, schedule: Schedule, mesh, push) -> dict:
  """Opens the data, trains what `config.model` names, and keeps a trained VAE."""
  is_dit = config.model.name == "dit"
  plain = json.loads(config.to_json())
  check_workdir(workdir, plain)
  origin = origin_of(config)
  if origin.run and not has_begun(workdir):
    open_run_folder(origin.run)  # refuses before data is made
  datasets = open_data(config, workdir, kind="latent" if is_dit else "clip")
  if is_dit:
    text = choose_tokenizer(datasets, config.data.text)
    check_alike(datasets, text)
    saved = saved_config(workdir)
    if saved and any(slowest_patches(one, 1) for one in datasets):  # images are at no wrong second
      version = version_of(saved, f"train: {workdir}")
      check_time_factor(version, datasets[0].time_factor, f"train: {workdir}")
    for line in warn_aliasing(config, datasets):
      tell(f"train: {line}")
    if origin.run and not has_begun(workdir):
      check_origin(origin, made_with(datasets[0], text))
      for line in compare_seconds(origin, datasets[0].time_factor):
        tell(f"train: {line}")
    keep = lambda: keep_frozen(datasets[0], text, workdir)  # noqa: E731
    hosts.first_does("frozen", keep, seconds=PREPARE_SECONDS)
  with jax.set_mesh(mesh):
    task = (
      dit_task(config, datasets, mesh)
      if is_dit
      else vae_task(config, datasets[0], mesh)
    )
    tell(describe_devices(config, mesh))
    state, progress = train(
      task,
      workdir,
      plain,
      schedule,
      mesh,
      origin=origin,
      push=push,
      slices=slice_count(mesh, config.mesh.slices),
    )
  if not is_dit:
    params = whole(state.averaged)
    export = lambda: export_vae(config, params, int(state.step), datasets[0], workdir)  # noqa: E731
    hosts.first_does("export", export, seconds=PREPARE_SECONDS)
  return {
    "workdir": url_of(workdir) or str(workdir),
    "step": int(state.step),
    "tokens_seen": progress.tokens_seen,
    "clips_seen": progress.clips_seen,
  }


def origin_of(config) -> Origin:
  """The weights that a run starts from, of `init_from`, `init_step` and `init_weights`.

  Raises:
    BadInput: a step that is none, or of no run.
  """
  run, step = config.init_from, config.init_step
  if step < -1 or (step >= 0 and not run):
    raise BadInput(
      f"train: init_step={step} is no step of init_from={run!r}. Give one that is saved there,"
      " or -1 for the newest."
    )
  return Origin(run, None if step == -1 else step, config.init_weights)


def whole(params):
  """A tree of the parameters on every host."""
  if hosts.count() == 1:
    return params
  return multihost_utils.process_allgather(params, tiled=True)


def describe_devices(config, mesh) -> str:
  """What a session runs on, as its first line says."""
  kernel = f", {attention_backend(config, mesh)} attention" if config.model.name == "dit" else ""
  axes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
  kind = mesh.devices.flat[0].device_kind
  return f"train: on {mesh.size} x {kind}{f' ({axes})' if axes else ''}{kernel}"


def open_data(config, workdir: Path, *, kind: str) -> list[Dataset]:
  """The datasets of `config.data.path`; if empty, one made in the workdir by `config.world`."""
  if config.data.path:
    paths = dataset_paths(config.data.path) if kind == "latent" else [config.data.path]
    return [Dataset.open(path, kind=kind) for path in paths]
  world, made = (config.world.to_dict(), workdir / "data" / "clips"), []
  hosts.first_does("data", lambda: made.append(make_world(*world)), seconds=PREPARE_SECONDS)
  clips = made[0] if made else make_world(*world)  # which is there
  if kind == "clip":
    return [clips]
  codec = config.codec.to_dict()
  params = nnx.state(make_codec(codec, seed=config.seed))
  chosen = choose_rows(clips)
  videos = (clips.read(row).video for row in chosen)  # whole: a world has few formats
  vae = FrozenVAE(codec, params, measure_statistics(codec, params, videos, len(chosen)))
  latents = encode_dataset(
    clips,
    vae,
    [load_text_encoder(config.codec_text)],
    workdir / "data" / "latents",
    rows=16,
    patch_side=config.model.patch[1],
    captions=4,
  )
  return [latents]


def choose_rows(clips: Dataset) -> list[int]:
  """Rows of at most STATISTICS_CLIPS training clips, chosen by hash."""
  rows = clips.indices("train")
  return rows[hashing.permutation(len(rows), 0)][:STATISTICS_CLIPS].tolist()


def training_windows(config, clips: Dataset) -> Iterator[np.ndarray]:
  """The first STATISTICS_CLIPS windows that a VAE is trained on, [F,H,W,3]: all of one shape."""
  batches = clips_of(config, clips, None)
  try:
    windows = (window for batch in batches for window in batch["video"])
    yield from itertools.islice(windows, STATISTICS_CLIPS)
  finally:
    batches.close()


class _Posterior(NamedTuple):
  """A codec for `encode_clips` whose latents are means and log-variances side by side."""

  vae: FrozenVAE
  time_factor: int
  space_factor: int

  def encode_stream(self, chunks):
    return (np.concatenate(parts, axis=-1) for parts in self.vae.posterior_stream(chunks))


def measure_statistics(codec: dict, params, videos: Iterable[np.ndarray], count: int) -> dict:
  """Mean and std of each latent channel over `count` videos, uint8 [F,H,W,3], of few shapes."""
  channels = nnx.eval_shape(lambda: make_codec(codec, seed=0)).latent_channels
  vae = FrozenVAE(codec, params, {"mean": np.zeros(channels), "std": np.ones(channels)})
  posterior = _Posterior(vae, vae.time_factor, vae.space_factor)
  encoded = encode_clips(posterior, ((None, video) for video in videos), rows=16, patch_side=1)
  tracked = track(encoded, "statistics", count)
  return latent_statistics(np.split(item.latent, 2, axis=-1) for item in tracked)


def export_vae(config, params, step: int, clips: Dataset, workdir: Path) -> None:
  """Keeps the trained codec in `frozen/vae` of its workdir: what `sora encode` reads.

  `step.json` beside it tells what it was made of: that is not exported again. The folder of another
  step, or of a run that was trained anew, is replaced as a whole.
  """
  target = workdir / "frozen" / "vae"
  params = jax.tree.map(np.asarray, params)
  codec = json.loads(json.dumps(config.model.to_dict()))
  made_of = {"step": step, "params_sha256": tree_sha256(params), "codec": codec}
  stamp = json.dumps(made_of, sort_keys=True) + "\n"
  if (target / STEP_FILE).is_file() and (target / STEP_FILE).read_text() == stamp:
    say(f"train: VAE of step {step} is in {target} already")
    return
  partial = target.with_name("vae.partial")
  shutil.rmtree(partial, ignore_errors=True)
  statistics = measure_statistics(codec, params, training_windows(config, clips), STATISTICS_CLIPS)
  mark = save_frozen_vae(partial, config=codec, params=params, statistics=statistics)
  (partial / STEP_FILE).write_text(stamp)
  shutil.rmtree(target, ignore_errors=True)  # when killed here, the next session exports anew
  partial.rename(target)
  say(f"train: VAE kept in {target} ({mark[:12]})")


def keep_frozen(dataset: Dataset, text: str, workdir: Path) -> None:
  """Copies the VAE and text encoder of a latent dataset into the run, so that it samples alone.

  They are loaded first: a run must not train for hours on latents that nothing decodes. A run
  without a checkpoint takes those of its dataset again, whatever an attempt left behind.

  Raises:
    BadInput: one is missing, damaged, or not what the latents were made with; the run holds another
      one and has begun (on another dataset).
  """
  begun = has_begun(workdir)
  sources = {"vae": dataset.path / "vae", "text": dataset.path / "text" / text}
  for part, mark in made_with(dataset, text).items():
    source, target = sources[part], workdir / "frozen" / part
    if begun and target.exists():
      advice = "the run began on another dataset. Use a new --workdir, or set data.path back."
      check_frozen(target, mark, dataset, advice, part)
      continue
    advice = "it was exchanged. Copy the dataset again, or encode it anew."
    check_frozen(source, mark, dataset, advice, part)
    partial = target.with_name(f"{part}.partial")
    for old in (partial, target):
      shutil.rmtree(old, ignore_errors=True)
    copy_folder(source, partial)  # not links: a write into one would change the other
    partial.rename(target)


def made_with(dataset: Dataset, text: str) -> dict[str, str | None]:
  """Fingerprints of the VAE and one of the text encoders that a latent dataset was made with."""
  spec = dataset.meta.get("texts", {}).get(text, {})
  return {"vae": dataset.meta.get("vae"), "text": spec.get("fingerprint")}


def has_begun(workdir: Path) -> bool:
  """Whether the workdir holds a checkpoint."""
  folder = find_checkpoints(workdir)
  if folder is None:
    return False
  with Checkpoints(folder, read_only=True) as checkpoints:
    return checkpoints.latest_step() is not None


def check_frozen(
  folder: Path, mark: str | None, dataset: Dataset, advice: str, part: str
) -> None:
  """Raises BadInput unless a folder's VAE or text encoder loads and has the fingerprint `mark`.

  The VAE's time factor has to be that of the dataset, by which latents get their places in time.
  """
  found = FROZEN[part](folder)
  if found.fingerprint != mark:
    raise BadInput(
      f"train: {folder} has fingerprint={found.fingerprint[:12]}, the latents of {dataset.path} "
      f"were made with {str(mark)[:12]}: {advice}"
    )
  if part == "vae" and found.time_factor != dataset.time_factor:
    raise BadInput(
      f"train: time_factor={dataset.time_factor} of {dataset.path} is not the "
      f"{found.time_factor} of its VAE in {folder}. Correct its meta.json, or encode it anew."
    )

"""A trained codec kept as a folder: what encodes data sets and decodes samples, and never changes.

    config.json          {"codec": settings of `make_codec`, "fingerprint": sha256}
    params.safetensors   float32, named by their path
    statistics.json      {"mean": [c], "std": [c]} of the latents of the training clips

The fingerprint covers all three, so a damaged file is noticed when the folder is read.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from data_pipeline.access import check_file
from data_pipeline.errors import BadInput
from sora_jax.models.vae import (
  decode_step,
  encode_stream,
  make_codec,
  pixels_to_float,
  pixels_to_uint8,
)

FILES = ("config.json", "params.safetensors", "statistics.json")


class FrozenVAE:
  """Codec, parameters and latent statistics in one: uint8 video to normalised latents and back.

  Attributes:
    config: settings of `make_codec`.
    fingerprint: sha256 over config, parameters and statistics.
    mean, std: float32 [c] of draws from the posteriors; normalised means, which `encode` returns,
      have mean 0 and a std of at most 1 per channel, less where the posterior is wide.
    time_factor, space_factor, latent_channels: of the codec.
  """

  def __init__(self, config: dict, params, statistics: dict):
    codec = nnx.eval_shape(lambda: make_codec(config, seed=0))
    self.structure = nnx.graphdef(codec)
    self.config, self.params = config, params
    self.mean = np.asarray(statistics["mean"], np.float32)
    self.std = np.asarray(statistics["std"], np.float32)
    self.time_factor, self.space_factor = codec.time_factor, codec.space_factor
    self.latent_channels = codec.latent_channels
    self.fingerprint = fingerprint(config, params, statistics)

  def encode(self, video):
    """uint8 [b,F,H,W,3] to normalised float32 latents [b,f,h,w,c]: the posterior's mean."""
    return next(self.encode_stream([video]))

  def decode(self, latent):
    """Normalised latents [b,f,h,w,c] to uint8 video [b,F,H,W,3]."""
    return next(self.decode_stream([latent]))

  def posterior(self, video):
    """uint8 [b,F,H,W,3] to (mean, logvar) [b,f,h,w,c], not normalised."""
    return next(self.posterior_stream([video]))

  def posterior_stream(self, chunks: Iterable) -> Iterator:
    """As `posterior`, for the chunks of one video (see `vae.encode_stream`), in constant memory."""
    pixels = (pixels_to_float(jnp.asarray(chunk, jnp.uint8)) for chunk in chunks)
    return encode_stream(self.structure, self.params, pixels)

  def encode_stream(self, chunks: Iterable) -> Iterator:
    """As `encode`, for the chunks of one video, in constant memory."""
    for mean, _ in self.posterior_stream(chunks):
      yield (mean - self.mean) / self.std

  def decode_stream(self, chunks: Iterable):
    """As `decode`, for the latent chunks of one video, in constant memory."""
    cache = None
    for chunk in chunks:
      latent = jnp.asarray(chunk, jnp.float32) * self.std + self.mean
      video, cache = decode_step(self.structure, self.params, latent, cache)
      yield pixels_to_uint8(video)


def latent_statistics(posteriors: Iterable) -> dict:
  """Mean and std per channel of latents drawn from posteriors, in float64 over all of them.

  The variance of a draw is the variance of the means plus the mean posterior variance, so a
  channel that carries nothing (its posterior is the prior) is not blown up: its means stay near 0.
  Batches are combined by the formula of Chan, Golub & LeVeque (1979), which does not cancel.

  Args:
    posteriors: pairs (mean, logvar) of arrays [...,c].
  Raises:
    BadInput: no latents, or a channel that is constant or not finite.
  """
  count, mean, squares, noise = 0, np.zeros(1), np.zeros(1), np.zeros(1)
  for means, logvars in posteriors:
    flat = np.asarray(means, np.float64).reshape(-1, np.shape(means)[-1])
    delta, total = flat.mean(0) - mean, count + len(flat)
    squares = squares + ((flat - flat.mean(0)) ** 2).sum(0) + delta**2 * count * len(flat) / total
    noise = noise + np.exp(np.asarray(logvars, np.float64)).reshape(flat.shape).sum(0)
    mean, count = mean + delta * len(flat) / total, total
  if not count:
    raise BadInput("latent_statistics: count=0 latents give no mean. Encode at least one clip.")
  std = np.sqrt((squares + noise) / count)
  bad = np.flatnonzero(~(np.isfinite(std) & (std > 1e-6)))
  if bad.size:
    raise BadInput(
      f"latent_statistics: std={std[bad[0]]:g} of channel {bad[0]} cannot be divided by"
      f" ({count} positions). Lower kl_weight or train the VAE for longer."
    )
  return dict(mean=mean.astype(np.float32), std=std.astype(np.float32))


def flat_params(params) -> dict[str, np.ndarray]:
  """Arrays by dotted path, in path order."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return dict(sorted((path_name(path), np.asarray(leaf)) for path, leaf in leaves))


def path_name(path) -> str:
  """Dotted name of a tree path; the wrapper of a variable is not part of it."""
  keys = (getattr(key, "key", getattr(key, "idx", None)) for key in path)
  return ".".join(str(key) for key in keys if key is not None)


def fingerprint(config: dict, params, statistics: dict) -> str:
  """sha256 over config, parameters (name, dtype, shape, bytes, in path order) and statistics."""
  digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
  for name, array in flat_params(params).items():
    digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
  for key in ("mean", "std"):
    digest.update(np.asarray(statistics[key], np.float32).tobytes())
  return digest.hexdigest()


def save_frozen_vae(folder, *, config: dict, params, statistics: dict) -> str:
  """Writes the folder; config.json, which makes it valid, comes last.

  Args:
    folder: made if absent.
    config: settings of `make_codec`, plain JSON values.
    params: parameter tree of the codec (`nnx.split`).
    statistics: of `latent_statistics`.
  Returns:
    The fingerprint.
  """
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  mark = fingerprint(config, params, statistics)
  numbers = {k: [float(x) for x in np.asarray(statistics[k], np.float32)] for k in ("mean", "std")}
  # Not by `save_file`, which makes a file that nobody else may read.
  (folder / "params.safetensors").write_bytes(safetensors.numpy.save(flat_params(params)))
  (folder / "statistics.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
  described = json.dumps({"codec": config, "fingerprint": mark}, indent=1)
  (folder / "config.json").write_text(described + "\n", encoding="utf-8")
  return mark


def load_frozen_vae(folder) -> FrozenVAE:
  """Reads what `save_frozen_vae` wrote.

  Raises:
    BadInput: a file is missing or unreadable, or the content has not the stored fingerprint.
  """
  folder = Path(folder)
  for name in FILES:
    absent = f"frozen_vae: {folder / name} does not exist. Train a VAE, or copy its whole folder."
    check_file(folder / name, "frozen_vae", absent)
  described = read_json(folder / "config.json")
  statistics = read_json(folder / "statistics.json")
  config, mark = described.get("codec"), described.get("fingerprint")
  if not isinstance(config, dict) or {"mean", "std"} - set(statistics):
    raise BadInput(
      f"frozen_vae: config.json or statistics.json of {folder} lacks its keys. Copy it again."
    )
  try:
    vae = FrozenVAE(config, read_params(folder / "params.safetensors", config), statistics)
  except BadInput:
    raise
  except (TypeError, ValueError) as error:
    raise BadInput(
      f"frozen_vae: config.json or statistics.json of {folder} is damaged ({error})."
      " Copy the folder again."
    ) from error
  if vae.fingerprint != mark:
    raise BadInput(
      f"frozen_vae: {folder} has fingerprint {vae.fingerprint[:12]}, its config.json says"
      f" {str(mark)[:12]}: a file was changed or damaged. Copy the folder again."
    )
  return vae


def read_json(path: Path) -> dict:
  """Reads a JSON object; BadInput names the file."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise BadInput(f"frozen_vae: {path} is not JSON ({error}). Copy the folder again.") from error
  if not isinstance(value, dict):
    raise BadInput(f"frozen_vae: {path} holds no JSON object. Copy the folder again.")
  return value


def read_params(path: Path, config: dict):
  """Parameters of the codec that `config` describes; BadInput when they are another's."""
  try:
    stored = safetensors.numpy.load_file(path)
  except safetensors.SafetensorError as error:
    raise BadInput(f"frozen_vae: {path} is damaged ({error}). Copy the folder again.") from error
  abstract = nnx.state(nnx.eval_shape(lambda: make_codec(config, seed=0)))
  leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
  expected = {path_name(key): leaf.shape for key, leaf in leaves}
  if expected != {name: array.shape for name, array in stored.items()}:
    raise BadInput(
      f"frozen_vae: {path} does not hold the parameters of its config.json. Copy the folder again."
    )
  return jax.tree.unflatten(tree, [jnp.asarray(stored[path_name(key)]) for key, _ in leaves])

"""Text encoders by name, and the copy of one that a run keeps in `frozen/text/` to sample alone."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.access import check_file
from data_pipeline.errors import BadInput
from sora_jax.models.text.bytes import load_bytes
from sora_jax.models.text.encoder import TextEncoder, describe
from sora_jax.models.text.minilm import load_minilm

_ENCODERS: dict[str, Callable[[Path | None], TextEncoder]] = {
  "bytes": load_bytes,
  "minilm": load_minilm,
}
_CONFIG = "config.json"


def load_text_encoder(name: str, folder: str | os.PathLike | None = None) -> TextEncoder:
  """The text encoder called `name`.

  Args:
    name: "minilm" or "bytes".
    folder: where its files lie; None takes those of the installed package.
  Raises:
    BadInput: no encoder has this name, or its files are missing, damaged or another model's.
  """
  if name not in _ENCODERS:
    raise BadInput(
      f"text encoder: name={name!r} is not known. Choose one of {', '.join(sorted(_ENCODERS))}."
    )
  return _ENCODERS[name](None if folder is None else Path(folder))


def save_text_encoder(encoder: TextEncoder, folder: str | os.PathLike) -> None:
  """Keeps `encoder` in `folder`: `config.json` with its spec, and its files.

  Files are copies: a link would break when the folder moves, or pass on what is written into the
  file to every dataset and run. `config.json` comes last: a folder that has it is whole.

  Raises:
    BadInput: the folder holds another encoder already, or cannot be written.
  """
  folder = Path(folder)
  if (folder / _CONFIG).exists():
    kept = _read_config(folder)["fingerprint"]
    if kept != encoder.fingerprint:
      raise BadInput(
        f"text encoder {encoder.name}: folder={folder} keeps another encoder (fingerprint "
        f"{kept[:12]}, this one has {encoder.fingerprint[:12]}). Give a new folder."
      )
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in encoder.files.items():
      _keep(source.resolve(), folder / name)
    config = describe(encoder) | {"files": sorted(encoder.files)}
    part = folder / (_CONFIG + ".part")
    part.write_text(json.dumps(config, indent=2) + "\n")
    part.replace(folder / _CONFIG)
  except OSError as error:
    raise BadInput(
      f"text encoder {encoder.name}: folder={folder} cannot be written ({error.strerror}). "
      "Give a folder that can be written."
    ) from error


def load_frozen_text_encoder(folder: str | os.PathLike) -> TextEncoder:
  """The text encoder that `save_text_encoder` kept in `folder`.

  Raises:
    BadInput: nothing is kept there, or the files are not those that were kept.
  """
  folder = Path(folder)
  config = _read_config(folder)
  encoder = load_text_encoder(config["name"], folder if config["files"] else None)
  if encoder.fingerprint != config["fingerprint"]:
    raise BadInput(
      f"text encoder {encoder.name}: folder={folder} has fingerprint={encoder.fingerprint[:12]}, "
      f"its {_CONFIG} says {config['fingerprint'][:12]}: files have changed. Restore the folder."
    )
  return encoder


def _read_config(folder: Path) -> dict[str, Any]:
  path = folder / _CONFIG
  absent = (
    f"text encoder: file={path} is not the spec of a text encoder (it does not exist)."
    " Give the folder frozen/text of a run."
  )
  check_file(path, "text encoder", absent)
  try:
    config = json.loads(path.read_text())
    return {key: config[key] for key in ("name", "fingerprint", "files")}
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise BadInput(
      f"text encoder: file={path} is not the spec of a text encoder ({error}). "
      "Give the folder frozen/text of a run."
    ) from error


def _keep(source: Path, target: Path) -> None:
  """Copies `source` to `target` in one step."""
  if target.exists() and target.samefile(source):
    return
  part = target.with_name(target.name + ".part")
  part.unlink(missing_ok=True)
  shutil.copyfile(source, part)
  part.replace(target)

"""`sora inspect --clips` and `--export`: clips of a dataset one by one, as lines and as video."""

import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.records import SPLITS, ClipRecord, Record
from data_pipeline.video import EncodedVideo
from data_pipeline.video_writer import encode_video
from sora_jax.commands.progress import track
from sora_jax.models.frozen_vae import load_frozen_vae

_LATENT_FRAMES = 4  # decoded at once
_NAME_LENGTH = 80  # characters of an id in a file's name


def choose_rows(dataset: Dataset, split: str, limit: int) -> np.ndarray:
  """int64: rows of the index, ascending.

  Args:
    split: "" for all.
    limit: the first so many; 0 for all.
  Raises:
    BadInput: no such split, or no clips in it.
  """
  rows = dataset.indices(split) if split else np.arange(len(dataset))
  if not rows.size:
    have = ", ".join(name for name in SPLITS if name in dataset.splits)
    raise BadInput(f"inspect: --split={split} of {dataset.path} holds no clips. It has {have}.")
  return rows[:limit] if limit else rows


def describe_clip(record: Record) -> dict:
  """A record in plain values: where it is from, its size and rate, captions and scores.

  Of a latent: those of the frames that it was encoded from.
  """
  is_clip = isinstance(record, ClipRecord)
  frames, height, width = (
    record.video.shape[:3] if is_clip else (record.frames, record.height, record.width)
  )
  return {
    "id": record.id,
    "source": record.source,
    "split": record.split,
    "licence": record.licence,
    "start_frame": record.start_frame,
    "frames": frames,
    "fps": float(str(np.float32(record.fps))),  # 29.97, not the digits beyond what is stored
    "width": width,
    "height": height,
    "captions": list(record.captions),
    "scores": json.loads(record.scores or "{}"),
  }


def print_clips(dataset: Dataset, rows: Iterable[int]) -> dict:
  """Prints a JSON line a clip on stdout, but for the last: it is the result of the command."""
  last: dict = {}
  try:
    for row in rows:
      if last:
        print(json.dumps(last))
      last = describe_clip(dataset.read(int(row)))
    sys.stdout.flush()
  except BrokenPipeError:  # whoever reads has enough: `| head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  return last


class FrameReader:
  """Frames of a dataset's records: those stored, or those that its VAE makes of the latents.

  Raises:
    BadInput: a latent dataset without its VAE.
  """

  def __init__(self, dataset: Dataset):
    is_latent = dataset.kind == "latent"
    self._vae: Any = load_frozen_vae(dataset.path / "vae") if is_latent else None

  def frames(self, record: Record) -> Iterator[np.ndarray]:
    """uint8 RGB [H,W,3] each, a few in memory at a time."""
    if isinstance(record, ClipRecord):
      return record.video.frames() if isinstance(record.video, EncodedVideo) else iter(record.video)
    return itertools.islice(self._decode(record.latent), record.frames)

  def _decode(self, latent: np.ndarray) -> Iterator[np.ndarray]:
    cuts = [0, *range(1, len(latent), _LATENT_FRAMES), len(latent)]
    chunks = (latent[None, a:b].astype(np.float32) for a, b in itertools.pairwise(cuts))
    for video in self._vae.decode_stream(chunks):
      yield from np.asarray(video[0])


def export_clips(dataset: Dataset, rows: np.ndarray, folder: Path) -> dict:
  """Writes clips as video files, every pixel as it is, and `manifest.jsonl` beside them.

  The folder appears whole or not at all. A line of the manifest is that of `describe_clip`, and
  `path` of the file beside it: `sora curate --input=FOLDER/manifest.jsonl` reads it.

  Raises:
    BadInput: the folder exists, or cannot be made.
  """
  if folder.exists():
    raise BadInput(f"inspect: --export={folder} exists. Remove it, or name another folder.")
  partial = folder.with_name(f".{folder.name}.partial")
  try:
    shutil.rmtree(partial, ignore_errors=True)  # what a killed one left
    partial.mkdir(parents=True)
    _write_clips(dataset, rows, partial)
    partial.rename(folder)
  except OSError as error:
    if isinstance(error, (PermissionError, NotADirectoryError)):
      raise BadInput(f"inspect: --export={folder} cannot be made ({error.strerror}).") from error
    raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return {"exported": len(rows), "export": str(folder)}


def _write_clips(dataset: Dataset, rows: np.ndarray, folder: Path) -> None:
  reader, digits = FrameReader(dataset), len(str(len(dataset) - 1))
  with (folder / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
    for row in track(rows.tolist(), "export", len(rows)):
      record = dataset.read(row)
      line = {"path": file_name(row, digits, record.id), **describe_clip(record)}
      video = encode_video(
        reader.frames(record),
        width=line["width"],
        height=line["height"],
        fps=line["fps"],
        codec="lossless",
      )
      (folder / line["path"]).write_bytes(video.data)
      manifest.write(json.dumps(line) + "\n")


def file_name(row: int, digits: int, name: str) -> str:
  """Unique by the row, and safe everywhere: letters, digits, "-" and "_", no folder."""
  plain = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[-_NAME_LENGTH:]
  return f"{row:0{digits}d}_{plain}.mp4"

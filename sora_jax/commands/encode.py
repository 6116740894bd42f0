"""`sora encode`: clip records to latent records."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes

from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.records import ClipRecord, LatentRecord
from data_pipeline.writer import DatasetWriter
from sora_jax.commands.options import make_parser
from sora_jax.commands.progress import say, track
from sora_jax.generate.encode import encode_clips
from sora_jax.models.frozen_vae import FrozenVAE, load_frozen_vae, save_frozen_vae
from sora_jax.models.text.encoder import TextEncoder, describe
from sora_jax.models.text.registry import load_text_encoder, save_text_encoder

SHARD_BYTES = 2**28
TEXT_CLIPS = 512  # clips whose captions are encoded together


def parser():
  p = make_parser(
    "encode",
    "Encodes clip records with a trained VAE and a text encoder.",
    "sora encode --workdir=runs/demo/vae --text=minilm --data=runs/demo/clips "
    "--out=runs/demo/latents",
  )
  p.add_argument("--workdir", required=True, help="finished run of a VAE")
  p.add_argument("--text", default="minilm", help="text encoder: minilm (token states) or bytes")
  p.add_argument("--text-folder", help="folder with the encoder's files; default: its package")
  p.add_argument("--data", required=True, help="dataset of clip records")
  p.add_argument("--out", required=True, help="folder of the latent dataset")
  p.add_argument("--rows", type=int, default=64, help="clips encoded at once (default 64)")
  p.add_argument(
    "--patch-side",
    type=int,
    default=2,
    help="sides become multiples of so many latents (default 2)",
  )
  p.add_argument(
    "--captions", type=int, default=0, help="captions kept of each clip (default 0: all)"
  )
  return p


def run(args) -> dict:
  if args.rows < 1 or args.patch_side < 1 or args.captions < 0:
    raise BadInput(
      f"encode: --rows={args.rows}, --patch-side={args.patch_side} must be at least 1, "
      f"--captions={args.captions} at least 0."
    )
  encoder = load_text_encoder(args.text, args.text_folder)
  vae = load_frozen_vae(Path(args.workdir) / "frozen" / "vae")
  clips = Dataset.open(args.data, kind="clip")
  dataset = encode_dataset(
    clips,
    vae,
    encoder,
    Path(args.out),
    rows=args.rows,
    patch_side=args.patch_side,
    captions=args.captions,
  )
  return {"out": str(args.out), "clips": len(dataset), "fingerprint": dataset.fingerprint}


def encode_dataset(
  clips: Dataset,
  vae: FrozenVAE,
  encoder: TextEncoder,
  out: Path,
  *,
  rows: int,
  patch_side: int,
  captions: int,
) -> Dataset:
  """Writes the latents of `clips`, or opens them when they are there already.

  Args:
    clips: what to encode.
    vae, encoder: of pixels and of captions.
    out: folder of the latent dataset.
    rows: clips encoded at once.
    patch_side: sides become multiples of so many latents.
    captions: kept of each clip; 0 for all.
  Raises:
    BadInput: the folder holds latents of other clips, another VAE or text encoder.
  """
  meta = {
    "clips": clips.fingerprint,
    "vae": vae.fingerprint,
    "text": describe(encoder),
    "patch_side": patch_side,
    "captions": captions,
  }
  if (out / "meta.json").exists():
    dataset = Dataset.open(out, kind="latent")
    changed = [key for key in meta if dataset.meta.get(key) != meta[key]]
    if changed:
      raise BadInput(
        f"encode: {out} holds latents of other {', '.join(changed)}. "
        "Give another --out, or remove it."
      )
    say(f"encode: {out} is there already, {len(dataset)} clips")
    return dataset
  with DatasetWriter(out, "latent", name="latents", shard_bytes=SHARD_BYTES, meta=meta) as writer:
    pairs = ((record, record.video) for record in map(clips.read, range(len(clips))))
    encoded = encode_clips(vae, pairs, rows=rows, patch_side=patch_side)
    encoded = (item._replace(key=trim(item.key, captions)) for item in encoded)
    for record in track(latent_records(encoded, encoder), "encode", len(clips)):
      writer.add(record)
    statistics = {"mean": vae.mean, "std": vae.std}
    save_frozen_vae(
      writer.folder / "vae", config=vae.config, params=vae.params, statistics=statistics
    )
    save_text_encoder(encoder, writer.folder / "text")
  return Dataset.open(out, kind="latent")


def trim(record: ClipRecord, captions: int) -> ClipRecord:
  """The record with its first captions, 0 for all; of its video a pixel is copied, to save memory.

  A view would keep the whole video.
  """
  return dataclasses.replace(
    record,
    video=record.video[:1, :1, :1].copy(),
    captions=record.captions[: captions or None],
    truth=b"",
  )


def latent_records(encoded, encoder: TextEncoder) -> Iterator[LatentRecord]:
  """Adds token ids and states of the captions to encoded clips, many clips at a time."""
  waiting = []
  for item in encoded:
    waiting.append(item)
    if len(waiting) == TEXT_CLIPS:
      yield from _with_text(waiting, encoder)
      waiting = []
  yield from _with_text(waiting, encoder)


def _with_text(items, encoder):
  words = sorted({caption for item in items for caption in item.key.captions})
  ids = dict(zip(words, encoder.tokenize(words), strict=True))
  states = dict(zip(words, encoder.encode(words), strict=True)) if encoder.width else {}
  for record, latent, (frames, height, width), crop in items:
    yield LatentRecord(
      id=record.id,
      source=record.source,
      licence=record.licence,
      split=record.split,
      start_frame=record.start_frame,
      frames=frames,
      height=height,
      width=width,
      crop=crop,
      fps=record.fps,
      latent=latent.astype(ml_dtypes.bfloat16),
      captions=record.captions,
      text_ids=tuple(ids[c] for c in record.captions),
      text_states=tuple(states[c].astype(ml_dtypes.bfloat16) for c in record.captions) or None
      if states
      else None,
      attributes=record.attributes,
    )

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
from sora_jax.generate.encode import check_clips, encode_clips
from sora_jax.models.frozen_vae import FrozenVAE, load_frozen_vae, save_frozen_vae
from sora_jax.models.text.encoder import TextEncoder, describe
from sora_jax.models.text.registry import load_text_encoder, save_text_encoder

SHARD_BYTES = 2**28
TEXT_CLIPS = 512  # clips whose captions are encoded together, fewer when their latents are large
TEXT_BYTES = 2**27  # of latents that wait for that
CAPTIONS_KEPT = 2**14  # captions remembered: about 150 MB of MiniLM states


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
  p.add_argument(
    "--rows",
    type=int,
    default=64,
    help="clips encoded at once (default 64; fewer where they have many pixels)",
  )
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
    rows: the most clips encoded at once.
    patch_side: sides become multiples of so many latents.
    captions: kept of each clip; 0 for all.
  Raises:
    BadInput: the folder holds latents of other clips, another VAE or text encoder; the clips are
      too small or of too many shapes, which is seen before anything is written.
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
  check_clips(clips.index, vae, patch_side)
  with DatasetWriter(out, "latent", name="latents", shard_bytes=SHARD_BYTES, meta=meta) as writer:
    read = map(clips.read, range(len(clips)))
    pairs = ((trim(record, captions), record.video) for record in read)
    encoded = encode_clips(vae, pairs, rows=rows, patch_side=patch_side)
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
  words = Captions(encoder)
  waiting, held = [], 0
  for item in encoded:
    waiting.append(item)
    held += item.latent.nbytes
    if len(waiting) == TEXT_CLIPS or held >= TEXT_BYTES:
      yield from _with_text(waiting, words)
      waiting, held = [], 0
  yield from _with_text(waiting, words)


class Captions:
  """Ids and states by caption; the first CAPTIONS_KEPT are kept, so that they are encoded once."""

  def __init__(self, encoder: TextEncoder):
    self._encoder = encoder
    self._known: dict[str, tuple] = {}

  def __call__(self, captions: set[str]) -> dict[str, tuple]:
    """(ids, states) of each caption; states bf16, or None if the encoder has none."""
    new = sorted(captions - self._known.keys())
    encoder, states = self._encoder, [None] * len(new)
    if encoder.width:
      states = [state.astype(ml_dtypes.bfloat16) for state in encoder.encode(new)]
    found = dict(zip(new, zip(encoder.tokenize(new), states, strict=True), strict=True))
    answer = {caption: self._known.get(caption) or found[caption] for caption in captions}
    if len(self._known) < CAPTIONS_KEPT:
      self._known |= found
    return answer


def _with_text(items, words: Captions):
  known = words({caption for item in items for caption in item.key.captions})
  for record, latent, (frames, height, width), crop in items:
    texts = [known[caption] for caption in record.captions]
    has_states = bool(texts) and texts[0][1] is not None
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
      text_ids=tuple(ids for ids, _ in texts),
      text_states=tuple(states for _, states in texts) if has_states else None,
      attributes=record.attributes,
    )

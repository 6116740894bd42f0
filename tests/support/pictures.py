"""Pictures with known content for the tests of curation."""

import cv2
import numpy as np


def texture(seed: int, height: int, width: int) -> np.ndarray:
  """Structure at every scale, as photographs have it: uint8 RGB [height,width,3]."""
  rng = np.random.default_rng(seed)
  total = np.zeros((height, width, 3), np.float32)
  for scale in (4, 8, 16, 32, 64):
    shape = (height // scale + 2, width // scale + 2, 3)
    coarse = rng.normal(size=shape).astype(np.float32) * scale**0.75
    total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
  total = 128 + 45 * total / total.std()
  return np.clip(total, 0, 255).astype(np.uint8)


def shifted(picture: np.ndarray, right: float, down: float, shape: tuple[int, int]) -> np.ndarray:
  """The middle of a picture, its content moved by so many pixels: [*shape,3]."""
  return warped(picture, 1.0, right, down, shape)


def warped(
  picture: np.ndarray, scale: float, right: float, down: float, shape: tuple[int, int]
) -> np.ndarray:
  """The middle of a picture, grown by `scale` about it, then moved."""
  height, width = picture.shape[:2]
  centre = np.array([(width - 1) / 2, (height - 1) / 2])
  middle = np.array([(shape[1] - 1) / 2 + right, (shape[0] - 1) / 2 + down])
  matrix = np.array([[scale, 0, 0], [0, scale, 0]], np.float64)
  matrix[:, 2] = middle - scale * centre
  return cv2.warpAffine(picture, matrix, shape[::-1], flags=cv2.INTER_CUBIC)

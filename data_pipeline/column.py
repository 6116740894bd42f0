"""A field of a record: its dtype, shape, unit and meaning, and how it lies in a shard."""

import dataclasses
from functools import cached_property

import ml_dtypes
import numpy as np

_TEXT = ("str", "bytes")
_NUMPY = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Column:
  """One field of a record.

  Attributes:
    dtype: a numpy name, "bfloat16" (stored as its uint16 bits), "str" or "bytes".
    shape: () for one value; a number is a fixed length, a name a free one, and the same name is the
      same length throughout a record.
    unit: of the values.
    meaning: what the field says.
    ragged: by tokenizer a tuple with one array of `shape` for every caption, stored end to end.
  """

  dtype: str
  shape: tuple[int | str, ...]
  unit: str
  meaning: str
  ragged: bool = False

  @cached_property
  def numpy_dtype(self) -> np.dtype:
    return _NUMPY.get(self.dtype) or np.dtype(self.dtype)

  @cached_property
  def stored_dtype(self) -> np.dtype:
    return np.dtype(np.uint16) if self.dtype == "bfloat16" else self.numpy_dtype

  @cached_property
  def is_text(self) -> bool:
    return self.dtype in _TEXT

  @cached_property
  def has_shape(self) -> bool:
    """The shape is stored too, as TFDS does from two free sides on."""
    return not self.ragged and sum(isinstance(side, str) for side in self.shape) > 1

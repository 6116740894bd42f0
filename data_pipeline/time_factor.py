"""How many pixel frames a latent frame stands for: the time factor of a dataset's VAE.

Latent 0 is of frame 0 alone, latent i of frames k(i-1)+1 .. ki for a factor of k. Latent datasets
say it in `meta.time_factor`; of older ones it is read from the VAE that they keep.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from data_pipeline.errors import BadInput

KEY = "time_factor"


def time_factor_of(meta: Mapping, folder: Path) -> int:
  """The time factor of a latent dataset, at least 1.

  Args:
    meta: facts of the dataset's maker.
    folder: of the dataset; its `vae/config.json` is read where `meta` has no `time_factor`.
  Raises:
    BadInput: neither says it, or it is no whole number of at least 1.
  """
  found = meta[KEY] if KEY in meta else _factor_of_codec(folder / "vae" / "config.json")
  if isinstance(found, bool) or not isinstance(found, int) or found < 1:
    raise BadInput(
      f"dataset: time_factor={found!r} of {folder} is no whole number of frames a latent. Say it "
      "in the writer's meta, or encode the clips anew (sora encode)."
    )
  return found


def _factor_of_codec(path: Path) -> int | None:
  """The factor of a kept codec: its own, or the product of its levels' strides in time."""
  try:
    codec = json.loads(path.read_text(encoding="utf-8"))["codec"]
    if KEY in codec:
      return codec[KEY]
    return math.prod(time for time, _ in codec["strides"])
  except (OSError, ValueError, KeyError, TypeError):
    return None

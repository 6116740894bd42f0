"""What a device can do at most, by its kind: dense bfloat16 matrix products, no sparsity.

Source: the vendors' data sheets (cloud.google.com/tpu/docs; NVIDIA's of each GPU), per JAX device:
of a TPU v2, v3 or 7x chip, each of its two cores is one.
"""

import re

# Whole words of `Device.device_kind`, lower case, most special first -> FLOP/s.
_PEAKS = (
  ("tpu v2", 22.5e12),
  ("tpu v3", 61.5e12),
  ("tpu v4 lite", 138e12),
  ("tpu v4", 275e12),
  ("tpu v5 lite", 197e12),
  ("tpu v5e", 197e12),
  ("tpu v5p", 459e12),
  ("tpu v5", 459e12),
  ("tpu v6 lite", 918e12),
  ("tpu v6e", 918e12),
  ("tpu7x", 1153.5e12),
  ("gb200", 2500e12),
  ("b200", 2250e12),
  ("h200 nvl", 835e12),
  ("h200", 989.4e12),
  ("h100 pcie", 756e12),
  ("h100 nvl", 835e12),
  ("h100", 989.4e12),
  ("a100", 312e12),
  ("l40s", 362e12),
  ("l40", 181e12),
  ("a10g", 70e12),
  ("l4", 121e12),
)


def peak_flops(device_kind: str) -> float | None:
  """FLOP/s of a device in bfloat16; None for a kind that is not in the table, such as a CPU, or
  a slice of a GPU (MIG)."""
  kind = device_kind.lower()
  if re.search(r"\bmig\b", kind):
    return None
  return next((peak for words, peak in _PEAKS if re.search(rf"\b{words}\b", kind)), None)

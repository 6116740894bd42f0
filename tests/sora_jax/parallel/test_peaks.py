"""Peaks by the names that JAX gives devices."""

import pytest

from sora_jax.parallel.peaks import peak_flops


@pytest.mark.parametrize(
  "kind, tera",
  [
    ("TPU v4", 275),
    ("TPU v5 lite", 197),
    ("TPU v5", 459),
    ("TPU v6 lite", 918),
    ("TPU7x", 1153.5),
    ("NVIDIA H100 80GB HBM3", 989.4),
    ("NVIDIA H100 PCIe", 756),
    ("NVIDIA H200", 989.4),
    ("NVIDIA GB200", 2500),
    ("NVIDIA B200", 2250),
    ("NVIDIA A100-SXM4-80GB", 312),
    ("NVIDIA L40S", 362),
    ("NVIDIA L4", 121),
    ("NVIDIA L40", 181),
    ("NVIDIA H200 NVL", 835),
  ],
)
def test_peak_of_a_kind(kind, tera):
  assert peak_flops(kind) == pytest.approx(tera * 1e12)


def test_no_peak_is_made_up():
  for kind in ("cpu", "NVIDIA GeForce RTX 9090", "NVIDIA RTX A1000", "NVIDIA H100 MIG 1g.10gb"):
    assert peak_flops(kind) is None

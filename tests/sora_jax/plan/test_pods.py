"""Pods by name."""

import pytest

from data_pipeline.errors import BadInput
from sora_jax.plan import pods
from sora_jax.plan.pods import KINDS, describe_devices, parse_topology


@pytest.mark.parametrize(
  ("text", "name", "chips", "devices"),
  [
    ("v5p:4x4x8", "v5p:4x4x8", 128, 128),
    ("v6e:256", "v6e:16x16", 256, 256),
    ("V6E:16x16", "v6e:16x16", 256, 256),
    ("v5p:64", "v5p:4x4x4", 64, 64),
    ("tpu7x:4x4x4", "tpu7x:4x4x4", 64, 128),  # two devices a chip
    ("h100:64", "h100:64", 64, 64),
    ("b200:4", "b200:4", 4, 4),
  ],
)
def test_parses(text, name, chips, devices):
  pod = parse_topology(text)
  assert (pod.name, pod.chips, pod.devices) == (name, chips, devices)


def test_slices_multiply():
  pod = parse_topology("v5p:4x4x4", slices=3)
  assert (pod.name, pod.chips) == ("3 x v5p:4x4x4", 192)


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("v9:4x4", "--topology=v9:4x4 is none of"),
    ("v5p:4x4", "is no shape of v5p. Give one as v5p:16x16x16"),
    ("v6e:100", "slices of v6e have 1, 4, 8, 16, 32, 64, 128, 256 chips"),
    ("v6e:0x4", "is no shape of v6e"),
    ("h100:8x8", "is no shape of h100. Give one as h100:64"),
    ("h100:12", "is no number of hosts of 8 h100"),
    ("h100", "is no shape of h100"),
  ],
)
def test_refuses(text, said):
  with pytest.raises(BadInput, match=said):
    parse_topology(text)


def test_every_kind_has_a_peak():
  for kind in KINDS.values():
    assert kind.peak > 1e14 and kind.hbm > 1e10, kind
  assert KINDS["tpu7x"].peak == pytest.approx(2307e12 / 2)  # of a chip's two devices


@pytest.mark.parametrize(("topology", "extra"), [("v5e:4", "plan"), ("h100:8", "cuda")])
def test_without_its_compiler(topology, extra, monkeypatch):
  monkeypatch.setattr(pods, "find_spec", lambda name: None)
  with pytest.raises(BadInput, match=rf"not installed. Install sora_jax\[{extra}\]"):
    describe_devices(parse_topology(topology))


def test_a_slice_that_the_compiler_does_not_know():
  with pytest.raises(BadInput, match="no devices of --topology=v5e:3x5"):
    describe_devices(parse_topology("v5e:3x5"))

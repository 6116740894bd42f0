"""Seconds of collectives, against the closed forms of "How to Scale Your Model", ch. 3."""

import pytest
from absent import Gpu, Tpu, tpus

from sora_jax.plan.collectives import Collective
from sora_jax.plan.network import LINK_EFFICIENCY, collective_seconds
from sora_jax.plan.pods import parse_topology

V = 1_000_000_000  # bytes of the whole array


def seconds(kind, group, topology, slices=1, devices=None):
  pod = parse_topology(topology, slices)
  devices = devices or tpus(pod)
  one = Collective(kind, V, tuple(group), "fsdp")
  return collective_seconds(one, pod, devices) * LINK_EFFICIENCY


LINK = 100e9  # of v5p, one way


@pytest.mark.parametrize(
  ("kind", "topology", "group", "wanted"),
  [
    # A ring of 4: both directions at once.
    ("all-gather", "v5p:4x4x4", range(4), 3 / 4 * V / (2 * LINK)),
    ("reduce-scatter", "v5p:4x4x4", range(4), 3 / 4 * V / (2 * LINK)),
    ("all-reduce", "v5p:4x4x4", range(4), 2 * 3 / 4 * V / (2 * LINK)),
    # Two rings of 4.
    ("all-gather", "v5p:4x4x4", range(16), 15 / 16 * V / (4 * LINK)),
    # A ring of 4 carries n/8 of it over its busiest link, a line of 2 carries half of it.
    ("all-to-all", "v5p:4x4x4", range(4), V * 4 / (8 * LINK)),
    ("all-to-all", "v5p:2x2x1", (0, 1), V / 2 / LINK),
    # 2 x 2 has no rings: a line along each axis.
    ("all-gather", "v5p:2x2x1", range(4), 3 / 4 * V / (2 * LINK)),
    ("collective-permute", "v5p:4x4x4", (0, 1), V / LINK),
    ("all-gather", "v5p:4x4x4", (0,), 0.0),
  ],
)
def test_on_a_torus(kind, topology, group, wanted):
  assert seconds(kind, group, topology) == pytest.approx(wanted)


def test_a_v6e_axis_wraps_at_sixteen():
  line = seconds("all-gather", range(4), "v6e:4x4")
  ring = seconds("all-gather", range(16), "v6e:16x16")
  assert line == pytest.approx(3 / 4 * V / LINK) and ring == pytest.approx(15 / 16 * V / (2 * LINK))


def test_a_torus_that_is_no_whole_cube_has_no_rings():
  line, ring = (seconds("all-gather", range(4), pod) for pod in ("v5p:2x2x4", "v5p:4x4x4"))
  assert line == pytest.approx(2 * ring)


def test_between_slices_the_data_centre_carries_a_share():
  group = range(128)  # two slices of 64: each chip carries its 64th of the array
  found = seconds("all-reduce", group, "v5p:4x4x4", slices=2)
  assert found == pytest.approx(2 * (V / 64) / 2 / 6.25e9)
  # What is exchanged one to one goes whole, half of it to the other slice.
  found = seconds("all-to-all", group, "v5p:4x4x4", slices=2)
  assert found == pytest.approx(V / 2 / 6.25e9)


def test_two_cores_of_a_chip_have_a_link_of_their_own():
  cores = [Tpu((0, 0, 0), 0)] * 2
  found = seconds("all-gather", (0, 1), "tpu7x:2x2x1", devices=cores)
  assert found == pytest.approx(V / 2 / (6 * 50e9))


@pytest.mark.parametrize(("group", "wire"), [((0,), 0), ((0, 1), V)])
def test_who_permutes_with_itself_sends_nothing(group, wire):
  assert Collective("collective-permute", V, group, "").wire == wire


def test_on_hosts_of_gpus():
  gpus = [Gpu(i) for i in range(32)]
  inside = seconds("all-gather", range(8), "h100:32", devices=gpus)
  assert inside == pytest.approx(7 / 8 * V / 450e9)
  # All 32: each host gets 3/4 of it through eight cards.
  assert seconds("all-gather", range(32), "h100:32", devices=gpus) == pytest.approx(
    max(3 / 4 * V / (8 * 50e9), 31 / 32 * V / 450e9)
  )
  # One GPU of each host: alone with its card.
  across = seconds("all-gather", range(0, 32, 8), "h100:32", devices=gpus)
  assert across == pytest.approx(3 / 4 * V / 50e9)
  assert seconds("all-to-all", range(16), "h100:32", devices=gpus) == pytest.approx(V / 2 / 50e9)
  assert seconds("all-reduce", range(0, 32, 8), "h100:32", devices=gpus) == pytest.approx(
    2 * across
  )
  assert seconds("collective-permute", (0, 8), "h100:32", devices=gpus) == pytest.approx(V / 50e9)

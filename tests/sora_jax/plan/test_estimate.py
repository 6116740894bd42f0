"""The clock, on programs written by hand, and products against XLA's own count."""

import jax
import jax.numpy as jnp
import pytest
from absent import tpus

from sora_jax.plan import hlo
from sora_jax.plan.estimate import HOST_RATE, PRODUCTS, STREAMS, Attention, _products, estimate
from sora_jax.plan.kernels import EFFICIENCIES, efficiency
from sora_jax.plan.network import LINK_EFFICIENCY
from sora_jax.plan.pods import KINDS, parse_topology

POD = parse_topology("v5p:4x4x4")
MESH = dict(data=1, fsdp=16, context=4, tensor=1)
KIND = KINDS["v5p"]


def walk(body: str, attention=None, computations: str = ""):
  entry = f"ENTRY %main (a: f32[]) -> f32[] {{\n{body}\n}}\n"
  text = f"HloModule m, is_scheduled=true\n\n{computations}\n{entry}"
  attention = attention or Attention(0.0, 1, 128)
  return estimate(hlo.parse(text), POD, tpus(POD), MESH, attention)


GATHER = "replica_groups=[16,4]<=[64], dimensions={0}"
GATHER_SECONDS = 3 / 4 * 4e9 / (2 * KIND.link * LINK_EFFICIENCY)
READ = 4 * 8e9 / (KIND.hbm_rate * STREAMS)  # 8e9 bytes in and out of `copy`, twice


def test_what_waits_stops_the_clock():
  found = walk(
    "  %a = f32[1000000000]{0} parameter(0)\n"
    f"  %g = f32[1000000000]{{0}} all-gather(%a), {GATHER}"
  )
  assert found.seconds == pytest.approx(GATHER_SECONDS)
  assert found.parts == {"collectives over context": pytest.approx(GATHER_SECONDS)}
  assert found.wire == {("all-gather", "context"): 3e9} and found.hidden == 0


def test_what_starts_and_ends_apart_runs_beside():
  program = (
    "  %a = f32[250000000]{0} parameter(0)\n"
    "  %b = f32[2000000000]{0} parameter(1)\n"
    f"  %s = (f32[250000000]{{0}}, f32[1000000000]{{0}}) all-gather-start(%a), {GATHER}\n"
    "  %c = f32[2000000000]{0} negate(%b)\n"
    "  %d = f32[1000000000]{0} all-gather-done(%s)"
  )
  found = walk(program)
  work = 2 * 8e9 / (KIND.hbm_rate * STREAMS)
  assert found.seconds == pytest.approx(max(work, GATHER_SECONDS))
  assert found.hidden == pytest.approx(min(work, GATHER_SECONDS))
  assert found.wire == {("all-gather", "context"): 3e9}


@pytest.mark.parametrize(
  "roles",
  ["branch_computations={%quick, %slow}", "true_computation=%quick, false_computation=%slow"],
)
def test_a_conditional_takes_its_slowest_branch(roles):
  branches = """%quick (p: f32[4]) -> f32[4] {
  %p = f32[2000000000]{0} parameter(0)
  ROOT %q = f32[4]{0} negate(%p)
}

%slow (p: f32[4]) -> f32[4] {
  %p = f32[2000000000]{0} parameter(0)
  %y = f32[2000000000]{0} negate(%p)
  ROOT %z = f32[2000000000]{0} negate(%y)
}
"""
  found = walk(
    f"  %a = f32[2000000000]{{0}} parameter(0)\n  %c = f32[2] conditional(%i, %a, %a), {roles}",
    computations=branches,
  )
  assert found.seconds == pytest.approx(READ)


def test_loops_count_their_trips():
  body = """%cond (p: (s32[], f32[4])) -> pred[] {
  %p = (s32[], f32[2000000000]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[2000000000]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[2000000000]{0} get-tuple-element(%p), index=1
  %y = f32[2000000000]{0} negate(%x)
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %t = (s32[], f32[2000000000]{0}) tuple(%next, %y)
}
"""
  found = walk(
    "  %b = f32[2000000000]{0} parameter(0)\n  %zero = s32[] constant(0)\n"
    "  %a = (s32[], f32[2000000000]{0}) tuple(%zero, %b)\n"
    "  %w = (s32[], f32[2000000000]{0}) while(%a), condition=%cond, body=%body",
    computations=body,
  )
  assert found.hbm_bytes == pytest.approx(5 * 16e9, rel=1e-6)  # and the counter
  assert found.seconds == pytest.approx(5 * 16e9 / (KIND.hbm_rate * STREAMS), rel=1e-6)


def test_the_host_is_as_far_as_its_bus():
  found = walk(
    "  %a = f32[1000000000]{0} parameter(0)\n"
    "  %s = (f32[1000000000]{0:S(5)}, f32[1000000000]{0}, u32[]) copy-start(%a)\n"
    "  %d = f32[1000000000]{0:S(5)} copy-done(%s)"
  )
  assert found.seconds == pytest.approx(4e9 / HOST_RATE)


def test_slices_of_stacked_arrays_count_as_slices():
  body = """%f (p: f32[40,1000]) -> f32[1,1000] {
  %p = f32[40,1000]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[1,1000]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,1000}
}

%u (p: f32[40,1000]) -> f32[40,1000] {
  %p = f32[40,1000]{1,0} parameter(0)
  %x = f32[1,1000]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %s = f32[40,1000]{1,0} dynamic-update-slice(%p, %x, %i, %i)
}
"""
  found = walk(
    "  %a = f32[40,1000]{1,0} parameter(0)\n  %i = s32[] parameter(1)\n"
    "  %x = f32[1,1000]{1,0} fusion(%a, %i), kind=kLoop, calls=%f\n"
    "  %y = f32[40,1000]{1,0} fusion(%a, %x, %i), kind=kLoop, calls=%u",
    computations=body,
  )
  assert found.hbm_bytes == (4000 + 4 + 4000) + (4000 + 4000 + 4 + 4000)


def test_attention_takes_what_its_kernels_say():
  call = 'custom-call(%a), custom_call_target="tpu_custom_call"'
  found = walk(
    "  %a = bf16[2,4]{1,0} parameter(0)\n"
    f"  %splash_mha_fwd_segmented.1 = bf16[2,4]{{1,0}} {call}\n"
    f"  %splash_mha_dq_segmented.1 = bf16[2,4]{{1,0}} {call}\n"
    f"  %splash_mha_dkv_segmented.1 = bf16[2,4]{{1,0}} {call}",
    Attention(pairs=1e12, calls=1, head_dim=128),
  )
  rate = efficiency("v5p", 128)
  wanted = 128e12 / KIND.peak * (4 / rate.forward + 10 / rate.backward)
  assert found.seconds == pytest.approx(wanted) and found.kernels == 3


@pytest.mark.parametrize(
  ("equation", "left", "right"),
  [
    ("ij,jk->ik", (64, 32), (32, 48)),
    ("bij,bjk->bik", (8, 64, 32), (8, 32, 48)),
    ("bni,ihd->bnhd", (2, 64, 32), (32, 4, 8)),
    ("bnhd,hdi->bni", (2, 64, 4, 8), (4, 8, 32)),
  ],
)
def test_products_are_those_that_xla_counts(equation, left, right):
  f = lambda a, b: jnp.einsum(equation, a, b)  # noqa: E731
  lowered = jax.jit(f).lower(jnp.ones(left), jnp.ones(right))
  module = hlo.parse(lowered.compile().as_text())
  entry = module.computations[module.entry]
  shapes = {one.name: one.shapes for one in entry}
  found = sum(_products(module, one, shapes) for one in entry)
  assert found == pytest.approx(lowered.cost_analysis()["flops"], rel=1e-6)


def test_products_go_at_the_peak():
  found = walk(
    "  %a = bf16[20000,20000]{1,0} parameter(0)\n"
    "  %d = bf16[20000,20000]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
  )
  assert found.seconds == pytest.approx(2 * 20000**3 / (KIND.peak * PRODUCTS["tpu"]))
  assert found.product_flops == pytest.approx(2 * 20000**3)


def test_kinds_have_efficiencies():
  assert set(EFFICIENCIES) == set(KINDS)
  assert efficiency("tpu7x", 256).forward > efficiency("tpu7x", 128).forward

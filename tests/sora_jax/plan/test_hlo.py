"""Reading XLA's text, on programs that XLA compiles here."""

import jax
import jax.numpy as jnp
import pytest

from data_pipeline.errors import BadInput
from sora_jax.plan import collectives, hlo

KERNEL = """HloModule jit_f, is_scheduled=true

%body (p: f32[4]) -> f32[4] {
  %p = f32[4]{0:T(128)S(1)} parameter(0)
  %k.1 = (bf16[2,3]{1,0:T(8,128)}, f32[]) custom-call(%p), frontend_attributes={kernel_metadata={

"xprof":"{"
}}, metadata={op_name="jit(f)/attend"}
  ROOT %add.1 = f32[4]{0} add(%p, /*index=1*/%p), metadata={op_name="jit(f)/add"}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %fusion.7 = f32[4]{0} fusion(%a), kind=kLoop, calls=%body
}
"""


def test_reads_kernels_whose_notes_go_over_lines():
  module = hlo.parse(KERNEL)
  assert module.entry == "main" and set(module.computations) == {"body", "main"}
  parameter, kernel, add = module.computations["body"]
  assert parameter.shapes == (hlo.Shape("f32", (4,), 1),)
  assert kernel.shapes == (hlo.Shape("bf16", (2, 3), 0), hlo.Shape("f32", (), 0))
  assert kernel.nbytes == 2 * 6 + 4 and kernel.source == "jit(f)/attend"
  assert add.operands == ("p", "p") and add.is_root
  assert module.fused(module.computations["main"][1]) == module.computations["body"]


@pytest.mark.parametrize(
  ("dtype", "wanted"), [("f32", 4), ("bf16", 2), ("pred", 1), ("s4", 0.5), ("f8e4m3fn", 1)]
)
def test_bytes_of_a_number(dtype, wanted):
  assert hlo.item_bytes(dtype) == wanted


def test_counts_the_trips_of_a_scan():
  def f(x):
    return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, jnp.ones((7, 4, 4)))[0]

  module = hlo.parse(jax.jit(f).lower(jnp.ones((4, 4))).compile().as_text())
  loops = [i for c in module.computations.values() for i in c if i.opcode == "while"]
  assert [hlo.trip_count(module, loop) for loop in loops] == [7]


STEPPED = """HloModule m, is_scheduled=true

%cond (p: (s32[], f32[4])) -> pred[] {
  %p = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(9)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  ROOT %t = (s32[], f32[4]{0}) tuple(%next, %x)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %start = s32[] constant(1)
  %from = s32[] copy(%start)
  %t = (s32[], f32[4]{0}) tuple(%from, %a)
  %w = (s32[], f32[4]{0}) while(%t), condition=%cond, body=%body
}
"""


@pytest.mark.parametrize(
  ("change", "wanted"),
  [
    (("", ""), 4),  # 1, 3, 5, 7
    (("constant(1)", "constant(0)"), 5),
    (("constant(2)", "constant(1)"), 8),
    (("direction=LT", "direction=LE"), 5),
  ],
)
def test_counters_start_and_step_as_they_say(change, wanted):
  module = hlo.parse(STEPPED.replace(*change) if change[0] else STEPPED)
  assert hlo.trip_count(module, module.computations["main"][-1]) == wanted


def test_a_loop_of_data_has_no_known_trips():
  def f(x, n):
    return jax.lax.while_loop(lambda s: s[1] < n, lambda s: (jnp.sin(s[0]), s[1] + 1), (x, 0))[0]

  module = hlo.parse(jax.jit(f).lower(jnp.ones(4), 3).compile().as_text())
  (loop,) = [i for c in module.computations.values() for i in c if i.opcode == "while"]
  with pytest.raises(BadInput, match="runs as often as data say"):
    hlo.trip_count(module, loop)


def test_what_is_no_program_is_said():
  with pytest.raises(ValueError, match="no entry"):
    hlo.parse("HloModule empty\n")


MESH = dict(data=1, fsdp=16, context=4, tensor=1)


@pytest.mark.parametrize(
  ("groups", "wanted", "axis"),
  [
    ("replica_groups={{0,1,2,3},{4,5,6,7}}", (0, 1, 2, 3), "context"),
    ("replica_groups={}", tuple(range(64)), "fsdp+context"),
    ("replica_groups=[16,4]<=[64]", (0, 1, 2, 3), "context"),
    ("replica_groups=[4,16]<=[16,4]T(1,0)", tuple(range(0, 64, 4)), "fsdp"),
    (
      "replica_groups=mesh['axis_0'=16,'axis_1'=1,'axis_2'=4] {'axis_0'}, use_global=true",
      tuple(range(0, 64, 4)),
      "fsdp",
    ),
    (
      "replica_groups=mesh['a'=4,'b'=16], device_ids=([16,4]T(1,0)) {'b'}",
      tuple(range(0, 64, 4)),
      "fsdp",
    ),
  ],
)
def test_groups_in_every_form(groups, wanted, axis):
  found = collectives.first_group(groups, 64)
  assert found == wanted and collectives.axes_of(found, MESH) == axis


def test_an_unknown_form_is_said():
  with pytest.raises(ValueError, match="no replica groups"):
    collectives.first_group("replica_groups=?", 8)


def test_wire_of_what_xla_inserts(run_support):
  """Eight CPU devices, 2 x 4, in a process of their own."""
  whole, found = 64 * 64 * 4, run_support("wire.py", devices=8)
  assert found["gathered"] == {"all-gather over fsdp": 3 / 4 * whole}
  assert found["gathered by all"] == {"all-gather over data+fsdp": 7 / 8 * whole}
  assert found["summed"] == {"all-reduce over fsdp": 2 * 3 / 4 * 64 * 4}

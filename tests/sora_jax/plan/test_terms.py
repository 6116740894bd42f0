"""Every term of the estimate by hand: a program a term, and all that the clock says of it."""

import pytest
from absent import Gpu, tpus

from sora_jax.plan import hlo
from sora_jax.plan.estimate import Attention, Estimate, estimate
from sora_jax.plan.pods import parse_topology

PEAK, HBM, LINK, HOST = 0.85 * 459e12, 0.85 * 2.765e12, 0.9 * 100e9, 16e9  # of v5p
MESH = dict(data=1, fsdp=16, context=4, tensor=1)
CONTEXT, FSDP = "replica_groups=[16,4]<=[64]", "replica_groups=[4,16]<=[16,4]T(1,0)"
ALONE = "replica_groups=[64,1]<=[64]"
G = 1_000_000_000
GATHER = 3 * G / (2 * LINK)  # of 4 GB: three parts of four, both ways round a ring
OTHER = 15 / 16 * 4 * G / (4 * LINK)  # the same over two rings
STREAM = 16 * G / HBM  # 8 GB read, 8 GB written
OVER, TO_HOST = "collectives over context", "copies to the host's memory"
ARRAYS = "%a = f32[2000000000]{0} parameter(0)\n%s = f32[250000000]{0} parameter(1)"
NEGATE = "f32[2000000000]{0} negate(%a)"
STARTS = "(f32[250000000]{0}, f32[1000000000]{0}) all-gather-start(%s), "
GATHERED = f"f32[1000000000]{{0}} all-gather(%s), {CONTEXT}"
SQUARE = "%m = bf16[10000,10000]{1,0} parameter(2)"
DOT = "bf16[10000,10000]{1,0} dot(%m, %m), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
FLOPS, MOVED = 2e12, 3 * 2e8
CUBLAS = (
  '(bf16[10000,10000]{1,0}, s8[9]{0}) custom-call(%m, %m), custom_call_target="__cublas$gemm"'
)
KERNEL = "bf16[2]{0} custom-call(%m)"
FUSED = """%both (l: bf16[], r: bf16[]) -> bf16[] {
  %l = bf16[10000,10000]{1,0} parameter(0)
  %r = bf16[10000,10000]{1,0} parameter(1)
  %d = bf16[10000,10000]{1,0} dot(%l, %r), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %g = bf16[NUMBERS]{0} all-gather(%d), replica_groups=[16,4]<=[64]
}"""
TWO = """%two (l: f32[]) -> f32[] {
  %l = f32[250000000]{0} parameter(0)
  %g = f32[1000000000]{0} all-gather(%l), replica_groups=[16,4]<=[64]
  ROOT %h = f32[1000000000]{0} all-reduce(%g), replica_groups=[16,4]<=[64]
}"""
NESTED = """%inner (l: bf16[], r: bf16[]) -> bf16[] {
  %l = bf16[10000,10000]{1,0} parameter(0)
  ROOT %d = bf16[10000,10000]{1,0} dot(%l, %l), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%outer (l: bf16[], r: bf16[]) -> bf16[] {
  %l = bf16[10000,10000]{1,0} parameter(0)
  ROOT %f = bf16[10000,10000]{1,0} fusion(%l), kind=kOutput, calls=%inner
}"""
TAKEN = """%taken (p: f32[], i: s32[]) -> f32[] {
  %p = f32[1000000]{0} parameter(0)
  %i = s32[100]{0} parameter(1)
  %b = f32[1000000]{0} bitcast(%p)
  ROOT %t = f32[100]{0} gather(%b, %i), offset_dims={}
}"""


def body(*lines: str) -> str:
  named = [line if line.startswith("%") else f"%n{i} = {line}" for i, line in enumerate(lines)]
  return "\n".join(f"  {one}" for line in named for one in line.split("\n"))


DONE = "f32[1000000000]{0} all-gather-done"
# Waits for a gather, hides a part of another one behind a stream, multiplies, attends.
LAYER = (ARRAYS, SQUARE, GATHERED, f"%b = {STARTS}{CONTEXT}", NEGATE, f"{DONE}(%b)", DOT)
LOOP = f"%once (p: ()) -> () {{\n{body(*LAYER, f'%splash_mha_fwd = {KERNEL}')}\n}}"
ATTENTION = Attention(pairs=3e9, calls=3, head_dim=128)  # a third of them a call
FORWARD, BACKWARD = 4 * 128e9 / (0.5 * 459e12), 10 * 128e9 / (0.5 * 459e12)


def layers(count: int) -> Estimate:
  """What comes out of so many."""
  seconds = {OVER: 2 * GATHER - STREAM, "memory": STREAM}
  seconds |= {"products": FLOPS / PEAK, "attention": FORWARD}
  return Estimate(
    count * sum(seconds.values()),
    {part: count * one for part, one in seconds.items()},
    count * STREAM,
    {("all-gather", "context"): count * 6 * G},
    count * FLOPS,
    count * (16 * G + MOVED),
    count,
  )


# Of v5p:4x4x4: name -> lines of the program, other computations, what comes out.
TERMS = {
  "one engine at a time": (
    (ARRAYS, f"%p = {STARTS}{CONTEXT}", f"%q = {STARTS}{CONTEXT}", NEGATE,
     f"{DONE}(%p)", f"{DONE}(%q)"), "",
    Estimate(2 * GATHER, {"memory": STREAM, OVER: 2 * GATHER - STREAM}, STREAM,
             {("all-gather", "context"): 6 * G}, 0, 16 * G, 0),
  ),
  "two axes at once": (
    (ARRAYS, f"%p = {STARTS}{CONTEXT}", f"%q = {STARTS}{FSDP}", f"{DONE}(%p)", f"{DONE}(%q)"), "",
    Estimate(GATHER, {OVER: GATHER}, OTHER,
             {("all-gather", "context"): 3 * G, ("all-gather", "fsdp"): 3.75 * G}, 0, 0, 0),
  ),
  "a copy waits for HBM": (
    ("%a = f32[1000000000]{0} parameter(0)",
     "%p = (f32[500000000]{0:S(1)}, f32[1000000000]{0}, u32[]) copy-start(%a)",
     "f32[500000000]{0:S(1)} copy-done(%p)"), "",
    Estimate(2 * G / HBM, {"memory": 2 * G / HBM}, 0, {}, 0, 2 * G, 0),
  ),
  "a copy beside work hides no collective": (
    (ARRAYS, "%p = (f32[500000000]{0:S(1)}, f32[1000000000]{0}, u32[]) copy-start(%a)", NEGATE,
     "f32[500000000]{0:S(1)} copy-done(%p)"), "",
    Estimate(STREAM, {"memory": STREAM}, 0, {}, 0, 18 * G, 0),
  ),
  "to the host, apart": (
    ("%a = f32[1000000000]{0} parameter(0)",
     "%p = (f32[1000000000]{0:S(5)}, f32[1000000000]{0}, u32[]) copy-start(%a)",
     "f32[1000000000]{0:S(5)} copy-done(%p)"), "",
    Estimate(4 * G / HOST, {TO_HOST: 4 * G / HOST}, 0, {}, 0, 4 * G, 0),
  ),
  "to the host beside work hides no collective": (
    (ARRAYS, "%p = (f32[1000000000]{0:S(5)}, f32[1000000000]{0}, u32[]) copy-start(%a)", NEGATE,
     "f32[1000000000]{0:S(5)} copy-done(%p)"), "",
    Estimate(4 * G / HOST, {"memory": STREAM, TO_HOST: 4 * G / HOST - STREAM}, 0, {}, 0, 20 * G, 0),
  ),
  "to the host": (
    ("%a = f32[1000000000]{0} parameter(0)", "f32[1000000000]{0:S(5)} copy(%a)"), "",
    Estimate(4 * G / HOST, {TO_HOST: 4 * G / HOST}, 0, {}, 0, 4 * G, 0),
  ),
  "a product that is longer than its exchange": (
    (SQUARE, "bf16[4000]{0} fusion(%m, %m), kind=kOutput, calls=%both"),
    FUSED.replace("NUMBERS", "4000"),
    Estimate(FLOPS / PEAK, {"products": FLOPS / PEAK}, 0, {("all-gather", "context"): 6000}, FLOPS,
             4e8 + 8000, 0),
  ),
  "an exchange that is longer than its product": (
    (SQUARE, "bf16[2000000000]{0} fusion(%m, %m), kind=kOutput, calls=%both"),
    FUSED.replace("NUMBERS", "2000000000"),
    Estimate(GATHER, {"products": FLOPS / PEAK, OVER: GATHER - FLOPS / PEAK}, 0,
             {("all-gather", "context"): 3 * G}, FLOPS, 4e8 + 4e9, 0),
  ),
  "two exchanges in one": (
    (ARRAYS, "f32[1000000000]{0} fusion(%s), kind=kCustom, calls=%two"), TWO,
    Estimate(3 * GATHER, {OVER: 3 * GATHER}, 0,
             {("all-gather", "context"): 3 * G, ("all-reduce", "context"): 6 * G}, 0, 0, 0),
  ),
  "with itself": (
    (ARRAYS, f"f32[250000000]{{0}} all-gather(%s), {ALONE}"), "",
    Estimate(0, {}, 0, {("all-gather", ""): 0}, 0, 0, 0),
  ),
  "a loop": (
    ("%p = () parameter(0)",
     '() while(%p), condition=%c, body=%once, backend_config={"known_trip_count":{"n":"5"}}'), LOOP,
    layers(5),
  ),
  "an exchange and loops of one": (
    (ARRAYS, GATHERED, "%p = () parameter(0)",
     '() while(%p), condition=%c, body=%one, backend_config={"known_trip_count":{"n":"4"}}'),
    f"%one (p: ()) -> () {{\n{body(ARRAYS, GATHERED)}\n}}",
    Estimate(5 * GATHER, {OVER: 5 * GATHER}, 0, {("all-gather", "context"): 15 * G}, 0, 0, 0),
  ),
  "copies in a loop": (
    ("%p = () parameter(0)",
     '() while(%p), condition=%c, body=%one, backend_config={"known_trip_count":{"n":"4"}}'),
    f"""%one (p: ()) -> () {{
{body(ARRAYS, "%p = (f32[500000000]{0:S(1)}, f32[2000000000]{0}, u32[]) copy-start(%a)")}
  %d = f32[500000000]{{0:S(1)}} copy-done(%p)
}}""",
    Estimate(8 * G / HBM, {"memory": 8 * G / HBM}, 0, {}, 0, 8 * G, 0),
  ),
  "two products in one": (
    (SQUARE, "bf16[10000,10000]{1,0} fusion(%m), kind=kOutput, calls=%outer"),
    f"""%outer (l: bf16[], r: bf16[]) -> bf16[] {{
{body(SQUARE.replace("(2)", "(0)"), DOT, DOT)}
}}""",
    Estimate(2 * FLOPS / PEAK, {"products": 2 * FLOPS / PEAK}, 0, {}, 2 * FLOPS, 4e8, 0),
  ),
  "a loop in a loop": (
    ("%p = () parameter(0)",
     '() while(%p), condition=%c, body=%often, backend_config={"known_trip_count":{"n":"3"}}'),
    LOOP + """

%often (p: ()) -> () {
  %p = () parameter(0)
  %w = () while(%p), condition=%c, body=%once, backend_config={"known_trip_count":{"n":"5"}}
}""",
    layers(15),
  ),
  "a call": (
    ("%p = () parameter(0)", "() call(%p), to_apply=%once"), LOOP,
    layers(1),
  ),
  "a gradient of keys and values": (
    (SQUARE, f"%splash_mha_dkv = {KERNEL}"), "",
    Estimate(4 / 7 * BACKWARD, {"attention": 4 / 7 * BACKWARD}, 0, {}, 0, 0, 1),
  ),
  "a gradient of queries": (
    (SQUARE, f"%splash_mha_dq = {KERNEL}"), "",
    Estimate(3 / 7 * BACKWARD, {"attention": 3 / 7 * BACKWARD}, 0, {}, 0, 0, 1),
  ),
  "a product within a fusion within a fusion": (
    (SQUARE, "bf16[10000,10000]{1,0} fusion(%m), kind=kOutput, calls=%outer"), NESTED,
    Estimate(FLOPS / PEAK, {"products": FLOPS / PEAK}, 0, {}, FLOPS, 4e8, 0),
  ),
  "six passes": (
    (SQUARE, DOT + ", operand_precision={highest,highest}"), "",
    Estimate(6 * FLOPS / PEAK, {"products": 6 * FLOPS / PEAK}, 0, {}, FLOPS, MOVED, 0),
  ),
  "three passes": (
    (SQUARE, DOT + ", operand_precision={high,high}"), "",
    Estimate(3 * FLOPS / PEAK, {"products": 3 * FLOPS / PEAK}, 0, {}, FLOPS, MOVED, 0),
  ),
  "a product that waits for HBM": (  # 2 x 8 x 10,000 x 10,000 FLOPs are less than its bytes
    ("%v = bf16[8,10000]{1,0} parameter(0)", SQUARE,
     "bf16[8,10000]{1,0} dot(%v, %m), lhs_contracting_dims={1}, rhs_contracting_dims={0}"), "",
    Estimate((2e8 + 3.2e5) / HBM, {"memory": (2e8 + 3.2e5) / HBM}, 0, {}, 1.6e9, 2e8 + 3.2e5, 0),
  ),
  "products in groups": (  # four of [64, 16] by [16, 32]: XLA's convolution says so
    ("%l = bf16[64,64]{1,0} parameter(0)", "%r = bf16[16,128]{1,0} parameter(1)",
     "bf16[64,128]{1,0} convolution(%l, %r), dim_labels=bf_io->bf, feature_group_count=4"), "",
    Estimate(28672 / HBM, {"memory": 28672 / HBM}, 0, {}, 8 * 64 * 16 * 32, 28672, 0),
  ),
  "a slice": (
    ("%a = f32[1000]{0} parameter(0)", "f32[10]{0} dynamic-slice(%a, %i)"), "",
    Estimate(80 / HBM, {"memory": 80 / HBM}, 0, {}, 0, 80, 0),
  ),
  "a slice replaced": (
    ("%a = f32[1000]{0} parameter(0)", "%u = f32[10]{0} parameter(1)", "%i = s32[] parameter(2)",
     "f32[1000]{0} dynamic-update-slice(%a, %u, %i)"), "",
    Estimate(80 / HBM, {"memory": 80 / HBM}, 0, {}, 0, 80, 0),
  ),
  "rows taken": (
    ("%a = f32[1000000]{0} parameter(0)", "%i = s32[100]{0} parameter(1)",
     "f32[100]{0} fusion(%a, %i), kind=kLoop, calls=%taken"), TAKEN,
    Estimate(1200 / HBM, {"memory": 1200 / HBM}, 0, {}, 0, 1200, 0),
  ),
  "memory on the chip": (
    ("%a = f32[1000]{0:S(1)} parameter(0)", "%b = f32[1000]{0} parameter(1)",
     "f32[1000]{0:S(1)} add(%a, %b)"), "",
    Estimate(4000 / HBM, {"memory": 4000 / HBM}, 0, {}, 0, 4000, 0),
  ),
}  # fmt: skip


def check(found: Estimate, wanted: Estimate) -> None:
  for name, one, other in zip(Estimate._fields, found, wanted, strict=True):
    assert one == pytest.approx(other, rel=1e-9), name
  assert sum(found.parts.values()) == pytest.approx(found.seconds)


@pytest.mark.parametrize("name", TERMS)
def test_terms_by_hand(name):
  lines, computations, wanted = TERMS[name]
  pod = parse_topology("v5p:4x4x4")
  text = f"HloModule m\n\n{computations}\n\nENTRY %main () -> () {{\n{body(*lines)}\n}}\n"
  check(estimate(hlo.parse(text), pod, tpus(pod), MESH, ATTENTION), wanted)


@pytest.mark.parametrize(
  ("instruction", "passes"),
  [
    (DOT, 1),
    (DOT + ", operand_precision={highest,highest}", 15),
    (DOT + ", operand_precision={high,high}", 3),
    (CUBLAS, 1),  # its second result is its workspace
  ],
)
def test_products_on_gpus_by_hand(instruction, passes):
  pod = parse_topology("h100:8")
  text = f"HloModule m\n\nENTRY %main () -> () {{\n{body(SQUARE, instruction)}\n}}\n"
  found = estimate(hlo.parse(text), pod, [Gpu(i) for i in range(8)], {"data": 8}, ATTENTION)
  seconds = passes * FLOPS / (0.7 * 989.4e12)
  workspace = 9 * (instruction == CUBLAS)
  check(found, Estimate(seconds, {"products": seconds}, 0, {}, FLOPS, MOVED + workspace, 0))

"""Every attention backend against each segment alone: values, gradients, leaks, blocks left out."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal, jaxprs_in_params
from jax.sharding import AbstractMesh

from data_pipeline.errors import BadInput
from sora_jax.attention.registry import AUTO, BACKENDS, choose_backend, segment_attention
from sora_jax.attention.saved import ATTENDED

PALLAS = [name for name, backend in BACKENDS.items() if backend.interpreted]
KERNELS = [*PALLAS, "blocked"]  # what leaves blocks out


def attention(backend: str):
  return segment_attention(backend, interpret=backend in PALLAS)


def tokamax_reference():
  """tokamax's adapter on its own XLA operation; the gradient is made of what the adapter saved."""
  base = pytest.importorskip(
    "tokamax._src.ops.attention.base", reason="tokamax is of the extra [hopper]"
  )
  from sora_jax.attention.tokamax import tokamax_segment_attention

  op = base.DotProductAttention()

  def vjp(statistics, out, d_out, q, k, v, *, mask, logits_scale, **rest):
    assert rest["bias"] is None and not rest["dropout_rate"]
    highest, total = statistics  # [b,heads,n]
    seen = mask.as_array(q.shape[1], k.shape[1])
    scores = jnp.where(seen, jnp.einsum("bqhd,bkhd->bhqk", q, k) * logits_scale, -jnp.inf)
    weights = jnp.exp(scores - highest[..., None]) / total[..., None]
    shared = jnp.einsum("bqhd,bqhd->bhq", out, d_out)[..., None]
    d_scores = weights * (jnp.einsum("bqhd,bkhd->bhqk", d_out, v) - shared) * logits_scale
    return dict(
      q=jnp.einsum("bhqk,bkhd->bqhd", d_scores, k),
      k=jnp.einsum("bhqk,bqhd->bkhd", d_scores, q),
      v=jnp.einsum("bhqk,bqhd->bkhd", weights, d_out),
    )

  return functools.partial(tokamax_segment_attention, op=op.replace(vjp=vjp))


def made(backend: str):
  return tokamax_reference() if backend == "tokamax" else attention(backend)


def rows(slots: int, *lengths: list[int]) -> np.ndarray:
  """Segment ids [b,slots]: for each row segments of these lengths, then padding."""
  ids = np.zeros((len(lengths), slots), np.int32)
  for row, sizes in zip(ids, lengths, strict=True):
    row[: sum(sizes)] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
  return ids


# Segments inside a block, over several, at their edges, filling the row; a row of padding; slots
# that are no multiple of any block.
PACKS = {
  "mixed": rows(300, [7, 200, 1, 60], [300], []),
  "aligned": rows(512, [128, 256, 128]),
}


def arrays(ids, heads=2, head_dim=32, dtype=jnp.float32):
  """q, k, v and a weight for each output, [b,n,heads,head_dim]."""
  rng = np.random.default_rng(1)
  shape = (*ids.shape, heads, head_dim)
  return [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4)]


def alone(q, k, v, ids):
  """Each segment by itself in JAX's own attention; padding gives zeros."""
  out = jnp.zeros_like(q)
  for row in range(len(ids)):
    for segment in range(1, ids[row].max() + 1):
      here = np.flatnonzero(ids[row] == segment)
      part = slice(here[0], here[-1] + 1)
      found = jax.nn.dot_product_attention(*(x[None, row, part] for x in (q, k, v)))
      out = out.at[row, part].set(found[0])
  return out


def weighted(attend, ids, weight):
  """A loss on the outputs of all segments, as a function of q, k, v."""
  real = (jnp.asarray(ids) > 0)[..., None, None]
  return lambda q, k, v: jnp.sum(jnp.where(real, attend(q, k, v) * weight, 0).astype(jnp.float32))


@functools.cache
def truth(pack: str):
  """Arrays of a pack, and loss and gradients of each segment by itself, in float32."""
  ids = PACKS[pack]
  made = arrays(ids, head_dim=24)  # no power of two
  loss = weighted(lambda *x: alone(*x, ids), ids, made[-1])
  with jax.default_matmul_precision("highest"):
    return made, *jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*made[:3])


def off(found, wanted) -> float:
  """The largest relative distance of a gradient."""
  return max(
    float(jnp.linalg.norm(one - other) / jnp.linalg.norm(other))
    for one, other in zip(found, wanted, strict=True)
  )


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients_are_those_of_each_segment_alone(backend, pack):
  ids = PACKS[pack]
  (q, k, v, weight), expected, wanted = truth(pack)
  attend = made(backend)
  loss = weighted(lambda *x: attend(*x, jnp.asarray(ids)), ids, weight)
  with jax.default_matmul_precision("highest"):
    value, found = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)
  assert float(value) == pytest.approx(float(expected), abs=2e-4)
  assert off(found, wanted) < 2e-6


@pytest.mark.parametrize("backend", KERNELS)
def test_bfloat16_is_as_near_as_bfloat16_gets(backend):
  ids = PACKS["mixed"]
  exact, _, wanted = truth("mixed")
  q, k, v, weight = (x.astype(jnp.bfloat16) for x in exact)

  def distance(name):
    attend = attention(name)
    loss = weighted(lambda *x: attend(*x, jnp.asarray(ids)), ids, weight)
    return off(jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v), wanted)

  assert distance(backend) < 1.5 * distance("xla") < 0.03


def changed_elsewhere(x, ids, segment):
  """Huge numbers in all slots but those of one segment of row 0."""
  mine = ids == segment
  mine[1:] = False
  return jnp.where(mine[..., None, None], x, 1e4)


def leak(attend, ids, segment: int) -> float:
  """How far output and gradients of a segment move when all others change."""
  q, k, v, weight = arrays(ids)
  mine = weight * (ids[0] == segment)[None, :, None, None]

  @jax.jit
  def run(q, k, v, mine):  # one program for all segments
    loss = weighted(lambda *x: attend(*x, jnp.asarray(ids)), ids, mine)
    return attend(q, k, v, jnp.asarray(ids))[0], *(
      g[0] for g in jax.grad(loss, (0, 1, 2))(q, k, v)
    )

  before = run(q, k, v, mine)
  after = run(*(changed_elsewhere(x, ids, segment) for x in (q, k, v)), mine)
  here = np.flatnonzero(ids[0] == segment)
  return max(float(jnp.max(jnp.abs(a[here] - b[here]))) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("segment", [1, 2, 3])
@pytest.mark.parametrize("backend", [*KERNELS, "tokamax"])
def test_nothing_leaks_across_segments(backend, segment):
  assert leak(made(backend), PACKS["mixed"], segment) == 0


@pytest.mark.parametrize("backend", KERNELS)
def test_padding_between_segments_and_ids_that_come_again(backend):
  """A run of equal ids is a segment: what comes again is another one, whatever its id."""
  ids = rows(300, [100, 60, 100])
  ids[0, 120:130] = 0
  again = ids.copy()
  again[again == 3] = 1
  q, k, v, _ = arrays(ids)
  attend = attention(backend)
  real = ids[0] > 0
  apart, same = attend(q, k, v, jnp.asarray(ids)), attend(q, k, v, jnp.asarray(again))
  assert bool(jnp.array_equal(apart[:, real], same[:, real]))
  assert np.isfinite(apart).all()


@pytest.mark.parametrize("backend", KERNELS)
def test_the_leak_test_sees_a_kernel_that_takes_the_row_for_one_segment(backend):
  careless = lambda q, k, v, s: attention(backend)(q, k, v, jnp.minimum(s, 1))  # noqa: E731
  assert leak(careless, PACKS["mixed"], 2) > 0.01


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """The rows are short here, and the tests' options are not for tokamax, which parses them."""
  monkeypatch.setattr(sys, "argv", ["sora"])
  monkeypatch.setattr("sora_jax.attention.blocked.BLOCK", 64)


@pytest.mark.parametrize("backend", KERNELS)
def test_blocks_across_segments_are_not_even_read(backend, monkeypatch):
  """0 * NaN is NaN: a kernel that computes a block and masks it would show it."""
  monkeypatch.setattr("sora_jax.attention.splash.BLOCKS", (128,))
  ids = PACKS["aligned"]
  q, k, v, weight = arrays(ids)
  others = jnp.asarray(ids != 2)[..., None, None]
  poisoned = [jnp.where(others, jnp.nan, x) for x in (q, k, v)]
  attend = attention(backend)
  out, pull = jax.vjp(lambda *x: attend(*x, jnp.asarray(ids)), *poisoned)
  for found in (out, *pull(jnp.where(others, jnp.nan, weight))):
    assert np.isfinite(found[ids == 2]).all()
    assert np.isnan(found[ids != 2]).all()  # the poison was there


def live_kernels(jaxpr) -> int:
  """Kernels in a program whose output somebody reads; XLA drops the others."""
  variables = [*(x for eqn in jaxpr.eqns for x in eqn.invars), *jaxpr.outvars]
  read = {x for x in variables if not isinstance(x, Literal)}
  count = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "pallas_call":
      count += any(x in read for x in eqn.outvars)
    else:
      count += sum(map(live_kernels, jaxprs_in_params(eqn.params)))
  return count


@pytest.mark.parametrize("backend", PALLAS)
def test_its_forward_pass_is_kept_under_its_name(backend):
  ids = PACKS["aligned"]
  q, attend = arrays(ids)[0], attention(backend)
  policies = jax.checkpoint_policies

  def kernels(policy):
    layer = jax.checkpoint(lambda x: attend(*[jnp.sin(x)] * 3, jnp.asarray(ids)), policy=policy)
    return live_kernels(jax.make_jaxpr(jax.value_and_grad(lambda q: jnp.sum(layer(q))))(q).jaxpr)

  everything = kernels(policies.everything_saveable)
  assert everything == 3  # forward, and two for the gradients
  assert kernels(policies.save_only_these_names(ATTENDED)) == everything
  assert kernels(policies.nothing_saveable) == everything + 1


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend")  # of jax 0.12: docs/parallelism.md
@pytest.mark.parametrize("head_dim, dtype", [(64, "float32"), (128, "bfloat16"), (256, "bfloat16")])
@pytest.mark.parametrize(("backend", "platform"), [("splash", "tpu"), ("triton", "cuda")])
def test_kernels_lower_for_their_platform(backend, platform, head_dim, dtype):
  x = jax.ShapeDtypeStruct((2, 1100, 2, head_dim), dtype)
  ids = jax.ShapeDtypeStruct((2, 1100), "int32")
  attend = segment_attention(backend)
  gradient = jax.grad(lambda *a: jnp.sum(attend(*a).astype(jnp.float32)), (0, 1, 2))
  kind = {"tpu": "TPU v5p", "cuda": "NVIDIA H100 80GB HBM3"}[platform]
  device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
  with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device)):
    program = jax.jit(gradient).trace(x, x, x, ids).lower(lowering_platforms=(platform,)).as_text()
  assert program.count("custom_call @") >= 3


def test_the_choice_by_platform():
  assert {platform: choose_backend("auto", platform) for platform in ("tpu", "gpu", "cpu")} == {
    "tpu": "splash",
    "gpu": "triton",
    "cpu": "blocked",
  }
  assert set(AUTO.values()) <= set(BACKENDS)
  assert choose_backend("xla", "tpu") == "xla"
  with pytest.raises(BadInput, match="backend='splash' runs on tpu, and these devices are cpu"):
    choose_backend("splash", "cpu")
  with pytest.raises(BadInput, match=r"backend='flash9' is not one of \['auto'"):
    segment_attention("flash9")


def test_a_package_that_is_not_there_is_named(monkeypatch):
  for name in list(sys.modules):
    if name.startswith(("tokamax", "sora_jax.attention.tokamax")):
      monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, "tokamax", None)
  with pytest.raises(BadInput, match=r"needs the package tokamax.*Install sora_jax\[hopper\]"):
    segment_attention("tokamax")


def test_rows_that_splash_has_no_room_for():
  x = jax.ShapeDtypeStruct((1, 700_000, 1, 8), jnp.float32)
  ids = jax.ShapeDtypeStruct((1, 700_000), jnp.int32)
  with pytest.raises(BadInput, match="data.slots=700000 is above the 655360 of splash"):
    jax.eval_shape(segment_attention("splash"), x, x, x, ids)


def test_long_rows_use_larger_blocks(monkeypatch):
  """The path of rows of more than 524,288 slots, at a size that runs here."""
  monkeypatch.setattr("sora_jax.attention.splash.LONG_ROW", 256)
  monkeypatch.setattr("sora_jax.attention.splash.LONG_BLOCKS", (128, 256))
  ids, (x, _, wanted) = PACKS["mixed"], truth("mixed")
  loss = weighted(lambda *x: attention("splash")(*x, jnp.asarray(ids)), ids, x[-1])
  assert off(jax.jit(jax.grad(loss, (0, 1, 2)))(*x[:3]), wanted) < 2e-6

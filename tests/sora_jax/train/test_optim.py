"""The optimiser against the papers' formulas, written out in numpy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipeline.errors import BadInput
from sora_jax.train.averages import ExponentialAverage
from sora_jax.train.clip import NormHistory
from sora_jax.train.optim import advance, decay_mask, make_optimizer, make_schedule
from sora_jax.train.state import init_state

RATE = dict(lr=1e-3, schedule="constant", warmup_steps=0, total_steps=0)
RATE |= dict(decay_steps=0, min_lr_ratio=0.0)
RULE = dict(name="adamw", weight_decay=0.0, b1=0.9, b2=0.999, eps=1e-8, clip_norm=1.0)
RULE |= dict(clip_sigmas=0.0, clip_decay=0.99, momentum_dtype="float32", variance_dtype="float32")
SETTINGS = RATE | RULE
AVERAGES = {"ema": ExponentialAverage(0.9)}


def adamw(x, gradients, *, lr, b1, b2, eps, decay):
  """Loshchilov & Hutter 2019, algorithm 2, with a constant schedule multiplier."""
  m = v = np.zeros_like(x)
  for t, g in enumerate(gradients, 1):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    x = x - lr * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * x)
  return x


def test_adamw_decays_kernels_and_not_biases():
  random = np.random.RandomState(0)
  kernel, bias = random.randn(3, 4), random.randn(4)
  gradients = [(random.randn(3, 4), random.randn(4)) for _ in range(5)]
  constants = dict(lr=0.1, b1=0.9, b2=0.95, eps=1e-8)
  optimizer = make_optimizer(**SETTINGS | constants | dict(weight_decay=0.5, clip_norm=0.0))
  state = init_state({"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}, optimizer)
  step = jax.jit(lambda state, g: advance(state, g, optimizer, AVERAGES)[0])
  for g_kernel, g_bias in gradients:
    state = step(state, {"kernel": jnp.float32(g_kernel), "bias": jnp.float32(g_bias)})
  expected = adamw(kernel, [g for g, _ in gradients], decay=0.5, **constants)
  np.testing.assert_allclose(state.params["kernel"], expected, rtol=2e-5, atol=1e-6)
  expected = adamw(bias, [g for _, g in gradients], decay=0.0, **constants)
  np.testing.assert_allclose(state.params["bias"], expected, rtol=2e-5, atol=1e-6)
  assert int(state.step) == 5


def test_the_layer_axis_of_stacked_blocks_is_not_counted():
  tree = {
    "blocks": {"norm": {"scale": jnp.zeros((12, 8))}, "qkv": {"kernel": jnp.zeros((12, 8, 8))}},
    "levels": {"blocks": {"0": {"kernel": jnp.zeros((8, 8)), "bias": jnp.zeros(8)}}},
    "null": jnp.zeros(8),
    "caption": {"table": jnp.zeros((20, 8))},
  }
  tree["blocks"]["table"] = jnp.zeros((12, 6, 8))
  assert decay_mask(tree) == {
    "blocks": {"norm": {"scale": False}, "qkv": {"kernel": True}, "table": False},
    "levels": {"blocks": {"0": {"kernel": True, "bias": False}}},
    "null": False,
    "caption": {"table": True},
  }


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_modulation_of_blocks_stays_without_a_gradient(name):
  optimizer = make_optimizer(**SETTINGS | dict(name=name, lr=0.1, weight_decay=0.5))
  params = {"blocks": {"table": jnp.ones((2, 6, 4)), "kernel": jnp.ones((2, 4, 4))}}
  state = init_state(params, optimizer)
  state, _ = advance(state, jax.tree.map(jnp.zeros_like, params), optimizer, AVERAGES)
  np.testing.assert_array_equal(state.params["blocks"]["table"], params["blocks"]["table"])
  np.testing.assert_allclose(state.params["blocks"]["kernel"], 0.95, rtol=1e-5)


def test_gradient_norm_is_before_clipping_and_clipping_works():
  optimizer = make_optimizer(**SETTINGS | dict(lr=1.0, clip_norm=1.0, b1=0.0, b2=0.0, eps=1.0))
  state = init_state({"a": jnp.zeros(2), "b": jnp.zeros(())}, optimizer)
  gradients = {"a": jnp.array([2.0, 3.0]), "b": jnp.array(6.0)}
  step = jax.jit(lambda state, g: advance(state, g, optimizer, AVERAGES))
  state, metrics = step(state, gradients)
  assert float(metrics["grad_norm"]) == pytest.approx(7.0)
  clipped = np.array([2.0, 3.0]) / 7.0
  np.testing.assert_allclose(state.params["a"], -clipped / (clipped + 1.0), rtol=1e-5)


def test_clipping_can_be_switched_off():
  settings = SETTINGS | dict(lr=1.0, b1=0.0, b2=0.0, eps=1.0, clip_norm=0.0)
  optimizer = make_optimizer(**settings)
  gradients = {"a": jnp.array([2.0, 300.0])}
  updates, _ = optimizer.update(gradients, optimizer.init(gradients), gradients)
  np.testing.assert_allclose(updates["a"], [-2 / 3, -300 / 301], rtol=1e-5)


@pytest.mark.parametrize(
  "step, expected",
  # warm-up in 4 steps, then half a cosine over 60: cos(pi/3) = 1/2 at a third, 0 at the half
  [(0, 0.25), (3, 1.0), (4, 1.0), (24, 0.1 + 0.9 * 0.75), (34, 0.55), (64, 0.1), (99, 0.1)],
)
def test_cosine(step, expected):
  settings = RATE | dict(lr=2.0, schedule="cosine", warmup_steps=4, total_steps=64)
  rate = make_schedule(**settings | dict(min_lr_ratio=0.1))
  assert float(rate(step)) == pytest.approx(2.0 * expected, rel=1e-5)


@pytest.mark.parametrize(
  "step, expected",
  # the twenty steps after 80 fall by a twentieth each, the last step taken (99 are done) at 0.2
  [(0, 0.1), (9, 1.0), (79, 1.0), (80, 0.96), (89, 0.6), (98, 0.24), (99, 0.2), (200, 0.2)],
)
def test_warmup_stable_decay(step, expected):
  rate = make_schedule(
    lr=3.0, schedule="wsd", warmup_steps=10, total_steps=100, decay_steps=20, min_lr_ratio=0.2
  )
  assert float(rate(step)) == pytest.approx(3.0 * expected, rel=1e-5)


def test_constant_needs_no_length():
  rate = make_schedule(**RATE | dict(lr=0.5))
  assert [float(rate(step)) for step in (0, 10**6)] == [0.5, 0.5]


@pytest.mark.parametrize(
  "settings, text",
  [
    (dict(name="adam"), "name='adam' is not one of adamw"),
    (dict(schedule="linear"), "schedule='linear' is not one of constant, cosine, wsd"),
    (dict(lr=0.0), "lr=0.0 must be positive"),
    (dict(lr=float("nan")), "lr=nan must be positive"),
    (dict(clip_norm=float("inf")), "clip_norm=inf too, or 0 .off."),
    (dict(clip_norm=-1.0), "clip_norm=-1.0 too, or 0 .off."),
    (dict(clip_norm=float("nan")), "clip_norm=nan too, or 0 .off."),
    (dict(clip_sigmas=-1.0), "clip_sigmas=-1.0 must be 0"),
    (dict(momentum_dtype="float16"), "momentum_dtype='float16' is not one of float32, bfloat16"),
    (dict(variance_dtype="half"), "variance_dtype='half' is not one of float32, bfloat16"),
    (dict(variance_dtype="bfloat16"), "with b2=0.999 would stand still"),
    (dict(b2=1.0), "b2=1.0 must lie in"),
    (dict(eps=0.0), "eps=0.0 above 0"),
    (dict(schedule="cosine", warmup_steps=50, total_steps=50), "does not fit into total_steps=50"),
    (dict(schedule="wsd", decay_steps=60, total_steps=50), "does not fit into total_steps=50"),
  ],
)
def test_bad_settings(settings, text):
  with pytest.raises(BadInput, match=text):
    make_optimizer(**SETTINGS | settings)


def test_the_average_shares_no_buffer_with_the_parameters():
  optimizer = make_optimizer(**SETTINGS)
  params = {"kernel": jnp.ones((2, 2))}
  step = jax.jit(
    lambda state: advance(state, state.params, optimizer, AVERAGES)[0], donate_argnums=0
  )
  for state in (init_state(params, optimizer), jax.jit(lambda p: init_state(p, optimizer))(params)):
    ema = state.ema["kernel"]
    assert ema.unsafe_buffer_pointer() != state.params["kernel"].unsafe_buffer_pointer()
    step(state._replace(params={"kernel": jnp.copy(params["kernel"])}))  # donates both
    assert ema.is_deleted()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_momentum_in_bfloat16_alone(name):
  """First moments are halved, second ones and parameters stay float32; the path hardly changes."""
  params = {"blocks": {"kernel": jnp.ones((2, 4, 6))}, "head": {"kernel": jnp.ones((4, 3))}}
  target = jax.tree.map(lambda p: p + jnp.sin(jnp.arange(p.size)).reshape(p.shape), params)
  loss = lambda p: sum(jnp.sum((p[k]["kernel"] - target[k]["kernel"]) ** 2) for k in p)  # noqa: E731
  found, moments = {}, {}
  for dtype in ("float32", "bfloat16"):
    optimizer = make_optimizer(**SETTINGS | dict(name=name, lr=0.02, momentum_dtype=dtype))
    step = jax.jit(
      lambda p, s, o=optimizer: (lambda u: (optax.apply_updates(p, u[0]), u[1]))(
        o.update(jax.grad(loss)(p), s, p)
      )
    )
    now, state = params, optimizer.init(params)
    for _ in range(40):
      now, state = step(now, state)
    found[dtype] = float(loss(now))
    moments[dtype] = [str(x.dtype) for x in jax.tree.leaves(state) if x.ndim]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(now))
  assert set(moments["float32"]) == {"float32"}
  assert sorted(moments["bfloat16"])[:3] == ["bfloat16", "bfloat16", "float32"]
  first = float(loss(params))
  assert found["bfloat16"] == pytest.approx(found["float32"], abs=0.01 * first)
  assert found["float32"] < 0.8 * first


@pytest.mark.parametrize("variance", ["float32", "bfloat16"])
@pytest.mark.parametrize("param", ["float32", "bfloat16"])
def test_variance_is_kept_as_asked_whatever_the_parameters_are(variance, param):
  """Computed in float32 all the same: the path is that of float32 to what rounding leaves."""
  rng = np.random.default_rng(0)
  begin = jnp.asarray(rng.normal(size=(8, 8)) + 3, jnp.float32)
  gradients = [jnp.asarray(rng.normal(size=(8, 8)), jnp.float32) for _ in range(30)]
  settings = SETTINGS | dict(lr=0.05, b2=0.95, clip_norm=0.0)

  def train(variance, dtype):
    optimizer = make_optimizer(**settings | dict(variance_dtype=variance))
    params = {"kernel": begin.astype(dtype)}
    state = optimizer.init(params)
    for g in gradients:
      updates, state = optimizer.update({"kernel": g.astype(dtype)}, state, params)
      params = optax.apply_updates(params, updates)
    return params["kernel"], optax.tree.get(state, "nu")["kernel"]

  found, nu = train(variance, param)
  wanted, exact = train("float32", "float32")
  assert str(nu.dtype) == variance and str(found.dtype) == param
  np.testing.assert_allclose(nu.astype(jnp.float32), exact, rtol=0.03)
  apart = float(jnp.linalg.norm(found.astype(jnp.float32) - wanted))
  rounded = 0.2 if param == "bfloat16" else 0.02  # a step of 0.05 is three units of a 3 in bfloat16
  assert apart < rounded * float(jnp.linalg.norm(wanted - begin))


def test_clipping_by_history_is_part_of_the_state():
  optimizer = make_optimizer(**SETTINGS | dict(clip_norm=0.0, clip_sigmas=3.0, clip_decay=0.5))
  params = {"a": jnp.ones(3)}
  state = optimizer.init(params)
  for norm in (1.0, 1.0, 1.0, 100.0):
    _, state = optimizer.update({"a": jnp.full(3, norm / 3**0.5)}, state, params)
  (history,) = [part for part in state if isinstance(part, NormHistory)]
  assert int(history.count) == 4 and float(history.mean) == pytest.approx(15 / 16, rel=1e-3)

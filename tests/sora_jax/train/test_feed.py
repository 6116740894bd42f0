"""Time counts as waiting for data only when the devices had nothing left to do."""

import time

import jax
import jax.numpy as jnp
import pytest

from sora_jax.train.feed import Feed, is_running
from sora_jax.train.metrics import Counts, Meter
from sora_jax.train.state import Progress


class Slow:
  """Batches that take a while to come."""

  cursor = {"bin": 0}

  def __init__(self, seconds):
    self.seconds, self.totals = seconds, None

  def __next__(self):
    time.sleep(self.seconds)
    return {}


def feed_and_meter(seconds):
  meter = Meter()
  settings = dict(put=lambda batch: batch, count=lambda totals: Counts(1, 1, 1.0, 1))
  return Feed(Slow(seconds), **settings, progress=Progress({}), meter=meter), meter


@jax.jit
def work(x):
  return jax.lax.fori_loop(0, 4000, lambda _, y: jnp.tanh(y @ x), x).sum()


def test_no_wait_while_a_step_runs():
  x = jnp.full((256, 256), 1e-3)
  work(x).block_until_ready()
  feed, meter = feed_and_meter(0.01)
  in_flight = {"loss": work(x)}  # far longer than the batch takes
  feed.take(in_flight)
  assert is_running(in_flight) and meter.read()["data_wait_fraction"] == 0.0
  jax.block_until_ready(in_flight)
  assert not is_running(in_flight)
  feed.take(in_flight)
  assert meter.read()["data_wait_fraction"] > 0


def test_a_wait_with_nothing_in_flight_counts():
  feed, meter = feed_and_meter(0.05)
  feed.take()
  assert meter.read()["data_wait_fraction"] == pytest.approx(1.0, abs=0.3)

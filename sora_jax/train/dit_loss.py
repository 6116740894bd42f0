"""The DiT's loss on a packed batch: draws times and noise, predicts, scores the velocity."""

import jax.numpy as jnp
from flax import nnx

from sora_jax.diffusion.noise import segment_uniform, token_normal
from sora_jax.diffusion.objective import mean_by_time, velocity_error, weighted_ratio
from sora_jax.diffusion.path import interpolate
from sora_jax.nn.gather import gather_rows
from sora_jax.train.accumulate import WEIGHT

TIME_BINS = 10


def segment_times(batch, density, seed: int):
  """t of every segment [b,s], from its draw index and its count of noisy patches."""
  u = segment_uniform(seed, "time", batch["draw"])
  return density(u, batch["segment_tokens"].astype(jnp.float32))


def level_times(times):
  """Noise levels of a row [b,u=s+1]: 0 is t=0 (captions, padding, given), i is segment i's t."""
  return jnp.concatenate([jnp.zeros_like(times[:, :1]), times], axis=1)


def patch_weights(batch, segment_weight):
  """Loss weight of every slot [b,n]: its segment's, of [b,s], at noisy patches, 0 elsewhere."""
  weight = gather_rows(segment_weight[..., None], batch["segment"] - 1)[..., 0]
  noisy = (batch["level_index"] > 0) & (batch["token_index"] >= 0)
  return jnp.where(noisy, weight, 0.0)


def noisy_patches(batch, times, seed: int):
  """(x, e, z, t): clean patches, noise, noisy patches [b,n,p], and each slot's time [b,n]."""
  x = batch["latents"].astype(jnp.float32)
  t = gather_rows(level_times(times)[..., None], batch["level_index"])[..., 0]
  e = token_normal(
    seed, "noise", batch["draw"], batch["segment"], batch["token_index"], x.shape[-1]
  )
  return x, e, interpolate(x, e, t), t


def dit_errors(params, structure, batch, times, *, prediction, t_min, seed, attend, remat):
  """Velocity errors, weights and times of every slot, each [b,n], at given segment times [b,s]."""
  x, e, z, t = noisy_patches(batch, times, seed)
  model = nnx.merge(structure, params)
  output = model(z, level_times(times), batch, attend=attend, remat=remat)
  weight = patch_weights(batch, batch["segment_weight"])
  return velocity_error(prediction, output, x, e, z, t, t_min), weight, t


def make_dit_loss(structure, density, weighting, *, prediction, t_min, seed, attend, remat):
  """Builds `loss(params, frozen, batch) -> (loss, metrics)`.

  The loss is Σ w·weighting(t)‖v̂-v‖² / Σ w·E[weighting(t)] over the noisy patches of the global
  batch: w is the weight of a patch's segment, and the expectation is over the t that training draws
  for segments of its size. So a step of a single segment weighs it as one of many does.
  `loss_by_t` is the mean error in ten equal bins of t, `weight_by_t` the weight drawn in each.
  """

  def expected_weights(batch):
    return weighting.expected(density, batch["segment_tokens"].astype(jnp.float32))

  def loss(params, frozen, batch):
    del frozen  # token states come with the batch
    times = segment_times(batch, density, seed)
    error, weight, t = dit_errors(
      params,
      structure,
      batch,
      times,
      prediction=prediction,
      t_min=t_min,
      seed=seed,
      attend=attend,
      remat=remat,
    )
    weight = weight * weighting(t)
    expected = patch_weights(batch, batch["segment_weight"] * expected_weights(batch))
    by_time, weight_by_time = mean_by_time(error, weight, t, TIME_BINS)
    metrics = dict(loss_by_t=by_time, weight_by_t=weight_by_time)
    return weighted_ratio(error, weight, expected), {**metrics, WEIGHT: jnp.sum(expected)}

  return loss


def merge_by_time(metrics: dict, weights) -> dict:
  """The loss's metrics of a whole batch, of those of its microbatches [k,...]."""
  del weights  # those expected: each bin of t has its own, as they were drawn
  weight = metrics["weight_by_t"]
  total = jnp.sum(weight, 0)
  summed = jnp.sum(jnp.where(weight > 0, weight * metrics["loss_by_t"], 0.0), 0)
  by_time = jnp.where(total > 0, summed / jnp.maximum(total, 1e-12), jnp.nan)
  return dict(loss_by_t=by_time, weight_by_t=total)

"""The VAE's training loss: L1 on pixels, KL on latents, and further terms by name."""

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.errors import BadInput
from sora_jax.diffusion.noise import segment_keys
from sora_jax.models.vae import pixels_to_float
from sora_jax.train.accumulate import WEIGHT, weighted_average


def squared_error(decoded, video, frozen):
  """Mean squared error: sharpens PSNR, where L1 is content with the median."""
  del frozen
  return jnp.mean((decoded - video) ** 2)


# name -> function(decoded, video, frozen) -> scalar; the videos are float32 [b,F,H,W,3] in [-1, 1].
# `frozen` is what the step has beside its state: a dict of the weights that terms read and this
# loss does not train, by name: of a perceptual network, of a discriminator. The terms here need
# none, and `train` gives {}.
TERMS = {"l2": squared_error}


def sample_posterior(mean, logvar, seed: int, draw):
  """mean + std·noise; the noise of a sample depends on (seed, its draw index) alone, on any mesh.

  Args:
    mean, logvar: [b,f,h,w,c].
    seed: of the run.
    draw: uint32 [b,2], (high, low) words of each sample's draw index.
  """
  keys = segment_keys(seed, "posterior", draw)
  noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:], jnp.float32))(keys)
  return mean + jnp.exp(0.5 * logvar) * noise


def kl_divergence(mean, logvar):
  """KL(posterior ‖ N(0, 1)) in nats, mean over latent elements (Kingma & Welling 2014, app. B)."""
  return 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar)


def peak_snr_db(squared):
  """PSNR in dB of a mean squared error of pixels in [-1, 1], whose peak is 2."""
  return -10 * jnp.log10(squared / 4)


def vae_loss(params, structure, frozen, batch, seed: int, *, kl_weight: float, terms: dict):
  """Loss of a batch of clips.

      loss = mean |decoded - video| + kl_weight · mean KL + Σ weight · term

  The means are over pixel values and over latent elements: `kl_weight` knows no clip size.

  Args:
    params, structure: of `nnx.split(codec)`.
    frozen: dict of the weights that terms read, see TERMS; none of them gets a gradient.
    batch: `video` uint8 [b,F,H,W,3] and `draw` uint32 [b,2].
    seed: of the run, for the posterior's noise.
    kl_weight: nats of one latent element against one pixel value of error.
    terms: name in TERMS -> weight.
  Returns:
    (loss, metrics): float32 scalars; metrics are l1, kl (nats an element), psnr_db (of the batch's
    mean squared error) and each term.
  Raises:
    BadInput: unknown term, or clips that the codec cannot take.
  """
  check_terms(terms)
  codec = nnx.merge(structure, params)
  video = pixels_to_float(batch["video"])
  mean, logvar = codec.encode(video)
  decoded = codec.decode(sample_posterior(mean, logvar, seed, batch["draw"]))
  metrics = dict(l1=jnp.mean(jnp.abs(decoded - video)), kl=kl_divergence(mean, logvar))
  extra = {name: TERMS[name](decoded, video, frozen) for name in terms}
  loss = metrics["l1"] + kl_weight * metrics["kl"]
  loss = loss + sum(weight * extra[name] for name, weight in terms.items())
  return loss, dict(metrics, **extra, psnr_db=peak_snr_db(squared_error(decoded, video, frozen)))


def check_terms(terms: dict):
  """Raises BadInput for a name that is no loss term."""
  for name in terms:
    if name not in TERMS:
      raise BadInput(f"vae_loss: terms has {name!r}, which is not one of {sorted(TERMS)}.")


def make_vae_loss(structure, *, seed: int, kl_weight: float, terms: dict):
  """Builds `loss(params, frozen, batch) -> (loss, metrics)` for `make_step`."""
  check_terms(terms)

  def loss(params, frozen, batch):
    value, metrics = vae_loss(
      params, structure, frozen, batch, seed, kl_weight=kl_weight, terms=terms
    )
    return value, {**metrics, WEIGHT: jnp.float32(len(batch["video"]))}

  return loss


def merge_vae_metrics(metrics: dict, weights) -> dict:
  """The loss's metrics of a whole batch, of those of its microbatches [k]: errors are averaged, not
  decibels.
  """
  average = {name: weighted_average(value, weights) for name, value in metrics.items()}
  squared = weighted_average(4 * 10 ** (-metrics["psnr_db"] / 10), weights)
  return {**average, "psnr_db": peak_snr_db(squared)}

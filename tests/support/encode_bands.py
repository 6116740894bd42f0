"""Encodes one long clip on eight devices, and on one; run by its test. The last line is JSON."""

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402

from sora_jax.generate import batches, programs  # noqa: E402
from sora_jax.models.frozen_vae import FrozenVAE  # noqa: E402
from sora_jax.models.vae import make_codec  # noqa: E402

SHAPE = (9, 128, 32)
CODEC = dict(name="vae", widths=(8, 16), blocks=(1, 1), strides=((1, 2), (4, 4)), taps=2)


def main() -> None:
  programs.PIXELS_AT_ONCE = 5 * SHAPE[1] * SHAPE[2]  # so that the clip is a long one
  codec = CODEC | dict(latent_channels=4, dtype="float32")
  params = nnx.state(make_codec(codec, seed=0))
  keys = iter(jax.random.split(jax.random.key(1), 100))
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)
  vae = FrozenVAE(codec, params, {"mean": np.zeros(4), "std": np.ones(4)})
  video = np.random.default_rng(0).integers(0, 256, (2, *SHAPE, 3), np.uint8)

  def load(clip, sizes):
    return iter(np.split(video[clip], np.cumsum(sizes)[:-1]))

  report = {}
  for clips, devices in ((1, 1), (1, 8), (2, 8)):
    whole = programs.Programs(4, 8, 64, devices, programs.encoder_radius(codec))
    way = programs.choose_programs(np.array([SHAPE] * clips), whole, 2)
    plan = batches.plan_batches([SHAPE] * clips, way)
    placed = batches.Placed(vae, jax.devices()[:devices])
    found = dict(batches.encode_batches(placed, plan, [SHAPE] * clips, load, way))
    latents = np.stack([found[clip] for clip in range(clips)])
    wanted = latents if devices == 1 else wanted  # noqa: F821
    report[f"{clips}/{devices}"] = dict(
      rows=[batch.rows for batch in plan],
      chunks=plan[0].chunks,
      apart=float(np.abs(latents[0] - wanted[0]).max() / np.abs(wanted).max()),
    )
  print(json.dumps(report))


if __name__ == "__main__":
  main()

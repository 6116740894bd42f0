r"""Text-to-video pretraining, 0.3 B parameters: 16 v6e chips, or a host of H100s.

  sora plan  --config=experiments/sora_300m.py:high --topology=v6e:4x4
  sora train --config=experiments/sora_300m.py:images --workdir=runs/300m/images \
    --config.data.path=LATENTS
  sora train --config=experiments/sora_300m.py:low --workdir=runs/300m/low \
    --config.data.path=LATENTS --config.init_from=runs/300m/images
  sora train --config=experiments/sora_300m.py:tiny --workdir=runs/300m_tiny
Stages: images, low, high, minute (experiments/recipe.py); of a pod as high,h100-8. `tiny` is the
same code on a laptop, in a minute.

Expected: not run yet (no pod was at hand); what it needs and costs is planned in docs/pods.md.
"""

from ml_collections import ConfigDict

from experiments import recipe

MODEL = dict(width=1024, depth=24, heads=8, mlp_ratio=4.0)
# Meshes that fit, by `sora plan` (docs/pods.md).
PODS = {
  "v6e-16": {
    "images": dict(data=16, accumulate_steps=4),
    "low": dict(data=16, accumulate_steps=4),
    "high": dict(data=16, accumulate_steps=4),
    "minute": dict(data=4, context=4, accumulate_steps=4),
  },
  "h100-8": {
    "images": dict(data=8, accumulate_steps=4),
    "low": dict(data=8, accumulate_steps=4),
    "high": dict(data=8, accumulate_steps=8),
    "minute": dict(data=2, context=4, accumulate_steps=8),
  },
}


def get_config(arg: str = "high") -> ConfigDict:
  """The locked config of STAGE or STAGE,POD, or `tiny`."""
  return recipe.make("sora_300m", arg, model=MODEL, pods=PODS)

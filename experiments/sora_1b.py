r"""Text-to-video pretraining, 1 B parameters: 64 v6e chips, or 32 H100s.

  sora plan  --config=experiments/sora_1b.py:high --topology=v6e:8x8
  sora train --config=experiments/sora_1b.py:images --workdir=runs/1b/images \
    --config.data.path=LATENTS
  sora train --config=experiments/sora_1b.py:low --workdir=runs/1b/low \
    --config.data.path=LATENTS --config.init_from=runs/1b/images
  sora train --config=experiments/sora_1b.py:tiny --workdir=runs/1b_tiny
Stages: images, low, high, minute (experiments/recipe.py); of a pod as high,h100-32. `tiny` is the
same code on a laptop, in a minute.

Expected: not run yet (no pod was at hand); what it needs and costs is planned in docs/pods.md.
"""

from ml_collections import ConfigDict

from experiments import recipe

MODEL = dict(width=2048, depth=20, heads=16, mlp_ratio=4.0)
# Meshes that fit, by `sora plan` (docs/pods.md).
PODS = {
  "v6e-64": {
    "images": dict(data=16, fsdp=4, accumulate_steps=2),
    "low": dict(data=16, fsdp=4, accumulate_steps=2),
    "high": dict(data=16, fsdp=4),
    "minute": dict(data=4, fsdp=4, context=4),
  },
  "h100-32": {
    "images": dict(data=4, fsdp=8, accumulate_steps=4),
    "low": dict(data=4, fsdp=8, accumulate_steps=4),
    "high": dict(data=4, fsdp=8, accumulate_steps=2),
    "minute": dict(data=4, fsdp=2, context=4, accumulate_steps=2),
  },
}


def get_config(arg: str = "high") -> ConfigDict:
  """The locked config of STAGE or STAGE,POD, or `tiny`."""
  return recipe.make("sora_1b", arg, model=MODEL, pods=PODS)

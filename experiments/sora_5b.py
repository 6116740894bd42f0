r"""Text-to-video pretraining, 5 B parameters: 64 v5p chips, or 128 H100s.

  sora plan  --config=experiments/sora_5b.py:high --topology=v5p:4x4x4
  sora train --config=experiments/sora_5b.py:images --workdir=runs/5b/images \
    --config.data.path=LATENTS
  sora train --config=experiments/sora_5b.py:low --workdir=runs/5b/low \
    --config.data.path=LATENTS --config.init_from=runs/5b/images
  sora train --config=experiments/sora_5b.py:tiny --workdir=runs/5b_tiny
Stages: images, low, high, minute (experiments/recipe.py); of a pod as high,h100-128. `tiny` is the
same code on a laptop, in a minute.

Expected: not run yet (no pod was at hand); what it needs and costs is planned in docs/pods.md.
"""

from ml_collections import ConfigDict

from experiments import recipe

MODEL = dict(width=4096, depth=25, heads=32, mlp_ratio=4.0)
# Meshes that fit, by `sora plan` (docs/pods.md).
PODS = {
  "v5p-64": {
    "images": dict(fsdp=64),
    "low": dict(fsdp=64),
    "high": dict(fsdp=64),
    "minute": dict(fsdp=16, context=4),
  },
  "h100-128": {
    "images": dict(data=4, fsdp=32),
    "low": dict(data=4, fsdp=32),
    "high": dict(fsdp=64, context=2),
    "minute": dict(fsdp=16, context=8),
  },
}


def get_config(arg: str = "high") -> ConfigDict:
  """The locked config of STAGE or STAGE,POD, or `tiny`."""
  return recipe.make("sora_5b", arg, model=MODEL, pods=PODS)

r"""Text-to-video pretraining, 14 B parameters: 128 v5p chips, 256 v6e, or 256 H100s.

  sora plan  --config=experiments/sora_14b.py:high --topology=v5p:4x4x8
  sora train --config=experiments/sora_14b.py:images --workdir=runs/14b/images \
    --config.data.path=LATENTS
  sora train --config=experiments/sora_14b.py:low --workdir=runs/14b/low \
    --config.data.path=LATENTS --config.init_from=runs/14b/images
  sora train --config=experiments/sora_14b.py:tiny --workdir=runs/14b_tiny
Stages: images, low, high, minute (experiments/recipe.py); of a pod as high,h100-256. `tiny` is the
same code on a laptop, in a minute.

Expected: not run yet (no pod was at hand); what it needs and costs is planned in docs/pods.md.
"""

from ml_collections import ConfigDict

from experiments import recipe

MODEL = dict(width=5120, depth=40, heads=40, mlp_ratio=4.5)
# Meshes that fit, by `sora plan` (docs/pods.md).
PODS = {
  "v5p-128": {
    "images": dict(fsdp=128),
    "low": dict(fsdp=128),
    "high": dict(fsdp=64, context=2),
    "minute": dict(fsdp=16, context=8),
  },
  "v6e-256": {
    "images": dict(fsdp=256),
    "low": dict(fsdp=128, context=2),
    "high": dict(fsdp=64, context=4),
  },
  "h100-256": {
    "images": dict(data=2, fsdp=128),
    "low": dict(fsdp=128, context=2),
    "high": dict(fsdp=64, context=4),
  },
  "h200-128": {
    "minute": dict(fsdp=16, context=8),
  },
}


def peer() -> ConfigDict:
  """MaxDiffusion's Wan 14 B case: one clip of 720p and 81 frames a row, a quarter of a clip a chip.

  Weights and moments in bfloat16, no average, everything recomputed: to compare programs, not to
  train with. docs/pods.md says what float32 costs.
  """
  slots, clip = 76_160, recipe.PEER_TOKENS
  stage = recipe.STAGES["high"] | dict(
    slots=slots, rows=16, segments=1, clips=((clip, 1.0),), total_steps=10_000
  )
  c = recipe.config(stage, MODEL)
  c.data.caption_slots = 512
  c.plan.caption_tokens = 512
  c.model.param_dtype = "bfloat16"
  c.optim.update(momentum_dtype="bfloat16", variance_dtype="bfloat16", ema_width=0.0)
  c.mesh.update(fsdp=16, context=4)
  return c


def get_config(arg: str = "high") -> ConfigDict:
  """The locked config of STAGE or STAGE,POD, `peer`, or `tiny`."""
  if arg == "peer":
    return peer().lock()
  return recipe.make("sora_14b", arg, model=MODEL, pods=PODS)

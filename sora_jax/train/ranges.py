"""Ranges of a run's numbers, compared before anything is built from them."""

import math

from data_pipeline.errors import BadInput
from sora_jax.train.averages import WIDEST
from sora_jax.train.resume import flatten

# Setting -> (least, most), both allowed; what other files check in their own words is not here.
RANGES: dict[str, tuple[float, float]] = {
  "seed": (0, 2**32 - 1),
  "data.threads": (1, 1024),
  "data.rows": (1, math.inf),
  "data.slots": (1, math.inf),
  "data.caption_slots": (1, math.inf),
  "data.segments": (1, math.inf),
  "data.caption_dropout": (0.0, 1.0),
  "data.given_first_frame": (0.0, 1.0),
  "evaluate.batches": (0, math.inf),
  "model.heads": (1, math.inf),
  "model.depth": (1, math.inf),
  "model.width": (1, math.inf),
  "data.prefetch": (1, math.inf),
  "diffusion.t_min": (1e-6, 1.0),
  "diffusion.density.base_tokens": (1, math.inf),
  "diffusion.density.shift_exponent": (-4.0, 4.0),
  "diffusion.density.mean": (-20.0, 20.0),
  "diffusion.density.std": (1e-6, 20.0),
  "loss.kl_weight": (0.0, 1e6),
  "optim.ema_decay": (0.0, 1.0),
  "optim.ema_width": (0.0, WIDEST),
  "optim.warmup_steps": (0, math.inf),
  "optim.decay_steps": (0, math.inf),
  "optim.min_lr_ratio": (0.0, 1.0),
  "profile.first_step": (1, math.inf),
  "profile.steps": (0, math.inf),
  "sample.rows": (1, math.inf),
  "sample.steps": (1, math.inf),
  "spike.factor": (0.0, 1e6),
  "spike.window": (8, 1e6),
  "spike.most": (0, math.inf),
  "wait.start_seconds": (1, 1e7),
  "wait.step_seconds": (1, 1e7),
  "wait.save_seconds": (1, 1e7),
  "wait.evaluate_seconds": (1, 1e7),
  "wait.silence_seconds": (1, 1e5),
  "world.clips": (1, math.inf),
}


def check_ranges(config: dict) -> None:
  """Compares a resolved config with `RANGES`.

  Args:
    config: nested dicts of plain values; settings that this kind of run has not are left out.
  Raises:
    BadInput: a number outside its range, or not a number.
  """
  flat = flatten(config)
  for name, (least, most) in RANGES.items():
    if name in flat and not least <= flat[name] <= most:
      limit = f"{least:g} or more" if most == math.inf else f"in [{least:g}, {most:g}]"
      raise BadInput(f"config: {name}={flat[name]} must be {limit}. Set it so.")

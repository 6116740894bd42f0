r"""Text-to-video on physworld for one GPU: about 100 M parameters, mixed durations and shapes.

  sora data   --config=experiments/physworld.py --out=runs/physworld/clips
  sora train  --config=experiments/physworld.py:vae --workdir=runs/physworld/vae
  sora encode --workdir=runs/physworld/vae --data=runs/physworld/clips --out=runs/physworld/latents
  sora train  --config=experiments/physworld.py:dit --workdir=runs/physworld/dit
  sora eval   --workdir=runs/physworld/dit --data=runs/physworld/clips --suite=adherence
  sora train  --config=experiments/physworld.py:debug --workdir=runs/physworld_debug

Expected: not run yet (it wants a GPU for about 20 minutes).
"""

from ml_collections import ConfigDict

from experiments import common

# frames, width, height, frames a second, weight
FORMATS = (
  (33, 64, 64, 16.0, 0.4),
  (17, 96, 64, 16.0, 0.2),
  (17, 64, 96, 8.0, 0.15),
  (9, 64, 64, 8.0, 0.15),
  (1, 64, 64, 8.0, 0.1),
)


def world(clips: int) -> dict:
  """Generated clips of all families, in mixed lengths, shapes and rates."""
  return dict(
    name="physworld",
    seed=0,
    clips=clips,
    formats=FORMATS,
    held_out_fraction=0.02,
    backgrounds=("solid", "gradient", "checker", "stripes", "noise"),
    sizes=("small", "large"),
    families=dict(drift=2.0, fall=1.0, collide=1.0, occlude=1.0, ramp=1.0),
  )


def vae() -> ConfigDict:
  """Causal VAE: 4x8x8 compression, 16 channels."""
  c = common.base(total_steps=8000)
  c.world = world(50_000)
  c.model = dict(
    name="vae",
    widths=(128, 256),
    blocks=(2, 2),
    strides=((1, 4), (4, 2)),
    taps=2,
    latent_channels=16,
    dtype="bfloat16",
  )
  c.data = dict(
    path="runs/physworld/clips", frames=9, height=64, width=64, rows=64, threads=8, prefetch=8
  )
  c.loss = dict(kl_weight=1e-4, terms=dict(l2=1.0))
  c.optim = common.optimizer(lr=1e-3, warmup_steps=100)
  c.every = common.every(log_steps=50, checkpoint_steps=1000, evaluate_steps=500)
  c.evaluate = dict(batches=4)
  return c


def dit() -> ConfigDict:
  """Text-to-video transformer of about 100 M parameters; rows of 4,096 slots."""
  c = common.base(total_steps=20_000)
  c.world = world(50_000)
  c.data = dict(
    path="runs/physworld/latents",
    slots=4096,
    caption_slots=1024,
    segments=64,
    rows=16,
    caption_dropout=0.1,
    given_first_frame=0.1,
    **common.drawing(),
    threads=8,
    prefetch=8,
  )
  c.model = dict(
    name="dit",
    width=768,
    depth=13,
    heads=12,
    patch=(1, 2, 2),
    mlp="swiglu",
    mlp_ratio=4.0,
    pooled_caption=True,
    rotary_seconds=common.ROTARY_SECONDS,
    dtype="bfloat16",
    param_dtype="float32",
    prediction="clean",
    zero_init=True,
    attention_backend="auto",
    remat="block",
  )
  c.diffusion = dict(
    density=common.density(
      mean=0.8, std=0.8, base_tokens=144, shift_exponent=0.5, max_shift=5.4
    ),  # times e^0.8 it is 12
    weighting=dict(name="uniform", gamma=5.0),  # or min_snr, which reads gamma
    t_min=0.05,
  )
  c.optim = common.optimizer(lr=3e-4, warmup_steps=500, more_ema_widths=(0.1,))
  c.keep.period_steps = 2000  # from their averages any width is made afterwards
  c.every = common.every(log_steps=50, checkpoint_steps=1000, evaluate_steps=1000)
  c.evaluate = dict(batches=4)
  c.sample = dict(
    seconds=2.0,
    width=64,
    height=64,
    fps=16.0,
    steps=50,
    guidance=3.0,
    solver="heun",
    shift=0.0,  # that of training at the sample's tokens
    rows=32,
  )
  c.plan = common.expected(((160, 1.0),), caption_tokens=16, text_width=384)
  return c


def debug() -> ConfigDict:
  """The same code path in a minute on a laptop: tiny data that it makes by itself, tiny model."""
  c = dit()
  c.total_steps = 20
  c.world.clips = 32
  c.data.update(path="", slots=1024, caption_slots=256, segments=16, rows=2, threads=2, prefetch=2)
  c.codec = dict(name="space_to_depth", time_factor=4, space_factor=8)
  c.codec_text = "bytes"
  c.plan.update(latent_channels=768, text_width=0, vocabulary=258)  # of that codec, and of bytes
  c.model.update(width=64, depth=2, heads=2, dtype="float32")
  c.optim.warmup_steps = 5
  c.every = common.every(log_steps=1, checkpoint_steps=10, evaluate_steps=10)
  c.evaluate.batches = 1
  return c


CONFIGS = {"vae": vae, "dit": dit, "debug": debug}


def get_config(arg: str = "dit") -> ConfigDict:
  """Returns the locked config called `arg`: vae, dit or debug."""
  if arg not in CONFIGS:
    raise ValueError(f"physworld.py:{arg} is not one of {sorted(CONFIGS)}")
  return CONFIGS[arg]().lock()

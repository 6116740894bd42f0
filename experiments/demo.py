r"""The demo: from nothing to a video that follows its caption, on a laptop CPU.

  make demo                                        all of it, or by hand:
  sora data   --config=experiments/demo.py --out=runs/demo/clips
  sora train  --config=experiments/demo.py:vae --workdir=runs/demo/vae
  sora encode --workdir=runs/demo/vae --text=minilm --data=runs/demo/clips --out=runs/demo/latents
  sora train  --config=experiments/demo.py:dit --workdir=runs/demo/dit
  sora eval   --workdir=runs/demo/dit --data=runs/demo/clips --suite=adherence

  sora train  --config=experiments/demo.py:debug --workdir=runs/debug      needs nothing before it
Expected (commit 65c3110): 5 to 10 minutes on two cores (1,665 s on two cores of an AMD EPYC at a
load of 8 to 12). VAE 25.9 dB. DiT loss 0.39, held-out loss 1.27. Of 192 samples of trained and 192
of never trained combinations, these follow their captions: colour 100 % and 100 %, shape 81 % and
75 %, direction, as motion of every frame, 68 % and 64 %.
"""

from ml_collections import ConfigDict

from experiments import common

# frames, width, height, frames a second, weight
FORMATS = ((9, 32, 32, 8.0, 0.8), (5, 48, 32, 8.0, 0.1), (1, 32, 48, 8.0, 0.1))


def world(clips: int) -> dict:
  """Generated clips of mixed length and shape."""
  return dict(
    name="physworld",
    seed=0,
    clips=clips,
    formats=FORMATS,
    held_out_fraction=0.08,
    backgrounds=("solid", "gradient"),
    sizes=("large",),  # at 32x32 this VAE draws every small shape as a circle
    families=dict(drift=1.0, fall=0.0, collide=0.0, occlude=0.0, ramp=0.0),
  )


def vae() -> ConfigDict:
  """Causal VAE: 4x8x8 compression, 8 channels."""
  c = common.base(total_steps=1200)
  c.world = world(4000)
  c.model = dict(
    name="vae",
    widths=(96,),
    blocks=(1,),
    strides=((4, 8),),
    taps=2,
    latent_channels=8,
    dtype="float32",
  )
  c.data = dict(
    path="runs/demo/clips", frames=9, height=32, width=32, rows=8, threads=2, prefetch=16
  )
  c.loss = dict(kl_weight=1e-3, terms=dict(l2=10.0))
  c.optim = common.optimizer(lr=5e-3, warmup_steps=20)
  c.every = common.every(log_steps=10, checkpoint_steps=500, evaluate_steps=250)
  c.evaluate = dict(batches=8)
  return c


def dit() -> ConfigDict:
  """Text-to-video transformer on the VAE's latents."""
  c = common.base(total_steps=800)
  c.world = world(4000)
  c.data = dict(
    path="runs/demo/latents",
    slots=128,
    caption_slots=96,
    segments=10,
    rows=16,
    caption_dropout=0.1,
    given_first_frame=0.0,
    **common.drawing(),
    threads=2,
    prefetch=4,
  )
  c.model = dict(
    name="dit",
    width=128,
    depth=6,
    heads=2,
    patch=(1, 2, 2),
    mlp="swiglu",
    mlp_ratio=4.0,
    pooled_caption=True,
    rotary_seconds=common.ROTARY_SECONDS,
    dtype="float32",
    param_dtype="float32",
    prediction="clean",
    zero_init=True,
    attention_backend="auto",
    remat="none",
  )
  c.diffusion = dict(
    density=common.density(mean=1.2, std=1.0, base_tokens=12, shift_exponent=0.0),
    weighting=dict(name="uniform", gamma=5.0),  # or min_snr, which reads gamma
    t_min=0.05,
  )
  c.optim = common.optimizer(name="muon", lr=4e-3, warmup_steps=50)
  c.every = common.every(log_steps=20, checkpoint_steps=400, evaluate_steps=400)
  c.evaluate = dict(batches=4)
  c.sample = dict(
    seconds=1.125,
    width=32,
    height=32,
    fps=8.0,
    steps=16,
    guidance=4.0,
    solver="euler",
    shift=0.0,  # that of training at the sample's tokens
    rows=32,
  )
  c.plan = common.expected(((24, 1.0),), caption_tokens=12, latent_channels=8, text_width=384)
  return c


def debug() -> ConfigDict:
  """Tiny everything: makes its own data, saves every 10 steps, logs each one."""
  c = dit()
  c.total_steps = 60
  c.world.clips = 64
  c.data.update(path="", slots=128, caption_slots=100, segments=8, rows=4)
  c.codec = dict(name="space_to_depth", time_factor=4, space_factor=8)
  c.codec_text = "bytes"
  c.plan.update(latent_channels=768, text_width=0, vocabulary=258)  # of that codec, and of bytes
  c.model.update(width=64, depth=2, heads=2)
  c.every = common.every(log_steps=1, checkpoint_steps=10, evaluate_steps=30)
  c.evaluate.batches = 1
  return c


CONFIGS = {"vae": vae, "dit": dit, "debug": debug}


def get_config(arg: str = "dit") -> ConfigDict:
  if arg not in CONFIGS:
    raise ValueError(f"demo.py:{arg} is not one of {sorted(CONFIGS)}")
  return CONFIGS[arg]().lock()

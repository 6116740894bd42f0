"""What the recipes `sora_300m`, `sora_1b`, `sora_5b` and `sora_14b` share: stages of a pretraining.

Each stage starts from the weights of the one before (`--config.init_from=RUN`) and is longer in
tokens a clip: images, low-resolution video, high-resolution video, up to a minute. All clips of a
stage keep their own duration, shape and rate, with images among them throughout. Learning rates
fall from stage to stage (Open-Sora-Plan 1.5: 1e-4 to 1e-5).

The shift of the noise levels is (tokens / 256)^0.3, at most 12. It is 1 at 256 tokens and 2.3 at
4,096, where Stable Diffusion 3 samples with 3.0 (Esser et al. 2024, arXiv:2403.03206, sec. 5.3.2)
and FLUX.1 goes from e^0.5 = 1.6 at 256 tokens to e^1.15 = 3.2; it is 4.3 and 5.5 for 81 frames of
480p and 720p, where Wan 2.1 has 3.0 and 5.0, 6.3 for 129 frames of 720p, where HunyuanVideo has
7.0, and 8.9 for a minute of 480p. No published model that we know goes beyond the 12 of Wan 2.2;
the square root of the paper would be 17 at 720p and 38 for the minute. docs/diffusion.md has the
table.

Planned for captions in states 4,096 wide, as of T5-XXL or UMT5-XXL; with the states of another
encoder a run is a little smaller (`data.text` names which of the dataset's is read).
"""

from ml_collections import ConfigDict

from experiments import common, physworld

CAPTION = 128  # tokens, the mean
PEER_TOKENS = common.video_tokens(81, 1280, 720) + 512  # 75,600 patches and a whole caption


def _clip(frames: int, width: int, height: int, share: float) -> tuple[int, float]:
  return common.video_tokens(frames, width, height) + CAPTION, share


# `clips`: ((tokens, share of all tokens), ...). A step has `rows` of `slots`. Last come samples.
STAGES = {
  "images": dict(
    slots=16_384, rows=256, segments=64, total_steps=200_000, lr=1e-4,
    clips=(_clip(1, 256, 256, 0.5), _clip(1, 512, 512, 0.5)),
    seconds=1 / 16, width=512, height=512,
  ),
  "low": dict(
    slots=32_768, rows=128, segments=64, total_steps=150_000, lr=1e-4,
    clips=(_clip(1, 512, 512, 0.1), _clip(65, 432, 240, 0.4), _clip(129, 432, 240, 0.5)),
    seconds=5.0, width=432, height=240,
  ),
  "high": dict(
    slots=81_920, rows=64, segments=32, total_steps=60_000, lr=5e-5,
    clips=(_clip(1, 1024, 1024, 0.05), _clip(81, 832, 480, 0.45), _clip(81, 1280, 720, 0.5)),
    seconds=5.0, width=1280, height=720,
  ),
  "minute": dict(
    slots=393_216, rows=16, segments=32, total_steps=10_000, lr=2e-5,
    clips=(_clip(81, 1280, 720, 0.2), _clip(321, 832, 480, 0.4), _clip(961, 832, 480, 0.4)),
    seconds=60.0, width=832, height=480,
  ),
}  # fmt: skip


def make(name: str, arg: str, *, model: dict, pods: dict) -> ConfigDict:
  """The config of a stage on a pod, "STAGE" or "STAGE,POD".

  Args:
    name: of the recipe's file, for complaints.
    model: width, depth, heads, mlp_ratio.
    pods: pod -> {stage: mesh}; the first one is taken where none is named. A mesh may say
      `accumulate_steps` too.
  Raises:
    ValueError: no such stage or pod.
  """
  if arg == "tiny":
    return tiny(model).lock()
  stage, _, pod = arg.partition(",")
  pod = pod or next((one for one in pods if stage in pods[one]), "")
  if stage not in STAGES or pod not in pods or stage not in pods[pod]:
    known = ", ".join(f"{one}: {'/'.join(stages)}" for one, stages in pods.items())
    raise ValueError(f"{name}.py:{arg} is not tiny, STAGE or STAGE,POD of {known}")
  c = config(STAGES[stage], model)
  mesh = dict(pods[pod][stage])
  c.accumulate_steps = mesh.pop("accumulate_steps", 1)
  c.mesh.update(mesh)
  return c.lock()


def config(stage: dict, model: dict) -> ConfigDict:
  """A stage of a model, on whatever devices there are."""
  c = common.base(total_steps=stage["total_steps"])
  c.data = dict(
    path="data/latents",
    slots=stage["slots"],
    caption_slots=min(16_384, CAPTION * stage["segments"]),
    segments=stage["segments"],
    rows=stage["rows"],
    caption_dropout=0.1,
    given_first_frame=0.2,
    **common.drawing(),
    threads=16,
    prefetch=8,
  )
  c.model = dict(
    name="dit",
    **model,
    patch=(1, 2, 2),
    mlp="swiglu",
    pooled_caption=True,
    rotary_seconds=common.ROTARY_SECONDS,
    dtype="bfloat16",
    param_dtype="float32",
    prediction="velocity",
    zero_init=True,
    attention_backend="auto",
    remat="block",
  )
  c.diffusion = dict(
    density=common.density(mean=0.0, std=1.0, base_tokens=256, shift_exponent=0.3),
    weighting=dict(name="uniform", gamma=5.0),
    t_min=0.02,
  )
  c.optim = common.optimizer(
    lr=stage["lr"],
    warmup_steps=2000,
    schedule="wsd",
    decay_steps=stage["total_steps"] // 10,
    weight_decay=0.01,
    clip_sigmas=3.0,
    momentum_dtype="bfloat16",
  )
  c.every = common.every(log_steps=10, checkpoint_steps=500, evaluate_steps=2500)
  c.evaluate = dict(batches=8)
  c.keep.period_steps = 10_000
  c.sample = dict(
    seconds=stage["seconds"],
    width=stage["width"],
    height=stage["height"],
    fps=16.0,
    steps=50,
    guidance=5.0,
    solver="heun",
    shift=0.0,  # that of training at the sample's tokens
    rows=1,
  )
  c.plan = common.expected(stage["clips"], caption_tokens=CAPTION)
  return c


def tiny(model: dict) -> ConfigDict:
  """The same code in a minute on a laptop: tiny data that it makes by itself, a tiny model."""
  small = dict(model, width=64, depth=2, heads=2)
  c = config(STAGES["low"] | dict(total_steps=20), small)
  c.world = physworld.world(32)
  c.data.update(path="", slots=1024, caption_slots=256, segments=16, rows=2, threads=2, prefetch=2)
  c.codec = dict(name="space_to_depth", time_factor=4, space_factor=8)
  c.codec_text = "bytes"
  c.model.dtype = "float32"
  c.optim.update(warmup_steps=5, decay_steps=5)
  c.every = common.every(log_steps=1, checkpoint_steps=10, evaluate_steps=10)
  c.evaluate.batches = 1
  c.plan = common.expected(
    ((256, 1.0),), caption_tokens=40, latent_channels=768, text_width=0, vocabulary=258
  )
  return c

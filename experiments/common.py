"""What all runs of one kind share. An experiment starts from here and changes what it is about."""

from ml_collections import ConfigDict


def base(total_steps: int) -> ConfigDict:
  """Settings of any run, VAE or DiT."""
  c = ConfigDict()
  c.version = 2  # of the settings' meaning; configs without it mean what they did before
  c.seed = 0
  c.total_steps = total_steps
  # -1: what the other axes leave; slices=0: as many as the devices tell.
  c.mesh = dict(data=-1, fsdp=1, context=1, tensor=1, slices=0)
  c.shard_over_context = False  # parameters in shards over mesh.context too, not mesh.fsdp alone
  c.accumulate_steps = 1  # microbatches that a step's rows are computed in, one after the other
  c.init_from = ""  # folder or URL of another run, whose weights a stage starts from
  c.init_step = -1  # of its checkpoints; -1: the newest
  c.init_weights = "ema"  # or "params", or "ema:0.1", the average of that width or decay
  c.every = every()
  c.wait = waits()
  # A loss above so many medians of the last window logged is a spike: back to the last checkpoint,
  # and over its data, most times a session. 0: none is looked for.
  c.spike = dict(factor=0.0, window=50, most=3)
  # A trace of so many steps, from that one of a session on, into WORKDIR/profile; 0: none.
  c.profile = dict(first_step=10, steps=0)
  # The newest ones, and one each period for good. From the averages of 8 or more of these, of two
  # widths (optim.more_ema_widths), --weights=ema:WIDTH makes those of other widths.
  c.keep = dict(checkpoints=3, period_steps=0)
  return c


def every(**changes) -> dict:
  """How often, in steps. 0 switches evaluation off, and the comparison of replicas."""
  settings = dict(log_steps=10, checkpoint_steps=500, evaluate_steps=500, replica_check_steps=1000)
  return {**settings, **changes}


def waits(**changes) -> dict:
  """After how many seconds a run that stands still is ended, by what it is doing.

  `start`: until the first step is done, compiling included; `step`, `save`, `evaluate`: one of
  these. `silence`: of a process that gives no sign of life.
  """
  settings = dict(start_seconds=3600, step_seconds=900, save_seconds=1800, evaluate_seconds=3600)
  return {**settings, "silence_seconds": 100, **changes}


def drawing(**changes) -> dict:
  """How clips are drawn and packed, of `data.path` or of several paths apart by commas.

  `text`: the text encoder whose caption ids and states are read; "" for the first of the dataset.
  `weights`: relative share of the draws of each path; () in proportion to their clips.
  `caption_weights`: for each path the relative probability of a clip's first, second ... caption.
  `window_clips`: clips planned together, at most. `skip_steps`: ((first, end), ...) steps of the
  data that are jumped over; it alone may change when a run resumes.
  """
  settings = dict(text="", weights=(), caption_weights=(), window_clips=2**20, skip_steps=())
  return {**settings, **changes}


def optimizer(lr: float, warmup_steps: int, **changes) -> dict:
  """AdamW with warm-up and cosine decay; `changes` replace single settings."""
  settings = dict(
    name="adamw",
    lr=lr,
    schedule="cosine",  # or constant, or wsd, which falls to the floor over the last decay_steps
    warmup_steps=warmup_steps,
    decay_steps=0,
    min_lr_ratio=0.01,  # the floor, as a share of lr
    b1=0.9,
    b2=0.95,
    eps=1e-15,
    weight_decay=0.01,
    clip_norm=1.0,  # gradients are scaled down to this global norm; 0 switches that off
    clip_sigmas=0.0,  # above 0: also clips at so many deviations above the mean of the norms
    clip_decay=0.99,
    momentum_dtype="float32",  # or bfloat16: of the first moments
    variance_dtype="float32",  # or bfloat16, with b2 of .98 or less: of the second ones
    # The average that is evaluated, sampled and exported: its memory as a share of all steps done
    # (Karras et al. 2023, arXiv:2312.02696); 0: none is kept, or one by ema_decay.
    ema_width=0.05,
    more_ema_widths=(),  # of further ones that checkpoints keep: --weights=ema:0.1
    ema_decay=0.0,  # instead of ema_width: an exponential average of about 1/(1-decay) steps
    more_ema_decays=(),  # of further ones, likewise
  )
  return {**settings, **changes}


# Shortest and longest rotary period in time. The shortest resolves latents up to a second apart: 4
# frames at 6 a second are 0.67 s. Below twice their distance a period is taken for a longer one.
ROTARY_SECONDS = (2.0, 128.0)


def density(mean: float, std: float, base_tokens: int, shift_exponent: float, **changes) -> dict:
  """Noise levels of training: logit-normal, shifted by (tokens / base_tokens)^shift_exponent.

  `max_shift` bounds the shift and its inverse (0: nothing does): 12 is the largest of a published
  video model, Wan 2.2. The mean shifts too, by e^mean: divide by it.
  """
  settings = dict(name="logit_normal", mean=mean, std=std, base_tokens=base_tokens)
  settings.update(shift_exponent=shift_exponent, max_shift=12.0)
  return {**settings, **changes}


def expected(clips: tuple, **changes) -> dict:
  """What `sora plan` has to know of data that are not there.

  `clips`: ((tokens of a clip with its caption, share of all tokens), ...). `caption_tokens` is the
  mean of a caption, `text_width` that of the text encoder's states (0: ids of a `vocabulary`).
  """
  settings = dict(
    clips=clips, caption_tokens=128, latent_channels=16, text_width=4096, vocabulary=0
  )
  return {**settings, **changes}


def video_tokens(frames: int, width: int, height: int) -> int:
  """Tokens of a clip's patches: a VAE of 4x8x8, patches of 1x2x2."""
  return ((frames - 1) // 4 + 1) * (width // 16) * (height // 16)

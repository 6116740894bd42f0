"""Every setting of a run's config, and what it may be: held against a config before all else.

Values that depend on each other, or on devices and data, are compared where they meet. The groups
`world`, `film`, `curate` and `encode` are read, and checked, by `sora data` and `sora encode`.
"""

from collections.abc import Collection, Mapping

from data_pipeline.errors import BadInput
from data_pipeline.kinds import (
  FLAG,
  TEXT,
  WORD,
  Kind,
  check_settings,
  compare,
  named,
  one_of,
  real,
  row,
  several,
  whole,
)
from sora_jax.attention.registry import BACKENDS
from sora_jax.diffusion.samplers import SOLVERS
from sora_jax.diffusion.time import DENSITIES, WEIGHTINGS
from sora_jax.models.dit import DTYPES
from sora_jax.models.remat import REMAT
from sora_jax.models.vae import CODECS
from sora_jax.train.averages import WIDEST
from sora_jax.train.migrations import OLD
from sora_jax.train.optim import MOMENTS, OPTIMIZERS, SCHEDULES
from sora_jax.train.vae_loss import TERMS

SEED = whole(0, 2**32 - 1)
SHARE = real(0.0, 1.0)
SIDE = whole(1, 2**14)  # pixels
DTYPE = one_of(*DTYPES)
AXIS = whole(-1, 2**20)  # devices; -1 takes what the others leave
SECONDS = real(1, 1e7)

RUN: dict[str, Kind] = {
  "version": whole(1),
  "seed": SEED,
  "total_steps": whole(1),
  "mesh.data": AXIS,
  "mesh.fsdp": AXIS,
  "mesh.context": AXIS,
  "mesh.tensor": AXIS,
  "mesh.slices": whole(0, 2**20),
  "shard_over_context": FLAG,
  "accumulate_steps": whole(1),
  "init_from": TEXT,
  "init_step": whole(-1),
  "init_weights": WORD,
  "every.log_steps": whole(1),
  "every.checkpoint_steps": whole(1),
  "every.evaluate_steps": whole(0),
  "every.replica_check_steps": whole(0),
  "wait.start_seconds": SECONDS,
  "wait.step_seconds": SECONDS,
  "wait.save_seconds": SECONDS,
  "wait.evaluate_seconds": SECONDS,
  "wait.silence_seconds": real(1, 1e5),
  "spike.factor": real(0.0, 1e6),
  "spike.window": whole(8, 10**6),
  "spike.most": whole(0),
  "profile.first_step": whole(1),
  "profile.steps": whole(0),
  "keep.checkpoints": whole(1),
  "keep.period_steps": whole(0),
  "evaluate.batches": whole(0),
  "optim.name": one_of(*OPTIMIZERS),
  "optim.lr": real(0.0, 1e6, above=True),
  "optim.schedule": one_of(*SCHEDULES),
  "optim.warmup_steps": whole(0),
  "optim.decay_steps": whole(0),
  "optim.min_lr_ratio": SHARE,
  "optim.b1": SHARE,
  "optim.b2": SHARE,
  "optim.eps": real(0.0, 1.0, above=True),
  "optim.weight_decay": real(0.0, 1e6),
  "optim.clip_norm": real(0.0, 1e9),
  "optim.clip_sigmas": real(0.0, 1e6),
  "optim.clip_decay": SHARE,
  "optim.momentum_dtype": one_of(*MOMENTS),
  "optim.variance_dtype": one_of(*MOMENTS),
  "optim.ema_decay": SHARE,
  "optim.more_ema_decays": several(SHARE),
  "optim.ema_width": real(0.0, WIDEST),
  "optim.more_ema_widths": several(real(0.0, WIDEST)),
}
DIT: dict[str, Kind] = {
  "model.name": one_of("dit", *CODECS),
  "model.width": whole(1, 2**17),
  "model.depth": whole(1, 2**12),
  "model.heads": whole(1, 2**12),
  "model.patch": row(*[whole(1, 64)] * 3),
  "model.mlp": one_of("gelu", "swiglu"),
  "model.mlp_ratio": real(0.0, 64.0, above=True),
  "model.pooled_caption": FLAG,
  "model.dtype": DTYPE,
  "model.param_dtype": DTYPE,
  "model.prediction": one_of("clean", "velocity"),
  "model.zero_init": FLAG,
  "model.rotary_seconds": row(*[real(1e-3, 1e6)] * 2),
  "model.attention_backend": one_of("auto", *BACKENDS),
  "model.remat": one_of(*REMAT),
  "diffusion.density.name": one_of(*DENSITIES),
  "diffusion.density.mean": real(-20.0, 20.0),
  "diffusion.density.std": real(1e-6, 20.0),
  "diffusion.density.base_tokens": real(1, 1e9),
  "diffusion.density.shift_exponent": real(-4.0, 4.0),
  "diffusion.density.max_shift": real(0.0, 1e6),
  "diffusion.weighting.name": one_of(*WEIGHTINGS),
  "diffusion.weighting.gamma": real(0.0, 1e9, above=True),
  "diffusion.t_min": real(1e-6, 1.0),
  "sample.seconds": real(0.0, 3600.0),
  "sample.width": SIDE,
  "sample.height": SIDE,
  "sample.fps": real(0.0, 1000.0, above=True),
  "sample.steps": whole(1, 10**5),
  "sample.guidance": real(-1e6, 1e6),
  "sample.solver": one_of(*SOLVERS),
  "sample.shift": real(0.0, 1e6),
  "sample.rows": whole(1, 2**16),
}
PACKED: dict[str, Kind] = {
  "data.path": TEXT,
  "data.slots": whole(1, 2**26),
  "data.caption_slots": whole(1, 2**26),
  "data.segments": whole(1, 2**20),
  "data.rows": whole(1, 2**20),
  "data.caption_dropout": SHARE,
  "data.given_first_frame": SHARE,
  "data.text": TEXT,
  "data.weights": several(real(0.0, 1e12)),
  "data.caption_weights": several(several(real(0.0, 1e12))),
  "data.window_clips": whole(1),
  "data.skip_steps": several(row(whole(0), whole(1))),
  "data.threads": whole(1, 1024),
  "data.prefetch": whole(1, 2**16),
}
CLIPS: dict[str, Kind] = {
  "data.path": TEXT,
  "data.frames": whole(1, 2**16),
  "data.height": SIDE,
  "data.width": SIDE,
  "data.rows": whole(1, 2**20),
  "data.threads": whole(1, 1024),
  "data.prefetch": whole(1, 2**16),
  "loss.kl_weight": real(0.0, 1e6),
  "loss.terms": named(real(0.0, 1e6), TERMS),
}
CODEC: dict[str, dict[str, Kind]] = {
  "vae": {
    "name": one_of(*CODECS),
    "widths": several(whole(1, 2**14), least=1),
    "blocks": several(whole(0, 256), least=1),
    "strides": several(row(whole(1, 64), whole(1, 64)), least=1),
    "taps": whole(1, 64),
    "latent_channels": whole(1, 2**14),
    "dtype": DTYPE,
  },
  "space_to_depth": {
    "name": one_of(*CODECS),
    "time_factor": whole(1, 64),
    "space_factor": whole(1, 64),
  },
}
PLAN: dict[str, Kind] = {
  "plan.clips": several(row(real(1, 2**31), real(0.0, 1e12, above=True)), least=1),
  "plan.caption_tokens": real(0.0, 2**20),
  "plan.latent_channels": whole(1, 2**14),
  "plan.text_width": whole(0, 2**17),
  "plan.vocabulary": whole(0, 2**24),
}
ELSEWHERE = ("world", "film", "curate", "encode")  # groups that other commands read


def settings_of(config: Mapping) -> dict[str, Kind]:
  """The settings that a run's config needs: those of its model, and of data that it makes itself.

  Raises:
    BadInput: `model.name` is no model's.
  """
  name = _name_of(config, "model", ("dit", *CODECS))
  data = config.get("data")
  if isinstance(data, Mapping) and data.get("path") == "":
    absent = [one for one in _SOURCES[name == "dit"] if one not in config]
    if absent:
      raise BadInput(
        f"config: data.path='' makes the data by config.{' and config.'.join(absent)}, which the"
        " config has not. Set data.path to a dataset, or add it (experiments/demo.py:debug)."
      )
  if name != "dit":
    return RUN | CLIPS | _codec("model", name)
  table = RUN | DIT | PACKED | (PLAN if "plan" in config else {})
  if "codec" in config:
    table |= _codec("codec", _name_of(config, "codec", CODECS)) | {"codec_text": WORD}
  return table


_SOURCES = {False: ("world",), True: ("world", "codec", "codec_text")}  # of data that a run makes


def _codec(group: str, name: str) -> dict[str, Kind]:
  return {f"{group}.{key}": kind for key, kind in CODEC[name].items()}


def _name_of(config: Mapping, group: str, known: Collection[str]) -> str:
  found = config.get(group)
  name = found.get("name") if isinstance(found, Mapping) else None
  if not (isinstance(name, str) and name in known):
    raise BadInput(f"config: {group}.name={name!r} is not one of {sorted(known)}. Set it.")
  return name


def check_run(config: Mapping, file: str = "") -> None:
  """Holds the config of a run against its settings, before anything is built.

  Args:
    config: nested mappings of plain values, of this version (see `migrations`).
    file: that it is from, for people; "" where it is from none.
  Raises:
    BadInput: settings are missing, unknown, or of another kind or range; all are named.
  """
  own = {name: value for name, value in config.items() if name not in ELSEWHERE}
  check_settings(own, settings_of(config), "config", file, before=OLD)


SAMPLED = ("model.", "diffusion.", "sample.")  # what a trained run is sampled by


def check_trained(config: Mapping, file: str) -> None:
  """Holds what sampling reads of a trained DiT's config against its settings.

  Raises:
    BadInput: settings are missing, or of another kind or range.
  """
  table = {name: kind for name, kind in DIT.items() if name.startswith(SAMPLED)}
  lacking, _, wrong = compare(config, table)
  if lacking:
    raise BadInput(
      f"run: {file} lacks {', '.join(lacking)}: another version of sora_jax trained it. Sample with"
      " that version, or train anew."
    )
  if wrong:
    raise BadInput(f"run: {file} has {'; '.join(wrong)}. Correct that file, or copy the run again.")

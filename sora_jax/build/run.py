"""What every run has, whatever it trains: mesh, schedule, optimiser, microbatches."""

from data_pipeline.errors import BadInput
from sora_jax.parallel.mesh import make_mesh, mesh_ranks
from sora_jax.train.accumulate import make_gradient
from sora_jax.train.averages import SETTINGS as AVERAGES
from sora_jax.train.averages import make_averages
from sora_jax.train.optim import make_optimizer, make_schedule
from sora_jax.train.spikes import SpikeSettings
from sora_jax.train.task import Schedule, Waits

MAY_BE_OFF = ("evaluate_steps", "replica_check_steps")  # by 0


def build_mesh(config):
  """The device mesh of `config.mesh`."""
  return make_mesh(**config.mesh)


def build_schedule(config) -> Schedule:
  """Lengths and intervals of a run. Raises BadInput for one that is not positive."""
  for name, value in (("total_steps", config.total_steps), *config.every.items()):
    if value < (name not in MAY_BE_OFF):
      raise BadInput(f"config: {name}={value} must be positive.")
  if config.keep.checkpoints < 1:
    raise BadInput(
      f"config: keep.checkpoints={config.keep.checkpoints} would keep none. Set it to 1 or more."
    )
  wait = config.wait.to_dict()
  wait.pop("silence_seconds")
  return Schedule(
    config.total_steps,
    config.every.log_steps,
    config.every.checkpoint_steps,
    config.keep.checkpoints,
    config.keep.period_steps,
    config.every.replica_check_steps,
    config.profile.first_step,
    config.profile.steps,
    Waits(**wait),
    SpikeSettings(**config.spike),
  )


def build_optimizer(config):
  """The optax transformation, and the averages of the parameters by name.

  Raises:
    BadInput: as `make_optimizer` and `make_averages`.
  """
  settings = config.optim.to_dict()
  averages = make_averages(**{name: settings.pop(name) for name in AVERAGES})
  return make_optimizer(**settings, total_steps=config.total_steps), averages


def build_rate(config):
  """The learning rate as a function of the steps done."""
  names = ("lr", "schedule", "warmup_steps", "decay_steps", "min_lr_ratio")
  settings = {name: config.optim[name] for name in names}
  return make_schedule(**settings, total_steps=config.total_steps)


def build_gradient(config, mesh, loss, merge):
  """The gradient of a loss in the config's microbatches; `merge` puts their metrics together."""
  check_microbatches(config, mesh)
  return make_gradient(loss, merge, steps=config.accumulate_steps, ranks=mesh_ranks(mesh))


def check_microbatches(config, mesh) -> None:
  """Raises BadInput for rows that do not divide into the config's microbatches."""
  steps, ranks, rows = config.accumulate_steps, mesh_ranks(mesh), config.data.rows
  if steps < 1 or rows % (steps * ranks):
    raise BadInput(
      f"config: accumulate_steps={steps} times {ranks} ranks (mesh.data * mesh.fsdp) does not"
      f" divide data.rows={rows}, and each rank gives every microbatch as many rows. Change one."
    )

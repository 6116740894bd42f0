"""Seconds of a train step, and what of its work is useful: rows of one shape, and a mixture's.

  python -m experiments.benchmarks.step --config=experiments/demo.py:dit
  python -m experiments.benchmarks.step --config=experiments/physworld.py:dit \\
    --config.data.slots=8192 --mixture=web_video --twin --json

Any DiT config, any platform; data and weights are noise. `--twin` trains the same network in
PyTorch (extra [bench]), in turns with ours: equal weights must give equal outputs first. The last
line is JSON.

FLOPs are those of the model on tokens: a training step is three forward passes, attention counts
Σ segment². Not counted, and reported as waste: padding slots, and attention across segments that
the backend computes. Nor is what the backward pass recomputes (remat).
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from data_pipeline.errors import BadInput
from data_pipeline.tokens import count_rows
from experiments.benchmarks import batches
from experiments.benchmarks.mixtures import MIXTURES
from sora_jax.attention.runs import block_ranges, runs
from sora_jax.build.attention import attention_backend
from sora_jax.build.dit import dit_settings, dit_structure, flop_settings, loss_settings
from sora_jax.build.run import build_gradient, build_mesh, build_optimizer
from sora_jax.commands.options import ConfigParser
from sora_jax.diffusion.time import make_density, make_weighting
from sora_jax.models.dit import RULES, DiT
from sora_jax.parallel.peaks import peak_flops
from sora_jax.parallel.place import make_put
from sora_jax.train.dit_loss import make_dit_loss, merge_by_time
from sora_jax.train.flops import count_packed
from sora_jax.train.state import init_state, state_shardings
from sora_jax.train.step import make_step

# Blocks (that look, that are looked at) of the backends, forward; 0 for all pairs of slots, which
# the others compute of a row that is one block.
BLOCKS = {"xla": (0, 0), "blocked": (512, 512), "splash": (1024, 1024), "triton": (128, 64)}


class Ours(NamedTuple):
  """Our train step on a batch.

  Attributes:
    run: does a step and waits for its loss.
    seconds_to_first: to trace, compile and run the first one.
  """

  run: Callable[[], float]
  seconds_to_first: float


def make_settings(config, args) -> dict:
  """What `batches` and `dit_settings` have to know of data that are not there."""
  text = dict(width=args.state_width, vocabulary=args.vocabulary)
  settings = dit_settings(config, latent_channels=args.latent_channels, text=text)
  return dict(
    slots=config.data.slots,
    caption_slots=config.data.caption_slots,
    rows=config.data.rows,
    patch=tuple(config.model.patch),
    patch_width=settings["patch_dim"],
    state_width=args.state_width,
    vocabulary=args.vocabulary,
    model=settings,
  )


def make_ours(config, mesh, settings: dict, batch: dict) -> Ours:
  """State, compiled step and batch on the mesh, as `sora train` has them."""
  model, structure = settings["model"], dit_structure(settings["model"])
  density = make_density(**config.diffusion.density)
  weighting = make_weighting(**config.diffusion.weighting)
  loss = make_dit_loss(structure, density, weighting, **loss_settings(config, mesh))
  optimizer, averages = build_optimizer(config)
  gradient = build_gradient(config, mesh, loss, merge_by_time)
  init = lambda: init_state(  # noqa: E731
    nnx.state(DiT(**model, rngs=nnx.Rngs(config.seed))), optimizer, averages
  )
  places = state_shardings(jax.eval_shape(init), RULES, mesh)
  step = jax.jit(
    make_step(gradient, optimizer, averages), donate_argnums=0, out_shardings=(places, None)
  )
  state = jax.jit(init, out_shardings=places)()
  arrays = make_put(mesh)(batch)
  held = [state]

  def run() -> float:
    held[0], metrics = step(held[0], {}, arrays)
    return float(metrics["loss"])

  begin = time.perf_counter()
  run()
  return Ours(run, time.perf_counter() - begin)


def waste(batch: dict) -> dict[str, float]:
  """Shares of the work that nobody needs.

  Returns:
    `padding`: of the slots. By backend, of the pairs of slots that its forward pass multiplies,
    those of different segments or of padding.
  """
  across = {backend: _across(batch["segment"], *BLOCKS[backend]) for backend in BLOCKS}
  return {"padding": float(np.mean(batch["segment"] == 0)), **across}


def _across(segment: np.ndarray, looking: int, seen: int) -> float:
  ids = np.arange(1, segment.max() + 1)
  useful = float(np.sum(np.sum(segment[..., None] == ids, axis=1, dtype=np.float64) ** 2))
  computed = float(segment.shape[0] * segment.shape[1] ** 2)
  if 0 < max(looking, seen) < segment.shape[1]:
    padded = np.pad(segment, [(0, 0), (0, -segment.shape[1] % max(looking, seen))])
    first, end = block_ranges(runs(jax.numpy.asarray(padded)), looking, seen)
    computed = float(np.sum(np.asarray(end - first), dtype=np.float64)) * looking * seen
  return max(0.0, 1 - useful / computed)


def time_in_turns(steps: dict[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
  """Seconds of each, one step of each a turn."""
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for _ in range(turns):
    for name, run in steps.items():
      begin = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - begin)
  return seconds


def spread(values: list[float]) -> dict[str, float]:
  return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def measure(config, mesh, settings: dict, batch: dict, args) -> dict:
  """Times of our step on a batch, and of the twin's."""
  counts = count_packed(count_rows(batch), **flop_settings(settings["model"]))
  if not args.turns:
    return {"tokens": counts.tokens, "segments": counts.clips, "waste": waste(batch)}
  ours = make_ours(config, mesh, settings, batch)
  steps = {"ours": ours.run}
  result: dict[str, Any] = {"seconds_to_first_step": ours.seconds_to_first}
  if args.twin:
    from experiments.benchmarks.torch_dit import Twin  # torch is an extra

    params = drawn_params(config, settings)
    twin = Twin(config, settings, params, batch)
    result["twin_apart"] = check_alike(config, settings, params, batch, twin)
    steps["twin"] = twin.step
  for run in steps.values():
    run()  # warm, and the twin compiles
  seconds = time_in_turns(steps, args.turns)
  step = spread(seconds["ours"])
  rate = counts.flops / step["median"]
  peak = peak_flops(mesh.devices.flat[0].device_kind)
  result |= {
    "step_seconds": step,
    "tokens": counts.tokens,
    "segments": counts.clips,
    "tokens_per_second": counts.tokens / step["median"],
    "model_flops_per_second": rate,
    "mfu": rate / (peak * mesh.size) if peak else None,
    "waste": waste(batch),
  }
  if args.twin:
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["twin"], strict=True)]
    result |= {"twin_seconds": spread(seconds["twin"]), "times_as_fast": spread(ratios)}
  return result


def drawn_params(config, settings: dict):
  """Parameters on the host, gates and head drawn too: of zeros, any two networks are equal."""
  model = settings["model"] | dict(zero_init=False)
  return jax.device_get(nnx.state(DiT(**model, rngs=nnx.Rngs(config.seed))))


def check_alike(config, settings, params, batch, twin) -> float:
  """How far the twin's output is from ours, relative; on equal weights, noise and times."""
  structure = dit_structure(settings["model"])
  attend = loss_settings(config, build_mesh(config))["attend"]

  @jax.jit
  def predict(params, z, t, batch):
    return nnx.merge(structure, params)(z, t, batch, attend=attend, remat="none")

  t, z = twin.times_and_noisy()
  ours, theirs = np.asarray(predict(params, z, t, batch)), twin.predict()
  real = batch["token_index"] >= 0
  apart = float(np.linalg.norm((ours - theirs)[real]) / np.linalg.norm(ours[real]))
  if apart > (1e-4 if config.model.dtype == "float32" else 3e-2):
    raise RuntimeError(f"step: the twin is another network: its output is {apart:.1e} off.")
  return apart


def show(name: str, backend: str, result: dict) -> None:
  table = Table(title=name, show_header=False)
  lost = result["waste"]
  if "step_seconds" in result:
    show_times(table, result)
  table.add_row("waste: padding", f"{lost['padding']:.1%}", "of the slots")
  for other in BLOCKS:
    what = f"waste across segments, {other}" + (" (here)" if other == backend else "")
    table.add_row(what, f"{lost[other]:.1%}", "of attention's pairs")
  Console(stderr=True).print(table)


def show_times(table: Table, result: dict) -> None:
  step = result["step_seconds"]
  table.add_row("step", f"{step['median']:.3f} s", f"{step['least']:.3f} .. {step['most']:.3f}")
  rate = f"{result['tokens_per_second']:,.0f}"
  table.add_row("tokens a second", rate, f"{result['tokens']} a step")
  table.add_row("model FLOP/s", f"{result['model_flops_per_second']:.3e}", "")
  table.add_row("MFU", f"{result['mfu']:.1%}" if result["mfu"] else "no peak known", "")
  table.add_row("to the first step", f"{result['seconds_to_first_step']:.1f} s", "")
  if "twin_seconds" in result:
    twin, ratio = result["twin_seconds"], result["times_as_fast"]
    for what, unit, of in (("twin's step", "s", twin), ("as fast as the twin", "x", ratio)):
      table.add_row(what, f"{of['median']:.3f} {unit}", f"{of['least']:.3f} .. {of['most']:.3f}")


def parse(argv=None):
  p = ConfigParser(prog="experiments.benchmarks.step", description=__doc__.split("\n")[0])
  p.add_argument("--config", required=True, help="of a DiT: FILE.py[:arg]; --config.a.b=value")
  p.add_argument("--mixture", default="small_pieces", choices=sorted(MIXTURES))
  p.add_argument("--batches", default="fixed,mixed", help="fixed, mixed, or both")
  p.add_argument("--latent_channels", type=int, default=16)
  p.add_argument("--state_width", type=int, default=384, help="of the text encoder; 0 for ids")
  p.add_argument("--vocabulary", type=int, default=1024)
  p.add_argument("--turns", type=int, default=10, help="timed steps; 0: only count")
  p.add_argument("--twin", action="store_true", help="beside the same network in PyTorch")
  p.add_argument("--json", action="store_true", help="only the JSON line")
  args = p.parse_args(argv)
  args.batches = args.batches.split(",")
  if args.turns < 0:
    raise BadInput(f"--turns={args.turns} is below 0. Give a number of steps.")
  if set(args.batches) - {"fixed", "mixed"}:
    raise BadInput(f"--batches={','.join(args.batches)} is not fixed, mixed, or both.")
  if args.config.model.name != "dit":
    raise BadInput(f"--config is of model.name={args.config.model.name}. Give a DiT's.")
  if args.twin and find_spec("torch") is None:
    raise BadInput("--twin needs torch, which is not installed. Install sora_jax[bench].")
  return args


def main(argv=None) -> None:
  args = parse(argv)
  config = args.config
  mesh, settings = build_mesh(config), make_settings(config, args)
  device = mesh.devices.flat[0].device_kind
  result = {"device": device, "devices": mesh.size, "backend": attention_backend(config, mesh)}
  for name in args.batches:
    batch = (
      batches.fixed(settings)
      if name == "fixed"
      else batches.mixed(settings, args.mixture, width=config.model.width)
    )
    with jax.set_mesh(mesh):
      result[name] = measure(config, mesh, settings, batch, args)
    if not args.json:
      show(f"{name}, {mesh.size} x {device}", result["backend"], result[name])
  print(json.dumps(result))


if __name__ == "__main__":
  try:
    main()
  except BadInput as error:
    print(f"step: {error}", file=sys.stderr)
    sys.exit(2)

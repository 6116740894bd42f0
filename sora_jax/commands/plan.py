"""`sora plan`: compiles a run's train step for a pod that is not there."""

import copy
import json
import math
import re

import jax

from data_pipeline.errors import BadInput
from sora_jax.build.attention import attention_backend
from sora_jax.build.program import (
  build_program,
  check_plannable,
  replace_kernel,
  state_bytes,
)
from sora_jax.commands.attend import attend
from sora_jax.commands.options import make_parser, real_option
from sora_jax.commands.plan_cache import cache_file, keep_plan, read_plan
from sora_jax.commands.plan_table import print_plan, print_ranking
from sora_jax.commands.progress import say
from sora_jax.commands.settle import settle
from sora_jax.nn.block import mlp_hidden
from sora_jax.parallel.mesh import AXES, make_mesh
from sora_jax.plan.compile import CompilerFailed, Refused, compile_program
from sora_jax.plan.estimate import estimate
from sora_jax.plan.kernels import BLOCKS
from sora_jax.plan.pods import GIB, Pod, describe_devices, parse_topology
from sora_jax.plan.result import Run, advise, advise_on, describe_plan
from sora_jax.plan.search import Model, candidates


class DoesNotFit(BadInput):
  """The answer is no: it is printed all the same."""


def parser():
  p = make_parser(
    "plan",
    "Compiles a run's train step for a TPU or GPU pod that is not there: does it fit, what bounds"
    " it, how long does it take, what does it cost? Nothing runs.",
    """
    sora plan --config=sora_14b --topology=v5p:4x4x8
    sora plan --config=sora_14b --topology=v6e:256 --search --price=2.7
    sora plan --config=sora_1b:low --topology=h100:64 --mesh=fsdp=8,data=8
    """,
    config=True,
  )
  p.add_argument(
    "--topology",
    required=True,
    metavar="KIND:SHAPE",
    help="v4, v5e, v5p, v6e, tpu7x: chips along each axis, or their number (v6e:256); h100, h200,"
    " b200: GPUs (h100:64)",
  )
  p.add_argument(
    "--mesh",
    default="",
    metavar="AXIS=SIZE,...",
    help="instead of config.mesh; data takes what the others leave",
  )
  p.add_argument(
    "--search", action="store_true", help="compiles the six most likely meshes, prints a ranking"
  )
  p.add_argument(
    "--price",
    type=real_option(0.0, 1e9),
    default=0.0,
    help="of a chip and hour: adds the cost",
  )
  p.add_argument("--no-cache", action="store_true", help="compiles even what is kept")
  return p


def run(args) -> dict:
  config, price = args.config, args.price
  settle(config, args.config_file, "plan")
  if args.search and args.mesh:
    raise BadInput("plan: --search finds meshes, --mesh names one. Give one of them.")
  jax.config.update("jax_platforms", "cpu")  # nothing runs: no device is taken from anyone
  check_plannable(config)
  if args.mesh:
    config.mesh.update(parse_mesh(args.mesh))
  pod = parse_topology(args.topology, slices=max(1, config.mesh.slices))
  note = replace_kernel(config, pod.kind.platform)
  if note:
    say(f"plan: {note}")
  kept = not args.no_cache
  if args.search:
    return answer_search(search(config, pod, kept), price, args.json) | (
      {"note": note} if note else {}
    )
  try:
    found = with_price(plan(config, pod, kept), price)
    return answer(found | {"note": note} if note else found, args.json)
  except BadInput as error:
    if not isinstance(error, DoesNotFit) and "mesh" not in str(error):
      raise
    raise type(error)(f"{error} (--search looks for a mesh.)") from error


def parse_mesh(text: str) -> dict[str, int]:
  """{"fsdp": 32, ...} of "fsdp=32,context=4"; axes left out are 1, `data` is what is left."""
  sizes, given = dict(data=-1, fsdp=1, context=1, tensor=1), set()
  for part in text.split(","):
    axis, _, size = part.partition("=")
    if axis not in (*AXES, "slices") or not re.fullmatch(r"-?\d+", size):
      raise BadInput(
        f"plan: --mesh={text} is not AXIS=SIZE,... of {', '.join(AXES)}, slices. Correct {part!r}."
      )
    if axis in given:
      raise BadInput(f"plan: --mesh={text} gives {axis} twice. Give it once.")
    given.add(axis)
    sizes[axis] = int(size)
  return sizes


def plan(config, pod: Pod, kept: bool) -> dict:
  """The plan of a config on a pod, kept or made."""
  config = resolve_mesh(config, pod)
  file = cache_file(json.loads(config.to_json()), pod.name)
  if kept and (found := read_plan(file)):
    return found
  mesh_sizes = {name: config.mesh[name] for name in (*AXES, "slices")}
  devices = attend(lambda: describe_devices(pod), f"plan: describes {pod.name}")
  mesh = make_mesh(**mesh_sizes, devices=devices)
  program, work = build_program(config, mesh)
  name = f"{show_mesh(dict(mesh.shape))}, remat={config.model.remat}"
  say(f"plan: compiles {name}, for {pod.name} (a large model takes minutes)")
  try:
    compiled = compile_program(
      program, pod.kind.platform, lambda work: attend(work, f"plan: compiles {name}")
    )
  except Refused as error:
    found = refusal(pod, dict(mesh.shape), config, error, program)
  else:
    seconds = estimate(
      compiled.module, pod, list(mesh.devices.flat), dict(mesh.shape), work.attention
    )
    backend = attention_backend(config, mesh)
    check_kernels(seconds.kernels, work, config.model.depth, backend)
    facts = Run(
      tokens=work.tokens,
      model_flops=work.model_flops,
      parameters=work.parameters,
      state_bytes=state_bytes(program),
      total_steps=config.total_steps,
      head_dim=work.attention.head_dim,
      remat=config.model.remat,
      backend=backend,
      useful_share=work.useful_share,
      fill=work.fill,
      fill_bound=work.fill_bound,
    )
    found = describe_plan(pod, dict(mesh.shape), compiled, seconds, facts)
    if work.fill_bound != "packing":
      say(f"plan: {work.fill_bound} keeps rows {work.fill:.0%} full of plan.clips. Raise it.")
    found["advice"] = "" if found["fits"] else advise_on(compiled.memory, pod)
  keep_plan(file, found)
  return found


def resolve_mesh(config, pod: Pod):
  """A copy with sizes for all axes, so that a plan is found again however its mesh was named."""
  config = copy.deepcopy(config)
  known = math.prod(config.mesh[axis] for axis in AXES if config.mesh[axis] != -1)
  free = [axis for axis in AXES if config.mesh[axis] == -1]
  if len(free) == 1 and known > 0 and pod.devices % known == 0:
    config.mesh[free[0]] = pod.devices // known
  return config


def refusal(pod: Pod, mesh: dict, config, error: Refused, program) -> dict:
  """The plan of what the compiler refused: it says how much is too much, not where it goes."""
  held = program.held()
  need = None if error.needs is None else round(error.needs / GIB, 2)
  rest = {"what a step adds": int(error.needs - sum(held.values()))} if error.needs else {}
  return {
    "fits": False,
    "hbm_gib_per_device": need,
    "hbm_gib_available": round(pod.kind.hbm / GIB, 2),
    "hbm_gib_by_kind": {kind: round(size / GIB, 2) for kind, size in held.items()},
    "topology": pod.name,
    "mesh": mesh,
    "remat": config.model.remat,
    "refused": str(error).split("\n")[0],
    "advice": advise(held | rest, pod.kind.hbm),
  }


def with_price(found: dict, price: float) -> dict:
  if price and "chip_hours" in found:
    return found | {"price_per_chip_hour": price, "cost": found["chip_hours"] * price}
  return found


def answer(found: dict, quiet: bool) -> dict:
  """Prints a plan; raises DoesNotFit after it where it does not fit."""
  if not quiet:
    print_plan(found)
  if not found["fits"]:
    print(json.dumps(found))
    raise DoesNotFit(f"plan: the step needs {too_much(found)}. {found['advice']}")
  return found


def too_much(found: dict) -> str:
  """By how much a plan does not fit."""
  need, has = found["hbm_gib_per_device"], found["hbm_gib_available"]
  if need is None:
    return "more memory than there is"
  if need > has:
    more = f"{need - has:.1f} more than the {has:.1f} of {found['topology']}"
    return f"{need:.1f} GiB a device, {more}"
  host, room = found["host_gib_per_device"], found["host_gib_available"]
  return f"{host:.1f} GiB of its host a device, {host - room:.1f} more than the {room:.1f} there"


def search(config, pod: Pod, kept: bool) -> list[dict]:
  """Plans of the likeliest meshes and remat policies, the fastest that fits first."""
  devices = attend(lambda: describe_devices(pod), f"plan: describes {pod.name}")
  small = config.copy_and_resolve_references()
  small.mesh.update(data=-1, fsdp=1, context=1, tensor=1)
  chosen = candidates(describe_model(small, pod, devices), pod)
  if not chosen:
    raise BadInput(
      f"plan: data.rows={config.data.rows}, data.slots={config.data.slots} and model.heads="
      f"{config.model.heads} divide over no mesh of {pod.devices} devices. Change data.rows."
    )
  found = []
  for number, one in enumerate(chosen, 1):
    say(f"plan: {number} of {len(chosen)}, some minutes each (found ones are kept)")
    trial = copy.deepcopy(config)
    trial.mesh.update(one.mesh)
    trial.model.remat = one.remat
    found.append(try_plan(trial, pod, kept))
  return sorted(found, key=lambda p: (not p["fits"], p.get("step_seconds", float("inf"))))


def try_plan(config, pod: Pod, kept: bool) -> dict:
  """A plan, or why there is none: one candidate that breaks does not end a search."""
  try:
    return plan(config, pod, kept)
  except (BadInput, CompilerFailed) as error:
    say(str(error))
    return {
      "fits": False,
      "hbm_gib_per_device": None,
      "hbm_gib_available": round(pod.kind.hbm / GIB, 2),
      "hbm_gib_by_kind": {},
      "topology": pod.name,
      "mesh": {axis: config.mesh[axis] for axis in AXES},
      "remat": config.model.remat,
      "refused": str(error),
      "advice": "",
    }


def check_kernels(found: int, work, depth: int, backend: str) -> None:
  """Raises RuntimeError where attention is not seen in the program: it would cost no time."""
  least = 3 * depth * work.attention.calls  # forward, and two gradients
  if backend in BLOCKS and found < least:
    raise RuntimeError(
      f"plan: {found} calls of {backend} attention are in the program, at least {least} should be."
    )


def describe_model(config, pod: Pod, devices: list) -> Model:
  """What the search's arithmetic needs, of the state's shapes."""
  rows = config.data.rows
  trial = copy.deepcopy(config)
  trial.data.rows = pod.devices * config.accumulate_steps  # any mesh will do for shapes
  mesh = make_mesh(data=-1, slices=config.mesh.slices, devices=devices)
  program, work = build_program(trial, mesh)
  scale = rows / trial.data.rows
  leaves = jax.tree.leaves(program.state.params)
  width, m = config.model.width, config.model
  return Model(
    parameters=work.parameters,
    param_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / work.parameters,
    state_bytes=state_bytes(program),
    width=width,
    depth=m.depth,
    heads=m.heads,
    hidden=mlp_hidden(width, m.mlp_ratio, m.mlp),
    rows=rows,
    slots=config.data.slots,
    accumulate=config.accumulate_steps,
    flops=2 * work.parameters * work.tokens * scale,
    pairs=work.attention.pairs * pod.devices / m.heads * scale,
  )


def answer_search(found: list[dict], price: float, quiet: bool) -> dict:
  found = [with_price(one, price) for one in found]
  if not quiet:
    print_ranking(found)
  best = answer(found[0], quiet)
  names = ("mesh", "remat", "fits", "hbm_gib_per_device", "step_seconds", "mfu", "days", "cost")
  return best | {"ranking": [{n: one[n] for n in names if n in one} for one in found]}


def show_mesh(mesh: dict[str, int]) -> str:
  return " ".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "one device"

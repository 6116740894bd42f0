"""`sora launch`: runs a command on many processes or hosts, and keeps it running."""

import argparse
import difflib
import math
import sys
from pathlib import Path

import yaml

from data_pipeline.errors import BadInput
from sora_jax.commands.entry import COMMANDS
from sora_jax.commands.options import Parser, add_verbose, make_folder, make_parser
from sora_jax.commands.paths import path_option
from sora_jax.commands.progress import say
from sora_jax.launch import gke, slurm, tpu_vm
from sora_jax.launch.gang import Devices
from sora_jax.launch.supervise import Supervision, supervise
from sora_jax.launch.texts import check_text, check_words


class Failed(RuntimeError):
  """The command did not come to its end; `exit_code` says how."""

  def __init__(self, text: str, code: int):
    super().__init__(text)
    self.exit_code = code


def parser():
  p = make_parser(
    "launch",
    "Runs a sora command, given after --, on many processes or hosts. A run that loses a process is"
    " ended whole and resumes from its last checkpoint. Exit 42 of the command means: saved, start"
    " it again.",
    """
    sora launch local --processes=4 -- train --config=demo:dit --workdir=runs/dit
    sora launch slurm --nodes=8 --gpus=8 -- train --config=C.py --workdir=/shared/run
    sora launch gke --topology=v5p:4x4x4 --image=I --name=r1 -- train --config=C.py --workdir=/run
    sora launch tpu-vm --name=pod1 --zone=us-east5-a -- train --config=C.py --workdir=/gcs/run
    """,
  )
  kinds = p.add_subparsers(dest="where", required=True, metavar="local|slurm|gke|tpu-vm")
  for name, (add, _) in WHERE.items():
    one = kinds.add_parser(
      name, help=add.__doc__, description=add.__doc__, allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_verbose(one)
    add(one)
    one.add_argument("command", nargs="...", metavar="-- COMMAND ...", help="of sora: train ...")
  return p


def run(args) -> dict:
  command = args.command[1:] if args.command[:1] == ["--"] else args.command
  check_command(command)
  return WHERE[args.where][1](args, command)


def check_command(command: list[str]) -> None:
  """Refuses what every process would refuse, hours later maybe.

  Raises:
    BadInput: no command, none of sora's, or words that are no text.
  """
  if not command:
    raise BadInput("launch: no command. Give one after --, as: sora launch local -- train ...")
  if command[0] not in COMMANDS or command[0] == "launch":
    near = difflib.get_close_matches(command[0], COMMANDS, 1)
    hint = f"Did you mean {near[0]}?" if near and near[0] != "launch" else "Give one, as: -- train"
    raise BadInput(f"launch: {command[0]!r} after -- is no command of sora to launch. {hint}")
  check_words(command)


def add_local(p: Parser) -> None:
  """On processes of this machine, watched and started again."""
  p.add_argument("--processes", type=int, required=True, help="of the run")
  p.add_argument("--gpus", type=int, default=0, help="GPUs a process (default: all, shared)")
  p.add_argument("--cpus", type=int, default=0, help="CPU devices a process (default: one)")
  add_max_restarts(p, 10, "after failures in a row")
  p.add_argument(
    "--silence", type=float, default=60.0,
    help="seconds without a sign of life after which a process is lost (default 60)",
  )  # fmt: skip
  p.add_argument(
    "--grace", type=float, default=600.0, help="seconds to save in after SIGTERM (default 600)"
  )
  p.add_argument(
    "--back-off", type=float, default=1.0,
    help="seconds before the first restart, doubled by each failure in a row up to 60 (default 1)",
  )  # fmt: skip
  p.add_argument(
    "--shrink", default="", metavar="N,N,...",
    help="when processes are lost, go on with the largest of these sizes that remains",
  )  # fmt: skip


def add_max_restarts(p: Parser, default: int, what: str) -> None:
  p.add_argument("--max-restarts", type=int, default=default, help=f"{what} (default {default})")


def run_local(args, command: list[str]) -> dict:
  for name in ("processes", "silence", "grace", "back_off"):
    if not 0 < getattr(args, name) < math.inf:
      raise BadInput(f"launch: --{name.replace('_', '-')}={getattr(args, name)} must be above 0.")
  if min(args.max_restarts, args.gpus, args.cpus) < 0:
    raise BadInput("launch: --max-restarts, --gpus and --cpus must not be below 0.")
  sizes = args.shrink.split(",") if args.shrink else []
  if not all(size.isdecimal() and 0 < int(size) < args.processes for size in sizes):
    raise BadInput(
      f"launch: --shrink={args.shrink} must be sizes from 1 to {args.processes - 1}, as 2,1."
    )
  outcome = supervise(
    [sys.executable, "-m", "sora_jax", *command],
    Supervision(
      processes=args.processes,
      max_restarts=args.max_restarts,
      silence=args.silence,
      grace=args.grace,
      back_off=args.back_off,
      sizes=[int(size) for size in sizes],
      devices=Devices(args.cpus, args.gpus),
    ),
  )
  if outcome.code:
    raise Failed(f"launch: {outcome.why}; {outcome.restarts} restarts.", outcome.code)
  return {"restarts": outcome.restarts, "processes": outcome.processes}


def write_file(option: str, file: Path, text: str) -> None:
  """Writes a file, in a folder that it makes.

  Raises:
    BadInput: it cannot be written.
  """
  make_folder(option, file.parent)
  try:
    file.write_text(text, encoding="utf-8")
  except OSError as error:
    raise BadInput(
      f"launch: {option}={file} cannot be written ({error.strerror}). Name another file."
    ) from error


def add_slurm(p: Parser) -> None:
  """As a Slurm job that requeues itself: writes an sbatch script and submits it."""
  p.add_argument("--nodes", type=int, required=True)
  p.add_argument("--gpus", type=int, default=0, help="a node (default 0: CPUs)")
  p.add_argument("--processes", type=int, default=1, help="a node (default 1, with all its GPUs)")
  p.add_argument("--cpus", type=int, default=0, help="cores a process (default: Slurm's own)")
  p.add_argument("--name", default="sora", help="of the job (default sora)")
  p.add_argument("--time", default="", help="limit, as 24:00:00 (default: the partition's)")
  p.add_argument("--partition", default="")
  p.add_argument("--account", default="")
  p.add_argument(
    "--sbatch", action="append", default=[], metavar="OPTION", help="a further one, as --qos=high"
  )
  p.add_argument(
    "--grace", type=int, default=300,
    help="seconds before the limit to save in: two steps, an evaluation and a save (default 300)",
  )  # fmt: skip
  add_max_restarts(p, 10, "after failures in a row")
  p.add_argument("--setup", default="", help="shell line before, as 'source .venv/bin/activate'")
  p.add_argument(
    "--output", type=path_option, default="sora-%j.log",
    help="of all tasks, in a folder that is made (default sora-%%j.log)",
  )  # fmt: skip
  p.add_argument(
    "--script", type=path_option, default="sora.sbatch", help="file to write (default sora.sbatch)"
  )
  p.add_argument("--dry-run", action="store_true", help="writes the script and submits nothing")


def run_slurm(args, command: list[str]) -> dict:
  named = {name: getattr(args, name) for name in ("time", "partition", "account")}
  options = [f"--{name}={value}" for name, value in named.items() if value]
  job = slurm.Job(
    args.name, args.nodes, args.gpus, args.processes, args.cpus, [*options, *args.sbatch],
    args.grace, args.max_restarts, args.setup, args.output,
  )  # fmt: skip
  text = slurm.write_script(job, ["python", "-m", "sora_jax", *command])
  for log in (args.output, *slurm.error_logs(args.sbatch)):
    slurm.make_log_folder(log)
  script = Path(args.script)
  write_file("--script", script, text)
  if args.dry_run:
    return {"script": str(script)}
  number = slurm.submit(script)
  say(f"launch: job {number} of {script}; its output goes to {args.output.replace('%j', number)}")
  return {"script": str(script), "job": number}


def add_gke(p: Parser) -> None:
  """On GKE: writes a JobSet (TPU slices, GPU nodes) for kubectl apply; much the same by xpk."""
  p.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="v5p:4x4x4, h100:64")
  p.add_argument("--slices", type=int, default=1, help="of TPUs (default 1)")
  p.add_argument("--name", required=True, help="of the workload")
  p.add_argument("--image", required=True, help="container image with the project in it")
  p.add_argument("--queue", default="", help="Kueue's LocalQueue (default: none)")
  p.add_argument("--cluster", default="CLUSTER", help="for the xpk command")
  add_max_restarts(p, 100, "of the JobSet")
  p.add_argument("--grace", type=int, default=120, help="seconds to save in (default 120)")
  p.add_argument(
    "--secret", action="append", default=[], metavar="NAME",
    help="Kubernetes secret whose entries become environment variables",
  )  # fmt: skip
  p.add_argument("--out", type=path_option, help="file of the manifest (default: stdout)")


def run_gke(args, command: list[str]) -> dict:
  if args.slices < 1 or args.max_restarts < 0 or args.grace < 1:
    raise BadInput("launch: --slices and --grace must be 1 or more, --max-restarts 0 or more.")
  check_text("--cluster", args.cluster)
  words = ["python", "-m", "sora_jax", *command]
  workload = gke.Workload(
    args.name, args.topology, args.slices, args.image, args.queue, args.max_restarts, args.grace,
    args.secret,
  )  # fmt: skip
  manifest = yaml.safe_dump(gke.make_manifest(workload, words), sort_keys=False)
  if args.out:
    write_file("--out", Path(args.out), manifest)
  else:
    print(manifest)
  xpk = gke.xpk_command(workload, words, args.cluster)
  by_xpk = f", or by xpk, with its own queue and no secrets: {xpk}" if xpk else ""
  say(f"launch: kubectl apply -f {args.out or 'THIS'}{by_xpk}")
  return {"manifest": args.out or None, "xpk": xpk or None}


def add_tpu_vm(p: Parser) -> None:
  """On a TPU VM (gcloud), or hosts reached by ssh: prints the commands."""
  p.add_argument("--name", default="", help="of the TPU VM")
  p.add_argument("--zone", default="")
  p.add_argument("--project", default="")
  p.add_argument("--hosts", default="", metavar="HOST,HOST,...", help="instead: one ssh line each")
  p.add_argument("--port", type=int, default=8476, help="of the coordinator, with --hosts")
  p.add_argument("--setup", default="", help="shell line before, as 'cd sora'")


def run_tpu_vm(args, command: list[str]) -> dict:
  words = ["python", "-m", "sora_jax", *command]
  if args.hosts:
    lines = tpu_vm.ssh_commands(args.hosts.split(","), args.port, words, args.setup)
  elif args.name and args.zone:
    lines = [tpu_vm.gcloud_command(args.name, args.zone, args.project, words, args.setup)]
  else:
    raise BadInput("launch: give --name and --zone of a TPU VM, or --hosts.")
  print("\n".join(lines))
  return {"commands": lines}


WHERE = {
  "local": (add_local, run_local),
  "slurm": (add_slurm, run_slurm),
  "gke": (add_gke, run_gke),
  "tpu-vm": (add_tpu_vm, run_tpu_vm),
}

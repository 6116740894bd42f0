"""A Slurm job that starts itself again: after exit 42 always, after a failure so many times."""

import math
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline.errors import BadInput
from sora_jax.launch.texts import check_shell, check_text

MOST_GRACE = 65_535  # seconds that sbatch takes in --signal
_OPTION = re.compile(r"--[a-z][a-z0-9-]*(=.*)?|-[A-Za-z]\S*")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


class Job(NamedTuple):
  """Attributes:
  name: of the job.
  nodes, gpus, processes: how many nodes; GPUs and processes a node (no GPUs: 0).
  cpus: CPU cores a process; 0 leaves it to Slurm.
  options: further ones of sbatch, as "--partition=gpu".
  grace: seconds before its time limit in which the job saves.
  max_restarts: after failures in a row; half an hour of running begins anew.
  setup: shell line before the command, as "source .venv/bin/activate".
  output: of all tasks, appended to over restarts.
  """

  name: str
  nodes: int
  gpus: int
  processes: int
  cpus: int
  options: Sequence[str]
  grace: int
  max_restarts: int
  setup: str
  output: str


SCRIPT = """#!/bin/bash
{head}
# Written by `sora launch slurm`. Exit 42 is "saved, start me again", 2 "mend the command".
:
{setup}
set -u
{devices}
# srun has not taken this over from sbatch since Slurm 22.05.
[ -z "${{SLURM_CPUS_PER_TASK:-}}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# Twenty seconds before the limit at the latest, saved or not: what a limit ends is not requeued.
# The limit is asked for again, since it may be extended.
(
  while :; do
    end=$(squeue -h -j "$SLURM_JOB_ID" -o %e 2>/dev/null)
    case $end in
      [0-9]*) left=$(($(date -d "$end" +%s) - $(date +%s) - 20)) ;;
      *) left=600 ;;  # no limit, or no answer
    esac
    if [ "$left" -le 0 ]; then
      echo "launch: not saved before the limit, requeues job $SLURM_JOB_ID" >&2
      scontrol requeue "$SLURM_JOB_ID"; exit
    fi
    sleep $((left < 600 ? left : 600))
  done
) &
trap "kill $! 2>/dev/null" EXIT
# One task that is lost ends the step after a while; those that save are not ended meanwhile.
srun --kill-on-bad-exit=0 --wait=120 --unbuffered {command}
code=$?
failures=.sora-failures-$SLURM_JOB_ID
count=$(cat "$failures" 2>/dev/null || echo 0)
[ "$SECONDS" -lt 1800 ] || count=0  # it ran long: patience begins anew
case $code in
  0) rm -f "$failures"; exit 0 ;;
  2) echo "launch: bad input (exit 2), job $SLURM_JOB_ID ends" >&2; exit 2 ;;
  42) rm -f "$failures"; echo "launch: saved (exit 42), requeues job $SLURM_JOB_ID" >&2 ;;
  *)
    count=$((count + 1)); echo "$count" > "$failures"
    if [ "$(cat "$failures")" != "$count" ]; then
      echo "launch: exit $code, $failures cannot be written, job $SLURM_JOB_ID ends" >&2; exit $code
    fi
    if [ "$count" -gt {max_restarts} ]; then
      echo "launch: exit $code, failure $count in a row, job $SLURM_JOB_ID ends" >&2
      rm -f "$failures"; exit $code
    fi
    echo "launch: exit $code, failure $count of {max_restarts}, requeues $SLURM_JOB_ID" >&2
    sleep $((count < 6 ? 2 ** count : 60)) ;;
esac
scontrol requeue "$SLURM_JOB_ID"
"""


def write_script(job: Job, words: Sequence[str]) -> str:
  """The text of an sbatch script that runs a command line on every process.

  Raises:
    BadInput: no nodes, GPUs that do not divide over the processes of a node, text that is more than
      a value, or no time to save in.
  """
  check_job(job)
  if min(job.nodes, job.processes) < 1 or job.gpus < 0 or job.gpus % job.processes:
    raise BadInput(
      f"launch: --nodes={job.nodes} and --processes={job.processes} must be 1 or more, and divide"
      f" --gpus={job.gpus} evenly. Correct them."
    )
  head = [
    f"--job-name={job.name}",
    f"--nodes={job.nodes}",
    f"--ntasks-per-node={job.processes}",
    *([f"--gpus-per-node={job.gpus}"] if job.gpus else []),
    *([f"--cpus-per-task={job.cpus}"] if job.cpus else []),
    "--requeue",
    "--open-mode=append",
    f"--signal=TERM@{job.grace}",  # to the tasks, which save and end with 42
    f"--output={job.output}",
    *job.options,
  ]
  return SCRIPT.format(
    head="\n".join(f"#SBATCH {quote(option)}" for option in head),
    setup=f"eval {shlex.quote(job.setup)}" if job.setup else ":",
    devices=_devices(job),
    command=shlex.join(words),
    max_restarts=job.max_restarts,
  )


def quote(option: str) -> str:
  """Quotes an option for a line of #SBATCH, where it is needed.

  sbatch groups by quotes, within which a backslash makes the next letter an ordinary one; outside
  of them # begins a comment (sbatch's manual, and `_get_argument` of its source).
  """
  if re.fullmatch(r"[\w@%+=:,./-]*", option, re.ASCII):
    return option
  inner = option.replace("\\", "\\\\").replace('"', '\\"')
  return f'"{inner}"'


def check_job(job: Job) -> None:
  """Refuses text that would be more than a value of its option, and numbers out of their range.

  Raises:
    BadInput: as `write_script`.
  """
  for option, text in (("--name", job.name), ("--output", job.output)):
    check_text(option, text)
    if not text.strip():
      raise BadInput(f"launch: {option}={text!r} is empty. Give one.")
  for option in job.options:
    check_text("--sbatch", option)
    if re.match(r"--(output|job-name|nodes|signal|open-mode)\b|-[oJN]", option):
      raise BadInput(
        f"launch: --sbatch={option} is said already. Use --output, --name, --nodes or --grace."
      )
    if not _OPTION.fullmatch(option):
      raise BadInput(
        f"launch: --sbatch={option!r} is not one option of sbatch. Give each apart, as"
        " --sbatch=--gres=gpu:8."
      )
  check_shell("--setup", job.setup)
  if min(job.cpus, job.max_restarts) < 0:
    raise BadInput(
      f"launch: --cpus={job.cpus} and --max-restarts={job.max_restarts} must not be below 0."
    )
  limit = time_limit(job.options)
  if not 0 < job.grace < min(limit, MOST_GRACE + 1):
    rest = f"below --time ({limit:.0f} s)" if limit <= MOST_GRACE else f"at most {MOST_GRACE}"
    raise BadInput(
      f"launch: --grace={job.grace} seconds before the limit must be above 0 and {rest}: else a job"
      " is told to leave when it begins. Give less."
    )


def time_limit(options: Sequence[str]) -> float:
  """Seconds of the last --time or -t; infinite where there is none, or it is none.

  Raises:
    BadInput: it is no time of sbatch: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.
  """
  found = math.inf
  for option in options:
    name, _, value = option.partition("=")
    if name != "--time" and not re.match("-t.", option):
      continue
    text = value if name == "--time" else option[2:]
    if text.lower() in ("infinite", "unlimited"):
      found = math.inf
      continue
    parts = _TIME.fullmatch(text)
    if not parts:
      raise BadInput(f"launch: --time={text} is no limit of sbatch. Give one as 1-12:00:00.")
    days, first, second, third = (int(part or 0) for part in parts.groups())
    if parts[1] is None and parts[4] is None:  # minutes and seconds alone
      first, second, third = 0, first, second
    found = ((days * 24 + first) * 60 + second) * 60.0 + third
    if not found:
      raise BadInput(f"launch: --time={text} is no time at all. Leave it out for no limit.")
  return found


def error_logs(options: Sequence[str]) -> list[str]:
  """The files of --error or -e."""
  found = [option for option in options if re.match(r"--error=|-e.", option)]
  return [option.removeprefix("--error=").removeprefix("-e") for option in found]


def make_log_folder(output: str) -> None:
  """Makes the folder of a job's output, which Slurm does not: without it a job fails mutely.

  Raises:
    BadInput: the folder's name is known at submission only, or it cannot be made.
  """
  folder = os.path.dirname(output)
  if "%" in folder:
    raise BadInput(
      f"launch: --output={output} has a pattern in its folder, which Slurm does not make. Put it"
      " into the file's name."
    )
  try:
    os.makedirs(folder or ".", exist_ok=True)
  except OSError as error:
    raise BadInput(
      f"launch: the folder of --output={output} cannot be made ({error.strerror}). Name another."
    ) from error


def _devices(job: Job) -> str:
  """JAX gives a task of Slurm one GPU, the one of its number; here it has its share of the node."""
  if not job.gpus:
    return ":"
  each = job.gpus // job.processes
  if job.processes == 1:
    return f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(each)))}"
  if each == 1:
    return ":"
  raise BadInput(
    f"launch: {job.processes} processes with {each} GPUs each: give one process a node, or one a"
    " GPU (--processes)."
  )


def submit(script: Path) -> str:
  """The number of the job.

  Raises:
    BadInput: there is no sbatch, or it refused.
  """
  try:
    done = subprocess.run(
      ["sbatch", "--parsable", os.path.abspath(script)], capture_output=True, text=True, check=False
    )
  except FileNotFoundError as error:
    raise BadInput(
      f"launch: there is no sbatch on this machine. Submit {script} where there is one, or use"
      " --dry-run."
    ) from error
  if done.returncode:
    raise BadInput(f"launch: sbatch refused {script}: {done.stderr.strip()}. Correct its options.")
  return done.stdout.strip().split(";")[0]

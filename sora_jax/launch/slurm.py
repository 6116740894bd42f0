"""A Slurm job that starts itself again: after exit 42 always, after a failure so many times."""

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline.errors import BadInput


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
    BadInput: no nodes, or GPUs that do not divide over the processes of a node.
  """
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
    head="\n".join(f"#SBATCH {option}" for option in head),
    setup=job.setup or ":",
    devices=_devices(job),
    command=shlex.join(words),
    max_restarts=job.max_restarts,
  )


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
      ["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False
    )
  except FileNotFoundError as error:
    raise BadInput(
      f"launch: there is no sbatch on this machine. Submit {script} where there is one, or use"
      " --dry-run."
    ) from error
  if done.returncode:
    raise BadInput(f"launch: sbatch refused {script}: {done.stderr.strip()}. Correct its options.")
  return done.stdout.strip().split(";")[0]

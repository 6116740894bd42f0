"""Commands for TPU VMs and plain hosts: they are printed, nothing is done."""

import shlex
from collections.abc import Sequence

# Started again after 42 and failures, with a pause; done and bad input end it.
LOOP = "while :; do {command}; code=$?; case $code in 0|2) exit $code;; esac; sleep 10; done"


def keep_running(words: Sequence[str], setup: str) -> str:
  """A shell line that a host runs until the command is done."""
  loop = LOOP.format(command=shlex.join(words))
  return f"{setup} && {loop}" if setup else loop


def gcloud_command(name: str, zone: str, project: str, words: Sequence[str], setup: str) -> str:
  """All workers of a TPU VM; JAX finds out who they are."""
  where = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", name, f"--zone={zone}", "--worker=all"]
  where += [f"--project={project}"] if project else []
  return shlex.join([*where, f"--command={keep_running(words, setup)}"])


def ssh_commands(hosts: Sequence[str], port: int, words: Sequence[str], setup: str) -> list[str]:
  """One line a host; the first has the coordinator."""
  found = []
  for number, host in enumerate(hosts):
    joined = [
      *words, f"--coordinator={hosts[0].rpartition('@')[2]}:{port}", f"--processes={len(hosts)}",
      f"--process={number}",
    ]  # fmt: skip
    found.append(shlex.join(["ssh", host, keep_running(joined, setup)]) + " &")
  return found

"""Commands for TPU VMs and plain hosts: they are printed, nothing is done."""

import re
import shlex
from collections.abc import Sequence

from data_pipeline.errors import BadInput
from sora_jax.launch.texts import check_shell, check_text

# Started again after 42 and failures, with a pause; done and bad input end it.
HOST = re.compile(r"([\w.][\w.-]*@)?[A-Za-z0-9_.\[:][A-Za-z0-9_.:\]-]*")
LOOP = "while :; do {command}; code=$?; case $code in 0|2) exit $code;; esac; sleep 10; done"


def keep_running(words: Sequence[str], setup: str) -> str:
  """A shell line that a host runs until the command is done."""
  check_shell("--setup", setup)
  loop = LOOP.format(command=shlex.join(words))
  return f"eval {shlex.quote(setup)} && {loop}" if setup else loop


def gcloud_command(name: str, zone: str, project: str, words: Sequence[str], setup: str) -> str:
  """All workers of a TPU VM; JAX finds out who they are.

  Raises:
    BadInput: a name that would be an option of gcloud, or is no line of text.
  """
  for option, value in (("--name", name), ("--zone", zone), ("--project", project)):
    check_text(option, value)
    if value.startswith("-"):
      raise BadInput(f"launch: {option}={value} begins with -. Give a name.")
  where = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", name, f"--zone={zone}", "--worker=all"]
  where += [f"--project={project}"] if project else []
  return shlex.join([*where, f"--command={keep_running(words, setup)}"])


def ssh_commands(hosts: Sequence[str], port: int, words: Sequence[str], setup: str) -> list[str]:
  """One line a host; the first has the coordinator.

  Raises:
    BadInput: no name of a host, one named twice, or no port.
  """
  for host in hosts:
    if not HOST.fullmatch(host):
      raise BadInput(f"launch: --hosts: {host!r} is no host. Give names as a,b or user@10.0.0.1.")
  if len(set(hosts)) < len(hosts):
    raise BadInput(f"launch: --hosts={','.join(hosts)} names a host twice. Name each once.")
  if not 0 < port < 2**16:
    raise BadInput(f"launch: --port={port} is no port. Give one from 1 to 65535.")
  found = []
  for number, host in enumerate(hosts):
    joined = [
      *words, f"--coordinator={hosts[0].rpartition('@')[2]}:{port}", f"--processes={len(hosts)}",
      f"--process={number}",
    ]  # fmt: skip
    found.append(shlex.join(["ssh", host, keep_running(joined, setup)]) + " &")
  return found

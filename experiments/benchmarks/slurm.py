"""A run under a real Slurm: asked to leave, killed, out of time; compared with an undisturbed one.

  python -m experiments.benchmarks.slurm --out=runs/slurm.log

Makes a cluster of two nodes on this machine (munged, slurmctld and two slurmd of its own, in a
temporary folder), starts a run with `sora launch slurm`, which has to requeue itself whatever
happens, and prints the job's log. Losses and hashes have to be those of the same run on one process
of two devices. Wants Linux, root and Debian's packages slurm-wlm and munge; touches none of their
settings. Exit 2 where that is missing, 1 when the run is another one at its end.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from experiments.benchmarks.chaos import command, look
from sora_jax.parallel.heartbeat import free_port
from sora_jax.parallel.hosts import network_address
from sora_jax.train.metrics import read_metrics

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "unshare", "mount")
MOST_SECONDS = 240.0  # in which nothing may happen: Slurm itself waits before it starts a job again
CONF = """
ClusterName=sora
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
MailProg=/bin/true
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ReturnToService=2
KillWait=60
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus}
PartitionName=all Nodes=n1,n2 Default=YES State=UP OverSubscribe=NO
"""


def missing() -> str:
  """What this machine lacks; "" for nothing."""
  if sys.platform != "linux" or os.geteuid():
    return "root on Linux"
  lacks = [name for name in PROGRAMS if not shutil.which(name)]
  if lacks:
    return f"{', '.join(lacks)} (apt-get install slurm-wlm munge)"
  tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
  return "the right to mount (unshare --mount)" if tried.returncode else ""


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
  """Two nodes, n1 and n2, on this machine; yields the environment in which sbatch finds them.

  Its folder is in /tmp, for the sockets in it have names of at most 108 bytes, and stays when the
  run fails.

  Raises:
    TimeoutError: a node did not come up.
  """
  folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
  folder.chmod(0o755)
  host = os.uname().nodename.partition(".")[0]
  ports = [free_port() for _ in range(3)]
  conf = CONF.format(folder=folder, host=host, ports=ports, cpus=os.cpu_count())
  (folder / "slurm.conf").write_text(conf.lstrip())
  (folder / "state").mkdir()
  key = folder / "munge.key"
  key.write_bytes(os.urandom(128))
  key.chmod(0o400)
  names = folder / "hosts"  # seen by the nodes alone
  address = network_address() or "127.0.0.1"
  names.write_text(Path("/etc/hosts").read_text() + f"{address} n1 n2\n")
  environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
  daemons: list[subprocess.Popen] = []

  def start(*words: str) -> None:
    with (folder / "daemons.log").open("a") as log:
      daemons.append(
        subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
      )

  see_names = f"mount --bind {names} /etc/hosts && exec slurmd -D -N "
  try:
    start(
      "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
      f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log",
      f"--seed-file={folder}/munged.seed",
    )  # fmt: skip
    wait_until((folder / "munge.socket").exists, "munged", 30)
    start("slurmctld", "-D")
    for name in ("n1", "n2"):
      start("unshare", "--mount", "sh", "-c", see_names + name)
    words = ["sinfo", "--noheader", "--format=%T"]
    idle = lambda: ask(words, environment).split() == ["idle"]  # noqa: E731
    wait_until(idle, f"nodes of {folder}", 60)
    yield environment
  finally:
    empty(environment)
    for daemon in reversed(daemons):
      daemon.terminate()
    for daemon in daemons:
      try:
        daemon.wait(20)
      except subprocess.TimeoutExpired:
        os.killpg(daemon.pid, signal.SIGKILL)
        daemon.wait()
  shutil.rmtree(folder, ignore_errors=True)  # where nothing failed


def empty(environment: dict[str, str]) -> None:
  """Cancels all jobs, and waits for their processes to be gone."""
  ask(["scancel", "--signal=KILL", "--full", "--user=root"], environment)
  ask(["scancel", "--user=root"], environment)
  with contextlib.suppress(TimeoutError):
    wait_until(lambda: not ask(["squeue", "--noheader"], environment).strip(), "an end", 30)


def ask(words: Sequence[str], environment: dict[str, str]) -> str:
  """What a program prints; "" where it fails."""
  done = subprocess.run(words, env=environment, capture_output=True, text=True)
  return "" if done.returncode else done.stdout


def wait_until(done: Callable[[], bool], what: str, seconds: float) -> None:
  end = time.monotonic() + seconds
  while not done():
    if time.monotonic() > end:
      raise TimeoutError(f"slurm: {what} did not come within {seconds:g} s")
    time.sleep(0.1)


class Job:
  """A run that `sora launch slurm` submitted.

  Args:
    folder: where its script and its log are.
    workdir: of the run.
    options: of `sora launch slurm`.
  """

  def __init__(
    self, folder: Path, workdir: Path, words: Sequence[str], environment: dict, options: Sequence
  ):
    self._workdir, self._environment, self.log = workdir, environment, folder / "job.log"
    setup = f"export PATH={Path(sys.executable).parent}:$PATH JAX_PLATFORMS=cpu; unset XLA_FLAGS"
    launch = [
      sys.executable, "-m", "sora_jax", "launch", "slurm", "--nodes=2", f"--setup={setup}",
      f"--output={self.log}", f"--script={folder / 'job.sbatch'}", *options, "--", *words,
    ]  # fmt: skip
    done = subprocess.run(launch, env=environment, capture_output=True, text=True)
    if done.returncode:
      raise RuntimeError(f"slurm: {done.stderr}")
    self._before = 0
    self.number = ask(["squeue", "--noheader", "--format=%A"], environment).strip()

  def step(self) -> int:
    lines = read_metrics(self._workdir)
    return lines[-1]["step"] if lines else 0

  def requeues(self) -> int:
    return self.text().count("requeues")

  def text(self) -> str:
    return self.log.read_text(errors="replace") if self.log.exists() else ""

  def is_there(self) -> bool:
    words = ["squeue", "--noheader", f"--jobs={self.number}", "--format=%A"]
    return bool(ask(words, self._environment).strip())

  def is_held(self) -> bool:
    words = ["squeue", "--noheader", f"--jobs={self.number}", "--format=%r"]
    return "held" in ask(words, self._environment)

  def wait_for(self, done: Callable[[], bool], what: str) -> None:
    """Raises TimeoutError when nothing happens for too long, RuntimeError when the job is gone."""
    moved, before = time.monotonic(), None
    while not done():
      now = (len(self.text()), self.step())
      if now != before:
        before, moved = now, time.monotonic()
      if time.monotonic() - moved > MOST_SECONDS:
        raise TimeoutError(f"slurm: nothing happened for {MOST_SECONDS:g} s, waiting for {what}")
      if self.is_held():
        raise RuntimeError(f"slurm: job {self.number} could not be started, see {self.log.parent}")
      if not self.is_there() and not done():
        raise RuntimeError(f"slurm: the job ended before {what}:\n{self.text()}")
      time.sleep(0.2)

  def disturb(self, at: int, fault: Callable[[], None]) -> None:
    """A fault once step `at` is done, and one since the last requeue; then until the next one."""
    at = max(at, self._before + 1)
    self.wait_for(lambda: self.step() >= at, f"step {at}")
    count = self.requeues()
    fault()
    self.wait_for(lambda: self.requeues() > count, "a requeue")
    self._before = self.step()

  def ask_to_leave(self) -> None:
    """SIGTERM to the tasks, as Slurm itself sends it before a time limit or a preemption."""
    ask(["scancel", "--signal=TERM", self.number], self._environment)

  def kill_a_task(self) -> None:
    """kill -9 of the process on the second node."""
    mark = f"SLURM_JOB_ID={self.number}".encode()
    for folder in Path("/proc").iterdir():
      with contextlib.suppress(OSError):
        variables = (folder / "environ").read_bytes().split(b"\0")
        is_python = (folder / "exe").resolve().name.startswith("python")
        if is_python and mark in variables and b"SLURM_PROCID=1" in variables:
          os.kill(int(folder.name), signal.SIGKILL)
          return
    raise RuntimeError("slurm: no process of the job was found")


def run(folder: Path, *, time_limit: bool) -> str:
  """The log of a job that was disturbed.

  Args:
    folder: for all that is made.
    time_limit: whether the job also has to survive the end of its time.
  Raises:
    AssertionError: it ended as another run than the undisturbed one.
  """
  steps, calm, workdir = 40, folder / "calm", folder / "run"
  words = command(calm, steps, "", 600.0)
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
  environment.pop("XLA_FLAGS", None)
  subprocess.run(
    [sys.executable, "-m", "sora_jax", *words], env=environment, check=True, capture_output=True
  )
  words = command(workdir, steps, str(calm / "data" / "latents"), 600.0)
  with cluster() as environment:
    job = Job(folder, workdir, words, environment, ["--max-restarts=3"])
    job.disturb(6, job.ask_to_leave)
    job.disturb(12, job.kill_a_task)
    job.wait_for(lambda: not job.is_there(), "the end")
    log = job.text()
    if time_limit:
      log += "\n" + outlive_limit(folder / "limit", environment)
  found, expected = look(workdir), look(calm)
  for name, value in expected.items():
    assert found[name] == value, f"slurm: {name} differs:\n{log}"
  assert "saved (exit 42), requeues" in log and "failure 1 of 3, requeues" in log, log
  return log


def outlive_limit(folder: Path, environment: dict[str, str]) -> str:
  """The log of a job whose time is up before it is done: it saves, and is requeued."""
  folder.mkdir()
  data = str(folder.parent / "calm" / "data" / "latents")
  words = command(folder / "run", 100_000, data, 600.0)
  job = Job(folder, folder / "run", words, environment, ["--time=2", "--grace=60"])
  job.wait_for(lambda: job.requeues() > 0, "the end of its time")
  job.wait_for(lambda: "resumes at step" in job.text(), "its second start")
  return job.text()


def main(argv=None) -> int:
  p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  p.add_argument("--out", default="", help="file for the job's log (default: stdout alone)")
  p.add_argument("--folder", default="", help="for all that is made (default: a temporary one)")
  args = p.parse_args(argv)
  if lacks := missing():
    print(f"slurm: this machine lacks {lacks}. Nothing was run.", file=sys.stderr)
    return 2
  folder = Path(args.folder or tempfile.mkdtemp(prefix="sora-slurm-"))
  log = run(folder, time_limit=True)
  print(log)
  if args.out:
    Path(args.out).write_text(log, encoding="utf-8")
  return 0


if __name__ == "__main__":
  sys.exit(main())

"""Many processes as one run: how they find each other, and how they meet.

All that is exchanged here goes through the coordinator (process 0), never through the devices: it
works while a device is busy, and every wait has an end and a name.
"""

import contextlib
import ipaddress
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import clusters, xla_bridge
from jax._src.distributed import global_state

from data_pipeline.errors import BadInput
from sora_jax.parallel import heartbeat, joining
from sora_jax.parallel.joining import Joining, LostPeer

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_LOST = ("Gloo", "NCCL", "coordination service", "Connection closed by peer", "heartbeat")
_ALONE = 10**6  # seconds: a process of its own may be stopped and continued at any time
_TOLD = (
  ". The environment (Slurm, Cloud TPU, Open MPI) says so; to run alone: JAX_NUM_PROCESSES=1"
  " JAX_PROCESS_ID=0 JAX_COORDINATOR_ADDRESS=127.0.0.1:8476"
)
_joined = False
_counts: dict[str, int] = {}  # name -> times that this process has met under it


class Left(LostPeer):
  """Another process left by itself, with an exit code that goes for all: 2, or 42."""

  def __init__(self, text: str, code: int):
    super().__init__(text)
    self.exit_code = code if code in (2, 42) else 1


def initialize(
  coordinator: str = "",
  processes: int = 0,
  process: int = -1,
  *,
  start_seconds: float = 300,
  silence_seconds: float = 100,
) -> None:
  """Joins the processes of a run; once a process, before its devices are used.

  Where nothing is given, the environment is asked: `VARIABLES`, then Slurm, Cloud TPU, GKE and Open
  MPI as JAX detects them; a process that none of these knows is a run of its own.

  Args:
    coordinator: HOST:PORT of process 0.
    processes, process: how many there are, and which one this is.
    start_seconds: until all have to be there.
    silence_seconds: after which one without a sign of life is given up, and all end.
  Raises:
    BadInput: half of it is given, or what is no address or number.
    LostPeer: the others did not come.
  """
  global _joined  # noqa: PLW0603 (one process, one run)
  if jax.distributed.is_initialized():
    _joined = True
    return
  given = _given(coordinator, processes, process)
  found = given or _detect(start_seconds)
  if xla_bridge.backends_are_initialized():
    if found and found[1] > 1:
      raise RuntimeError("hosts: initialize comes before the first use of a device.")
    return  # a library's or a test's process, which has its devices already: alone
  address, count, number, devices = found or (f"127.0.0.1:{heartbeat.free_port()}", 1, 0, None)
  # Signals are noted by `train.stop`, and agreed on here: JAX's handler would swallow them.
  jax.config.update("jax_enable_preemption_service", False)
  bind = bind_address(address, count) if number == 0 else None
  status = Joining(number, count, address)

  def join() -> None:
    if number:
      joining.call(status)
    else:
      joining.gather(status, str(bind))
    if not status.is_over.is_set():
      _join(address, count, number, devices, bind, silence_seconds)

  if count == 1:
    _join(address, 1, 0, devices, bind, _ALONE)
  else:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    heartbeat.tell_place("joining")
    joining.wait_for(join, status, start_seconds, "" if given else _TOLD)
  _joined = True
  share("hosts", socket.gethostname(), seconds=start_seconds)


def _join(address: str, count: int, number: int, devices, bind, silence_seconds: float) -> None:
  """Lets JAX join processes that are all there."""
  try:
    jax.distributed.initialize(
      address,
      count,
      number,
      local_device_ids=devices,
      cluster_detection_method="deactivate",
      initialization_timeout=_ALONE,  # never over: JAX would end the process without a word
      heartbeat_timeout_seconds=max(1, round(silence_seconds)),
      coordinator_bind_address=bind,
    )
  except RuntimeError as error:
    raise LostPeer(
      f"hosts: process {number} of {count} could not join at {address}"
      f" ({str(error).splitlines()[0]}). Look at the log of process 0."
    ) from error


@contextlib.contextmanager
def naming_lost_peers() -> Iterator[None]:
  """Turns what a collective says when a process is gone into LostPeer."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    text = str(error)
    if count() == 1 or not any(word in text for word in _LOST):
      raise
    raise LostPeer(
      f"hosts: another process is gone, or does not answer ({text.splitlines()[0]}). Look at the"
      " logs of the others; the run goes on from its last checkpoint when it is started again."
    ) from error


def _given(coordinator: str, processes: int, process: int) -> tuple | None:
  """What flags say, else the variables; None where neither says anything."""
  words = [coordinator, str(processes) if processes else "", str(process) if process >= 0 else ""]
  source = "--coordinator, --processes and --process"
  if not any(words):
    words, source = [os.environ.get(name, "") for name in VARIABLES], ", ".join(VARIABLES)
  if not any(words) or words[0] and not any(words[1:]):  # an address alone adds to what is detected
    return None
  host, _, port = words[0].rpartition(":")
  numbers = words[1].isdecimal() and words[2].isdecimal() and port.isdecimal()
  if not host or not numbers or not int(words[2]) < int(words[1]):
    raise BadInput(
      f"hosts: {source} are {', '.join(map(repr, words))}. Give HOST:PORT of process 0, the number"
      " of processes, and this one's from 0 on."
    )
  return words[0], int(words[1]), int(words[2]), _local_devices()


def _local_devices() -> list[int] | None:
  """Devices of this process, as JAX_LOCAL_DEVICE_IDS says; None where it does not."""
  words = os.environ.get("JAX_LOCAL_DEVICE_IDS", "")
  if not words:
    return None
  try:
    return [int(word) for word in words.split(",")]
  except ValueError:
    text = f"hosts: JAX_LOCAL_DEVICE_IDS={words!r} are no numbers. Set it as 0,1."
    raise BadInput(text) from None


def _detect(seconds: float) -> tuple | None:
  """What Slurm, Cloud TPU, GKE or Open MPI say, as JAX reads them; None without any of them.

  Raises:
    LostPeer: the name of process 0's machine is not known.
  """
  devices, status = _local_devices(), Joining(-1, 0, "in its network")
  status.waits = "the name of process 0's machine"

  def detect() -> tuple:
    try:
      return clusters.ClusterEnv.auto_detect_unset_distributed_params(
        os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, devices, None, round(seconds)
      )
    except RuntimeError as error:
      raise LostPeer(f"hosts: {error}. Look whether process 0 was started.") from error

  found = joining.wait_for(detect, status, seconds + 10)
  return None if None in found[:3] else found


def bind_address(address: str, processes: int) -> str:
  """Where the coordinator listens: on the interface of its own address, not on all of them."""
  if asked := os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
    return asked
  host, _, port = address.rpartition(":")
  host = host.strip("[]")
  try:
    found: Any = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
  except OSError:  # only process 0 binds, at the address that the others look for it
    return f"{network_address() or '127.0.0.1'}:{port}"
  if ipaddress.ip_address(found).is_loopback and processes > 1 and not _is_local_name(host):
    # Debian's hosts file names a machine's own name so; the others know it by its network address.
    found = network_address() or found
    print(
      f"train: {host} is a loopback address on this machine, so the coordinator listens on {found}."
      " If others do not reach it there, set JAX_COORDINATOR_BIND_ADDRESS=IP:PORT.",
      file=sys.stderr,
    )
  return f"[{found}]:{port}" if ":" in found else f"{found}:{port}"


def network_address() -> str:
  """Address of the interface by which this machine reaches others; "" where it has none."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
      probe.connect(("203.0.113.1", 9))  # for documentation (RFC 5737); nothing is sent
      return probe.getsockname()[0]
    except OSError:
      return ""


def _is_local_name(host: str) -> bool:
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost"


def index() -> int:
  """Number of this process. Unlike jax.process_index() it takes no device."""
  return global_state.process_id


def count() -> int:
  """Processes of the run."""
  return global_state.num_processes


def is_joined() -> bool:
  """Whether this process has joined a run."""
  return _joined


def is_first() -> bool:
  """Whether this process writes what a run has one of."""
  return index() == 0


def _client() -> Any:
  return global_state.client


def share(name: str, value: Any, *, seconds: float) -> list:
  """A JSON-able value of each process, by its number. All have to call it, under the same name.

  Raises:
    LostPeer: some did not within `seconds`; it names them.
  """
  if count() == 1:
    return [value]
  client, me = _client(), index()
  _counts[name] = meeting = _counts.get(name, 0) + 1
  key = f"sora/{name}/{meeting}"
  try:
    client.key_value_set(f"{key}/{me}", json.dumps(value))
    found = _gather(key, name, seconds)
  except jax.errors.JaxRuntimeError as error:
    raise LostPeer(_missing(key, name, seconds)) from error
  if found is None:
    raise LostPeer(_missing(key, name, seconds))
  if meeting > 1 and is_first():  # all have left the meeting before this one
    client.key_value_delete(f"sora/{name}/{meeting - 1}/")
    client.key_value_delete(f"sora/{name}/{meeting - 1}-all")
  return found


def _gather(key: str, name: str, seconds: float) -> list | None:
  """What all said, as process 0 found it; None after `seconds`.

  Asked for in Python, again and again: in a wait of the coordinator's own no signal is handled.
  """
  begin, pause, looked = time.monotonic(), 0.005, 0.0
  while (waited := time.monotonic() - begin) < seconds:
    if is_first():
      found = _read(key)
      if len(found) == count():
        every = [found[i] for i in range(count())]
        _client().key_value_set(f"{key}-all", json.dumps(every))
        return every
    elif (every := heard(f"{key.removeprefix('sora/')}-all")) is not None:
      return every
    if waited - looked > 1.0:
      looked = waited
      for number, code in sorted(heard_from("left").items()):
        who = name_processes([number])
        raise Left(f"hosts: at {name}, {who} left with exit code {code}. Look at its log.", code)
    time.sleep(pause)
    pause = min(0.2, 1.5 * pause)
  return None


def part(code: int) -> None:
  """Says that this process leaves with a code, and waits for the others to leave."""
  if count() > 1:
    say(f"left/{index()}", code)
  jax.distributed.shutdown()


def barrier(name: str, *, seconds: float) -> None:
  """Waits for all processes. Raises LostPeer."""
  share(name, None, seconds=seconds)


def first_does(name: str, work, *, seconds: float) -> None:
  """Process 0 works, the others wait for it, and fail as it does.

  Raises:
    whatever `work` raised in process 0; in the others BadInput with its words where it was one,
    else LostPeer.
  """
  failed: BaseException | None = None
  if is_first():
    try:
      work()
    except BaseException as error:  # the others are told first
      failed = error
  told = {"said": str(failed), "bad": isinstance(failed, BadInput)} if failed else None
  told = share(name, told, seconds=seconds)[0]
  if failed:
    raise failed
  if told:
    raise BadInput(told["said"]) if told["bad"] else LostPeer(f"process 0: {told['said']}")


def say_once(name: str, value: Any) -> Any:
  """Says a value under a name that nobody has used; else returns what was said first."""
  try:
    _client().key_value_set(f"sora/{name}", json.dumps(value), allow_overwrite=False)
  except jax.errors.JaxRuntimeError:
    return heard(name)
  return value


def say(name: str, value: Any) -> None:
  """Says a value under a name, instead of what was said before."""
  _client().key_value_set(f"sora/{name}", json.dumps(value), allow_overwrite=True)


def heard(name: str) -> Any:
  """What was said under a name; None for nothing."""
  try:
    return json.loads(_client().key_value_try_get(f"sora/{name}"))
  except jax.errors.JaxRuntimeError as error:
    if "NOT_FOUND" not in str(error):
      raise LostPeer(f"hosts: the coordinator is gone ({str(error).splitlines()[0]}).") from error
    return None


def heard_from(name: str) -> dict[int, Any]:
  """What processes said under NAME/their number."""
  return _read(f"sora/{name}")


def _read(key: str) -> dict[int, Any]:
  pairs = _client().key_value_dir_get(f"{key}/")
  return {int(name.rpartition("/")[2]): json.loads(value) for name, value in pairs}


def name_processes(numbers) -> str:
  """"process 2 on n3, process 5 on n7"."""
  try:
    known = _read("sora/hosts/1")
  except (jax.errors.JaxRuntimeError, AttributeError):
    known = {}
  return ", ".join(f"process {i} on {known.get(i, 'an unknown host')}" for i in sorted(numbers))


def name_first() -> str:
  """Process 0, by the address that it was looked for at."""
  return f"process 0 at {global_state.coordinator_address}"


def _missing(key: str, name: str, seconds: float) -> str:
  try:
    came = set(_read(key))
  except jax.errors.JaxRuntimeError:
    return f"hosts: at {name}, the coordinator (process 0) does not answer any more. It is gone."
  lost = set(range(count())) - came
  if not lost:
    return f"hosts: at {name}, after {seconds:.0f} s, process 0 did not answer. Look at its log."
  return (
    f"hosts: at {name}, after {seconds:.0f} s, {name_processes(lost)} did not come. Look at its"
    " log, or its stacks in the workdir."
  )

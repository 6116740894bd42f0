"""What a process says on stderr: ours and errors; all the rest with -v."""

import subprocess
import sys

import pytest

from data_pipeline import messages

TALK = """
import logging, sys, warnings
from data_pipeline import messages
messages.{begin}()
for name in ("apache_beam.io", "orbax", "absl", "data_pipeline.clips"):
  for level in (logging.INFO, logging.WARNING, logging.WARNING, logging.ERROR):
    logging.getLogger(name).log(level, "%s at %s", name, logging.getLevelName(level))
logging.warning("apitools not found")
warnings.warn("a donated buffer", UserWarning)
print("a trace of Beam's own", file=sys.stderr)
relayed = logging.LogRecord("root", 40, "/x/apache_beam/worker.py", 1, "severity: ERROR", (), None)
logging.getLogger().handle(relayed)
raise SystemExit if {fine} else ValueError("it broke")
"""
OURS = [
  "ERROR orbax: orbax at ERROR",
  "ERROR absl: absl at ERROR",
  "WARNING: data_pipeline.clips at WARNING",
  "ERROR data_pipeline.clips: data_pipeline.clips at ERROR",
]


def talk(begin="begin", fine=True, **environment):
  done = subprocess.run(
    [sys.executable, "-c", TALK.format(begin=begin, fine=fine)],
    capture_output=True,
    text=True,
    env={"PATH": "", "PYTHONPATH": ":".join(sys.path), **environment},
  )
  return done.stderr.splitlines()


def test_libraries_are_heard_when_they_fail_and_our_warnings_once():
  beam = "ERROR apache_beam.io: apache_beam.io at ERROR"  # of a logger that Beam did not make
  assert talk() == [beam, *OURS, "a trace of Beam's own"]


def test_a_worker_drops_what_is_printed_but_not_why_it_ends():
  lines = talk("begin_worker", fine=False)
  assert lines[1:5] == OURS and "a trace of Beam's own" not in lines
  assert lines[5].startswith("Traceback") and lines[-1] == "ValueError: it broke"


def test_with_v_everything_is_heard():
  lines = talk(SORA_VERBOSE="1")
  said = {"INFO orbax: orbax at INFO", "WARNING absl: absl at WARNING", "a trace of Beam's own"}
  assert said | set(OURS) <= set(lines) and "WARNING root: apitools not found" in lines
  assert any("a donated buffer" in line for line in lines)
  assert "ERROR root: severity: ERROR" in lines
  assert "a trace of Beam's own" in talk("begin_worker", SORA_VERBOSE="1")


@pytest.fixture
def host(tmp_path):
  """A host's PCI devices, as Linux shows them: (vendor, class) each."""

  def make(*devices):
    for number, (vendor, kind) in enumerate(devices):
      folder = tmp_path / f"0000:00:{number:02x}.0"
      folder.mkdir(parents=True)
      (folder / "vendor").write_text(f"{vendor}\n")
      (folder / "class").write_text(f"{kind}\n")
    return tmp_path

  return make


NETWORK, DISK = ("0x1ae0", "0x020000"), ("0x1ae0", "0x010802")
GPU, CHIP = ("0x10de", "0x030200"), ("0x1ae0", "0xff0000")


def test_libtpu_is_told_of_no_hosts_where_there_is_no_tpu(host):
  environment = {"TPU_WORKER_HOSTNAMES": "mine"}
  messages.hide_absent_tpu(environment, host(NETWORK, DISK, GPU))
  assert environment.pop("TPU_WORKER_HOSTNAMES") == "mine"
  assert environment == {"TPU_HOST_BOUNDS": "1,1,1", "TPU_CHIPS_PER_HOST_BOUNDS": "1,1,1"}


@pytest.mark.parametrize("environment, devices", [({}, (GPU, CHIP)), ({"SORA_VERBOSE": "1"}, ())])
def test_a_real_tpu_is_left_alone(environment, devices, host):
  before = dict(environment)
  messages.hide_absent_tpu(environment, host(*devices))
  assert environment == before

"""What a session holds and writes beside its checkpoints: the lock, the config, the rate."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from colleague import as_colleague, masked, odd_modes, open_folder
from flax import nnx

from data_pipeline.errors import BadInput
from sora_jax.models.frozen_vae import load_frozen_vae, save_frozen_vae
from sora_jax.models.vae import make_codec
from sora_jax.train.checkpoint import Checkpoints
from sora_jax.train.events import Events
from sora_jax.train.metrics import MetricsWriter, cut_back
from sora_jax.train.run_folder import keep_config, lock
from sora_jax.train.session import log_rate
from sora_jax.train.state import Progress, State
from sora_jax.train.stop import DiskFull
from sora_jax.train.workdir import find_checkpoints

CODEC = dict(
  name="vae", widths=[8], blocks=[1], strides=[[4, 8]], taps=2, latent_channels=3, dtype="float32"
)

def test_a_run_is_as_readable_as_its_neighbours_and_forbidden_is_not_absent():
  """Files that our code and Orbax write; with the eyes of another user."""
  params = nnx.state(make_codec(CODEC, seed=0))
  statistics = {"mean": np.zeros(3), "std": np.ones(3)}
  for mask in (0o002, 0o022):
    with open_folder() as folder, masked(mask):
      run, vae = folder / "run", folder / "run" / "frozen" / "vae"
      with lock(run), Events(run) as events, MetricsWriter(run, total_steps=2) as report:
        keep_config(run, {"seed": 0})
        report(1, {"loss": 1.0})
        cut_back(run, 1)
        with Checkpoints(run / "checkpoints", events=events) as checkpoints:
          state = State(jnp.int32(1), {"w": jnp.zeros(3)}, {}, {})
          checkpoints.save(1, state, Progress({}), {})
      save_frozen_vae(vae, config=CODEC, params=params, statistics=statistics)
      assert odd_modes(folder, mask) == {}
      read = lambda run=run: Checkpoints(find_checkpoints(run), read_only=True).read(1)  # noqa: E731
      load_frozen_vae(vae), read()  # which compiles, as who may write that down
      if mask == 0o002:
        continue
      for file in ("params.safetensors", "config.json"):
        os.chmod(vae / file, 0o600)
        with as_colleague(), pytest.raises(BadInput, match=f"{file} may not be read by this user"):
          load_frozen_vae(vae)
        os.chmod(vae / file, 0o644)
      with as_colleague():
        load_frozen_vae(vae)
        assert read()["step"] == 1
      for private in (run / "checkpoints", run / "checkpoints" / "1" / "state"):
        os.chmod(private, 0o700)
        with as_colleague(), pytest.raises(BadInput, match=f"{private} may not be read by this"):
          read()
        os.chmod(private, 0o755)


HOLD = """
import sys, time
from pathlib import Path
from sora_jax.train.run_folder import lock
with lock(Path(sys.argv[1])):
  print("held", flush=True)
  time.sleep(60)
"""


def test_one_session_at_a_time(tmp_path):
  with lock(tmp_path / "run"):
    text = "run is being trained by another process. Wait for it, or use another --workdir."
    with pytest.raises(BadInput, match=text), lock(tmp_path / "run"):
      pass
    with lock(tmp_path / "other"):
      pass
  with lock(tmp_path / "run"):  # free again
    pass


def test_a_killed_session_frees_its_workdir(tmp_path):
  command = [sys.executable, "-c", HOLD, str(tmp_path)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(BadInput, match="another process"), lock(tmp_path):
      pass
    process.kill()
  with lock(tmp_path):
    pass


def test_the_config_is_replaced_whole(tmp_path):
  keep_config(tmp_path, {"seed": 0})
  first = (tmp_path / "config.json").stat().st_ino
  keep_config(tmp_path, {"seed": 1})
  assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 1}
  assert (tmp_path / "config.json").stat().st_ino != first  # not written over in place
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_rate_logged_is_the_one_applied():
  step = lambda state, frozen, batch: (state._replace(step=state.step + 1), {"loss": 1.0})  # noqa: E731
  state = State(jnp.int32(3), {}, {}, {})
  new, metrics = log_rate(step, lambda done: 0.5 * done)(state, {}, {})
  assert metrics == {"loss": 1.0, "lr": 1.5} and int(new.step) == 4
  assert log_rate(step, None)(state, {}, {})[1] == {"loss": 1.0}


FILL = """
import resource, signal, sys
from pathlib import Path
from sora_jax.models.frozen_vae import load_frozen_vae, save_frozen_vae
from sora_jax.models.vae import make_codec
from sora_jax.train.checkpoint import Checkpoints
from sora_jax.train.events import Events
from sora_jax.train.metrics import MetricsWriter, cut_back
from sora_jax.train.stop import DiskFull
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
what = dict(events=lambda: Events(folder), metrics=lambda: MetricsWriter(folder, total_steps=9))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
  with what[sys.argv[2]]() as out:
    for step in range(1, 200):
      out(step, {"loss": 0.25}) if sys.argv[2] == "metrics" else out("save", step=step)
except DiskFull as error:
  print(error)
"""


@pytest.mark.parametrize("what, file", [("events", "events.jsonl"), ("metrics", "metrics.jsonl")])
def test_a_file_that_cannot_grow_is_named_and_holds_whole_lines(tmp_path, what, file):
  """A limit that cuts through the middle of a line, as the last block of a full disk does."""
  patched = FILL.replace("signal.SIG_IGN)", "signal.SIG_IGN)\nimport errno\n" + AS_FULL)
  done = subprocess.run(
    [sys.executable, "-c", patched, str(tmp_path), what, "1001"],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert "its disk is full" in done.stdout, done.stderr
  text = (tmp_path / file).read_text()
  assert text.endswith("\n") and [json.loads(line) for line in text.splitlines()]


# The kernel says EFBIG at a limit of a process, and ENOSPC or EDQUOT at that of a disk.
AS_FULL = "errno.ENOSPC = errno.EFBIG"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device")
def test_what_ended_a_session_is_not_hidden_by_a_full_disk(tmp_path, monkeypatch):
  opened = Path.open
  full = lambda path, mode="r", *a, **k: opened(  # noqa: E731
    Path("/dev/full") if mode == "ab" else path, mode, *a, **k
  )
  monkeypatch.setattr(Path, "open", full)
  with (
    pytest.raises(DiskFull, match="cannot be written, its disk is full"),
    MetricsWriter(tmp_path, total_steps=2) as report,
  ):
    report(1, {"loss": 1.0})
  events = Events(tmp_path)
  with pytest.raises(DiskFull, match="its disk is full"):
    events("save")
  with pytest.raises(ZeroDivisionError):  # what ended the session, not its last event
    events.__exit__(ZeroDivisionError, None, None)
    raise ZeroDivisionError

"""A curation on a cluster of Dask: the same bytes though a worker dies, and what ends a job."""

import logging
import os
import re
import runpy
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from pictures import texture

from data_pipeline.curate import cluster, pipeline
from data_pipeline.curate.job import curate
from data_pipeline.curate.settings import read_settings
from data_pipeline.errors import BadInput
from data_pipeline.video_writer import encode_video

ROOT = Path(__file__).resolve().parents[3]
CONFIG = runpy.run_path(str(ROOT / "experiments" / "curate_default.py"))["get_config"]("debug")
QUIET = dict(dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL)
STUB = runpy.run_path(str(Path(__file__).with_name("chat_stub.py")))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  """Three videos, and a smaller copy of one."""
  folder = tmp_path_factory.mktemp("videos")
  for seed, step in ((0, 1), (1, 1), (2, 1), (0, 2)):
    picture = texture(seed, 64, 144)[::step, ::step]
    frames = [np.ascontiguousarray(picture[:, t // step :][:, : 96 // step]) for t in range(24)]
    size = dict(width=96 // step, height=64 // step)
    video = encode_video(iter(frames), **size, fps=24, codec="h264", quality=20)
    (folder / f"{seed}{step}.mp4").write_bytes(video.data)
  return folder


def settings_of(**captions):
  plain = CONFIG.curate.to_dict()
  return read_settings(plain | {"captions": plain["captions"] | captions})


@pytest.fixture(scope="module")
def made(videos, tmp_path_factory):
  """The dataset that this process makes of them, and what it says."""
  out = tmp_path_factory.mktemp("here") / "clips"
  return out, curate(str(videos), out, settings_of(), workers=1)


@pytest.fixture(scope="module")
def workers():
  """A cluster of two processes that are started again when they die."""
  with LocalCluster(n_workers=2, threads_per_worker=1, **QUIET) as local:
    yield local


def on(where):
  return ["--runner=DaskRunner", f"--dask_client_address={where.scheduler_address}"]


def contents(folder):
  files = (path for path in folder.rglob("*") if path.is_file())
  return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def pids(where) -> set[int]:
  with Client(where.scheduler_address, set_as_default=False) as client:
    return set(client.run(os.getpid).values())


def is_cutting(pid) -> bool:
  """Whether a worker has a child process for a source now."""
  try:
    return any("keeper" in " ".join(child.cmdline()) for child in psutil.Process(pid).children())
  except psutil.Error:  # one ended meanwhile
    return False


def kill_first_cutter(pids, killed, ended):
  """Kills the first worker that cuts a source, at once."""
  while not killed and not ended.is_set():
    for pid in filter(is_cutting, pids):
      os.kill(pid, signal.SIGKILL)
      killed.append(pid)
      return
    time.sleep(0.005)


@pytest.mark.slow
def test_the_same_bytes_though_a_worker_is_killed(made, videos, workers, tmp_path):
  before, killed, ended = pids(workers), [], threading.Event()
  killer = threading.Thread(target=kill_first_cutter, args=(before, killed, ended))
  killer.start()
  said = curate(str(videos), tmp_path / "clips", settings_of(), options=on(workers))
  ended.set()
  killer.join()
  assert len(killed) == 1 and killed[0] in before and killed[0] not in pids(workers)
  assert contents(tmp_path / "clips") == contents(made[0])
  assert said["rejects"] == made[1]["rejects"] == {"duplicate": 1}


@pytest.mark.slow
def test_what_ends_a_worker_ends_the_job_in_one_line(made, videos, workers, tmp_path):
  """Nobody answers at the captions' endpoint: that is found out on a worker."""
  shutil.copytree(made[0].with_name(".clips.curate"), tmp_path / ".clips.curate")  # nothing to cut
  prompts = (dict(name="short", text="Describe it briefly.", max_characters=300),)
  chat = STUB["SETTINGS"] | dict(base_url="http://127.0.0.1:9", api_key_variable="")
  asking = settings_of(prompts=prompts, chat=chat)
  with pytest.raises(BadInput, match=r"base_url=.* cannot be asked .*Connection refused"):
    curate(str(videos), tmp_path / "clips", asking, options=on(workers))
  assert not (tmp_path / "clips").exists()


@pytest.mark.slow
def test_a_key_that_workers_lack_is_missed_first(videos, workers, tmp_path, monkeypatch):
  monkeypatch.setenv(STUB["VARIABLE"], "key")
  prompts = (dict(name="short", text="Describe it briefly.", max_characters=300),)
  asking = settings_of(prompts=prompts, chat=STUB["SETTINGS"] | dict(base_url="http://a"))
  with pytest.raises(BadInput, match=rf"the worker tcp://\S+ has {STUB['VARIABLE']}_is_set=False"):
    curate(str(videos), tmp_path / "clips", asking, options=on(workers))


@pytest.mark.slow
def test_a_cluster_that_cannot_be_used_is_named(videos, tmp_path):
  def fails(match, *options):
    with pytest.raises(BadInput, match=match):
      words = ["--runner=DaskRunner", "--dask_connection_timeout=1", *options]
      curate(str(videos), tmp_path / "clips", settings_of(), options=words)

  fails("no scheduler of Dask answers at 127.0.0.1:9 ", "--dask_client_address=127.0.0.1:9")
  fails("no scheduler of Dask answers at nowhere", "--dask_client_address=nowhere")
  fails("--dask_scheduler_file=no.json is not there", "--dask_scheduler_file=no.json")
  with LocalCluster(n_workers=0, **QUIET) as none:
    fails("has no worker. Start dask worker tcp://", *on(none)[1:])


class Cluster:
  """Answers as a scheduler and its workers would."""

  def __init__(self, scheduler, **workers):
    self.scheduler, self.workers = scheduler, workers

  def run_on_scheduler(self, look, needs):
    return self.scheduler

  def run(self, look, needs, **options):
    return self.workers


def test_machines_that_are_unlike_are_named(tmp_path):
  needs = cluster.Needs(str(tmp_path), pipeline.load, ("PATH", "SORA_NO_SUCH", ""))
  fits = cluster.look(needs)
  assert fits["PATH_is_set"] and not fits["SORA_NO_SUCH_is_set"] and "_is_set" not in fits
  cluster.check(Cluster(fits, a=fits, b=dict(fits)), needs)
  for name, value in ((f"exists({tmp_path})", False), ("python", "3.8"), ("PATH_is_set", False)):
    text = rf" has {re.escape(name)}={value}, this process"
    with pytest.raises(BadInput, match="worker b" + text):
      cluster.check(Cluster(fits, a=fits, b=fits | {name: value}), needs)
    with pytest.raises(BadInput, match="scheduler" + text):
      cluster.check(Cluster(fits | {name: value}, a=fits), needs)
  lacking = ModuleNotFoundError("No module named 'data_pipeline'")
  with pytest.raises(BadInput, match="worker b cannot load the code .*Install the same"):
    cluster.check(Cluster(fits, b=lacking), needs)


def test_options_of_every_runner_are_known_and_no_others():
  for given in ("--direct_num_workers=1", "--runner=FlinkRunner", "--runner=daskrunner"):
    pipeline.read_options([given], 2)  # the first is Beam's default
  for given in ("--no_such=3", "--dask_no_such=3"):
    with pytest.raises(BadInput, match=f"{given} is no option of ours or of Beam's"):
      pipeline.read_options(["--runner=DaskRunner", given], 2)
  with pytest.raises(BadInput, match=r"\(argument --dask_npartitions: invalid int value: 'x'\)"):
    pipeline.read_options(["--runner=DaskRunner", "--dask_npartitions=x"], 2)

"""Runs at gs:// and s3://, against servers of this machine that speak their protocols."""

import contextlib
import json
import socket

import jax
import jax.numpy as jnp
import optax
import pytest
from etils import epath

from data_pipeline.errors import BadInput
from sora_jax.parallel.heartbeat import free_port
from sora_jax.train import lease
from sora_jax.train.checkpoint import Checkpoints
from sora_jax.train.hashes import state_hashes
from sora_jax.train.lease import Lease, LostLease
from sora_jax.train.object_store import prepare, s3_kvstore
from sora_jax.train.state import Progress, abstract_state, init_state
from sora_jax.train.workdir import (
  Mirror,
  checkpoints_of,
  copy_folder,
  open_run_folder,
  open_workdir,
  url_of,
)


@pytest.fixture(scope="session")
def gs():
  """A server of Google's protocol with a bucket; the URL of a folder there."""
  make = pytest.importorskip("gcp_storage_emulator.server").create_server
  from gcp_storage_emulator.exceptions import NotFound
  from gcp_storage_emulator.handlers import objects

  honest = objects.download

  def download(request, response, storage, *words, **named):
    """With the generation, which Google sends and TensorStore asks for when two write at once."""
    honest(request, response, storage, *words, **named)
    with contextlib.suppress(NotFound):
      found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
      response["x-goog-generation"] = found["generation"]

  port = free_port()
  server = make("localhost", port, in_memory=True, default_bucket="bucket")
  server.start()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(objects, "download", download)
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
      patch.setenv(name, f"http://localhost:{port}")
    patch.setenv("GOOGLE_CLOUD_PROJECT", "project")
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks Google's own hosts
    yield "gs://bucket/runs"
  server.stop()


@pytest.fixture(params=["s3", "gs"])
def url(request):
  """A URL that nothing is at, in a store of each kind."""
  name = request.node.name.partition("[")[0]
  found = f"{request.getfixturevalue(request.param)}/{name}"
  prepare(found)
  return found


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """Makes this process one of another machine, with copies of its own."""

  def become(name: str):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    monkeypatch.setattr(socket, "gethostname", lambda: name)

  become("one")
  monkeypatch.setattr(lease, "LOOK", 0.02)
  return become


@pytest.fixture
def state():
  params = {"kernel": jax.random.normal(jax.random.key(0), (16, 8)), "bias": jnp.arange(8.0)}
  return init_state(params, optax.adam(1e-3))


def test_checkpoints_come_back_bit_for_bit(url, state):
  with Checkpoints(f"{url}/checkpoints", max_to_keep=2) as checkpoints:
    for step in (1, 2, 3):
      state = state._replace(step=jnp.asarray(step, state.step.dtype))
      checkpoints.save(step, state, Progress({"bin": step}), {"word": "x"})
  with Checkpoints(f"{url}/checkpoints") as checkpoints:
    assert checkpoints.all_steps() == [2, 3]
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    abstract = abstract_state(jax.eval_shape(lambda: state), places)
    found, progress, run = checkpoints.restore(3, abstract)
    assert state_hashes(found) == state_hashes(state)
    assert progress.cursor == {"bin": 3} and run == {"word": "x"}
    epath.Path(f"{url}/checkpoints/3/commit_success.txt").unlink()  # as a kill would leave it
  with Checkpoints(f"{url}/checkpoints") as checkpoints:
    assert checkpoints.latest_step() == 2


def test_a_damaged_checkpoint_is_put_aside(url, state):
  with Checkpoints(f"{url}/checkpoints") as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, state, Progress({}), {})
    checkpoints.wait()
    where = checkpoints.set_aside(2)
    assert checkpoints.all_steps() == [1] and where.startswith(f"{url}/damaged/2-")
    assert (epath.Path(where) / "meta" / "metadata").is_file()


def test_a_copy_follows_its_url_from_machine_to_machine(url, machine):
  with Mirror(one := open_workdir(url, fresh=False)):
    (one / "frozen" / "vae").mkdir(parents=True)
    (one / "frozen" / "vae" / "config.json").write_text("{}")
    (one / "events.jsonl").write_text("first\n")
    (one / "config.json.partial").write_text("no")
    (one / "data").mkdir()
    (one / "data" / "large").write_text("no")
  machine("two")
  assert url_of(copy_folder(url)) == ""
  with Mirror(two := open_workdir(f"{url}/", fresh=False)) as mirror:
    names = sorted(str(p.relative_to(two)) for p in two.rglob("*") if p.is_file())
    assert names == [".of-url.json", ".pull.lock", "events.jsonl", "frozen/vae/config.json"]
    assert mirror._copy and mirror._copy.push() == []
    with (two / "events.jsonl").open("a") as file:
      file.write("second\n")
    assert mirror._copy.push() == ["events.jsonl"]
    assert checkpoints_of(two) == epath.Path(url) / "checkpoints"
  machine("one")
  assert open_workdir(url) == one and (one / "events.jsonl").read_text() == "first\nsecond\n"


def test_what_this_machine_has_not_brought_back_yet_stays(url, machine):
  with Mirror(folder := open_workdir(url, fresh=False)):
    (folder / "metrics.jsonl").write_text("1\n")
  (folder / "metrics.jsonl").write_text("1\n2\n")  # then it was killed
  with Mirror(open_workdir(url, fresh=False)) as mirror:
    assert (folder / "metrics.jsonl").read_text() == "1\n2\n"
    assert mirror._copy and mirror._copy.push() == ["metrics.jsonl"]


def test_one_machine_at_a_time(url, machine, tmp_path, monkeypatch):
  first = Lease(url, tmp_path / "copy")
  first.take()
  Lease(url, tmp_path / "copy").take()  # the same lock on the same machine: nobody else is at it
  first._write()
  machine("two")
  other, reads = Lease(url, tmp_path / "copy"), iter(range(10))
  honest = Lease._read

  def read(self):
    if next(reads) == 2:
      first.renew()
    return honest(self)

  monkeypatch.setattr(Lease, "_read", read)
  with pytest.raises(LostLease, match="is being trained by one. Wait for it"):
    other.take()
  monkeypatch.setattr(Lease, "_read", honest)
  monkeypatch.setattr(lease, "SECONDS", 0.3)  # the first one was killed, or was away for so long
  other.take()
  first.renew()  # does not take it back
  with pytest.raises(LostLease, match="or one trains there now"):
    first.check()
  first.release()
  assert json.loads(epath.Path(f"{url}/lock").read_text())["host"] == "two"
  other.release()
  assert not epath.Path(f"{url}/lock").exists()


def test_a_lease_that_could_not_be_renewed_is_lost(url, machine, tmp_path, monkeypatch):
  held = Lease(url, tmp_path)
  held.take()
  held.check()
  monkeypatch.setattr(lease, "SECONDS", 0.0)
  with pytest.raises(LostLease, match="could not be kept from other machines for 0 s"):
    held.check()
  held.release()


def test_what_was_removed_there_is_gone_here_and_what_vanished_here_stays_there(url, machine):
  with Mirror(folder := open_workdir(url, fresh=False)):
    for name in ("old", "both"):
      (folder / name).write_text(name)
  epath.Path(f"{url}/old").unlink()
  with Mirror(folder) as mirror:
    assert not (folder / "old").exists() and (folder / "both").exists()
    (folder / "both").unlink()
    mirror.push()
  assert epath.Path(f"{url}/both").exists() and not epath.Path(f"{url}/old").exists()


def test_a_store_that_fails_once_does_not_end_a_run(url, machine, monkeypatch):
  monkeypatch.setattr("sora_jax.train.workdir.PAUSE", 0.0)
  with Mirror(folder := open_workdir(url, fresh=False)) as mirror:
    (folder / "a").write_text("a")
    fails, honest = iter([True, True, False, False, False]), mirror._copy._fs.put_file

    def put_file(*words):
      if next(fails):
        raise ConnectionError("away")
      honest(*words)

    monkeypatch.setattr(mirror._copy._fs, "put_file", put_file)
    mirror.push()
  assert epath.Path(f"{url}/a").read_text() == "a"


@pytest.mark.parametrize(
  ("url", "text"),
  [
    ("ftp://key:word@host/run", "is neither a path nor of gs, s3"),
    ("s3://", "must be a bucket and a path"),
    ("s3://bucket/run[1]", "must be a bucket and a path"),
    ("s3://key:word@bucket/run", "credentials come from the environment"),
  ],
)
def test_refuses(url, text):
  with pytest.raises(BadInput, match=text) as found:
    open_workdir(url)
  assert "word" not in str(found.value)


def test_a_step_is_said_apart_from_a_url_too(url, machine):
  epath.Path(f"{url}/checkpoints/60/state").write_text("x")
  epath.Path(f"{url}/config.json").write_text("x")
  assert open_run_folder(url) == open_workdir(url)
  assert open_run_folder(f"{url}@7") == copy_folder(f"{url}@7")  # whose absence its reader says
  text = f"run: {url}@60 is none, but {url} has a step 60. .*--step=60, or init_step=60"
  with pytest.raises(BadInput, match=text):
    open_run_folder(f"{url}@60")
  epath.Path(f"{url}@60/checkpoints/1/state").write_text("x")
  assert open_run_folder(f"{url}@60") == copy_folder(f"{url}@60")  # a run of that name is itself


def test_regions_and_endpoints_are_those_of_the_environment(monkeypatch):
  for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
    monkeypatch.delenv(name, raising=False)
  assert s3_kvstore("s3://b/a/c") == {"driver": "s3", "bucket": "b", "path": "a/c"}
  monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
  monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
  found = s3_kvstore("s3://b/a")
  assert found["aws_region"] == "eu-west-1" and found["endpoint"] == "http://minio:9000"


def test_names_of_objects_do_not_leave_the_copy(url, machine, monkeypatch):
  from sora_jax.train.workdir import Copy

  folder = open_workdir(url, fresh=False)
  copy = Copy(url, folder)
  entry = {"name": f"{copy._root}/../../evil", "type": "file", "size": 1}
  monkeypatch.setattr(copy._fs, "ls", lambda *_, **__: [entry])
  with pytest.raises(ValueError, match="an object is named '../../evil'"):
    copy.pull()
  assert json.loads((folder / ".of-url.json").read_text())["files"] == {}

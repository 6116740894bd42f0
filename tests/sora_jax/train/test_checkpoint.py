"""Checkpoints: bit for bit, whole or not at all, and honest about damage and room."""

import errno
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipeline.errors import BadInput
from sora_jax.commands.inspect_run import describe_run
from sora_jax.parallel.mesh import make_mesh
from sora_jax.parallel.rules import REPLICATED
from sora_jax.train import checkpoint
from sora_jax.train.checkpoint import Checkpoints
from sora_jax.train.damage import Damaged, Removed
from sora_jax.train.hashes import checksums, host_checksums, state_hashes
from sora_jax.train.migrations import VERSION
from sora_jax.train.run_folder import saved_config
from sora_jax.train.state import Progress, abstract_state, init_state, state_shardings
from sora_jax.train.stop import DiskFull, NotSaved

OPTIMIZER = optax.adam(1e-3)
RUN = {"config": {"total_steps": 3, "version": VERSION}, "environment": {}}


def make(width=64):
  params = {
    "kernel": jax.random.normal(jax.random.key(0), (width, 64)),
    "table": jax.random.normal(jax.random.key(1), (7,), jnp.bfloat16),
  }
  return init_state(params, OPTIMIZER)


def abstract(width=64):
  shapes = jax.eval_shape(lambda: make(width))
  mesh = make_mesh(devices=jax.devices()[:1])
  return abstract_state(shapes, state_shardings(shapes, REPLICATED, mesh))


def write(folder, steps=3, run=RUN, **options):
  """Saves states 1, 2, ..., each donated right after; returns their digests by step."""
  bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  state, digests = make(), {}
  with Checkpoints(folder, **options) as checkpoints:
    for step in range(1, steps + 1):
      state = bump(state)
      digests[step] = state_hashes(state)
      checkpoints.save(step, state, Progress({"bin": step}, step * 2**40, step), run)
    bump(state)  # while the last is being written
  return digests


def test_every_state_comes_back_bit_for_bit_though_donated_while_written(tmp_path):
  digests = write(tmp_path)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_step() == 3
    for step, expected in digests.items():
      state, progress, run = checkpoints.restore(step, abstract())
      assert state_hashes(state) == expected
      assert int(state.step) == step
      assert progress == Progress({"bin": step}, step * 2**40, step)
      assert run == RUN
    assert list(checkpoints.read(2, parts=("ema",))) == ["ema"]


def test_keeps_the_latest_and_the_multiples(tmp_path):
  write(tmp_path, steps=7, max_to_keep=2, keep_period=3)
  assert {path.name for path in tmp_path.iterdir() if path.name.isdigit()} == {"3", "6", "7"}


def test_what_a_killed_save_left_is_ignored(tmp_path):
  write(tmp_path, steps=1)
  (tmp_path / "2.orbax-checkpoint-tmp-5" / "state").mkdir(parents=True)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_step() == 1


def largest(folder):
  files = (folder / "state" / "ocdbt.process_0" / "d").iterdir()
  return max(files, key=lambda path: path.stat().st_size)


def truncate(folder):
  os.truncate(largest(folder), largest(folder).stat().st_size // 2)


def flip(folder):
  path = largest(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(bytes(data))


def cut_cursor(folder):
  path = folder / "cursor" / "metadata"
  path.write_text(path.read_text()[:3])


def lose_data(folder):
  largest(folder).unlink()


def lose_meta(folder):
  shutil.rmtree(folder / "meta")


def scribble_tree(folder):
  (folder / "state" / "_METADATA").write_text("[]}")


def empty_index(folder):
  for path in folder.rglob("manifest.ocdbt"):
    path.write_bytes(b"")


DAMAGES = [truncate, flip, cut_cursor, lose_data, lose_meta, scribble_tree, empty_index]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_not_passed_over(tmp_path, damage):
  write(tmp_path / "checkpoints", steps=2)
  damage(tmp_path / "checkpoints" / "2")
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    with pytest.raises(Damaged, match=r"step 2 in .* cannot be read \(.*\)\.$"):
      checkpoints.restore(checkpoints.latest_step(), abstract())
  with pytest.raises(Damaged, match=r"cannot be read .* Steps that are there: 1, 2\.$"):
    describe_run(tmp_path)


@pytest.mark.parametrize(
  "error",
  [TypeError("a slip"), PermissionError(errno.EACCES, "no"), ValueError("PERMISSION_DENIED: no")],
)
def test_what_no_file_is_to_blame_for_passes_through(tmp_path, monkeypatch, error):
  def fail(found):
    raise error

  write(tmp_path, steps=1)
  monkeypatch.setattr(checkpoint, "host_checksums", fail)
  with Checkpoints(tmp_path) as checkpoints, pytest.raises(type(error)) as caught:
    checkpoints.read(1)
  assert caught.value is error


def test_a_state_of_another_model_is_refused(tmp_path):
  write(tmp_path, steps=1)
  with Checkpoints(tmp_path) as checkpoints:
    text = r"holds ema/kernel=\(64, 64\), this config makes \(32, 64\)"
    with pytest.raises(BadInput, match=text):
      checkpoints.restore(1, abstract(width=32))


def test_a_full_disk_leaves_the_one_before_whole(tmp_path, monkeypatch):
  digests = write(tmp_path, steps=1, max_to_keep=1)
  state = make()
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  with Checkpoints(tmp_path, max_to_keep=1) as checkpoints:
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: size)
    text = rf"free={size:,} bytes .* step 2 needs \(the checkpoint at step 1 is whole\)"
    with pytest.raises(DiskFull, match=text) as caught:
      checkpoints.save(2, state, Progress({}), RUN)
    assert caught.value.exit_code == 1
    found, _, _ = checkpoints.restore(checkpoints.latest_step(), abstract())
    assert state_hashes(found) == digests[1]
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 2 * size)
    checkpoints.save(2, state, Progress({}), RUN)  # there is room again
  assert Checkpoints(tmp_path).latest_step() == 2


def test_inspect_needs_no_model(tmp_path):
  digests = write(tmp_path / "checkpoints", steps=2)
  found = describe_run(tmp_path)
  assert found["step"] == 2 and found["tokens_seen"] == 2**41 and found["cursor"] == {"bin": 2}
  assert found["parameters"] == 64 * 64 + 7 and found["config"] == RUN["config"]
  assert {key: found[key] for key in digests[2]} == digests[2]


def test_inspect_shows_the_config_that_is_kept(tmp_path, capsys):
  """Not what this version takes it for, which is said."""
  optim = {"name": "adamw", "ema_decay": 0.5, "more_ema_decays": [0.9]}
  config = {"total_steps": 1, "optim": optim, "model": {"name": "dit"}}
  write(tmp_path / "checkpoints", steps=1, run=RUN | {"config": config})
  found = describe_run(tmp_path)
  assert found["config"] == config and len(found["average_widths"]) == 2
  assert "is of version 1" in capsys.readouterr().err


def test_inspect_without_a_checkpoint(tmp_path):
  with pytest.raises(BadInput, match="holds no checkpoints folder"):
    describe_run(tmp_path)
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(BadInput, match="holds no finished checkpoint"):
    describe_run(tmp_path)


def test_sums_on_the_host_are_those_on_the_devices():
  rng = np.random.default_rng(0)
  tree = {
    "matrix": rng.normal(size=(37, 5, 3)).astype(np.float32),
    "half": jnp.asarray(rng.normal(size=(7, 9)), jnp.bfloat16),
    "step": np.int32(-5),
    "flags": np.array([True, False, True]),
    "long": rng.integers(0, 2**32, 2**22 + 3, np.uint32),  # more than is summed at once
  }
  on_host = jax.tree.map(np.asarray, tree)
  assert host_checksums(on_host) == checksums(tree)


def test_a_folder_with_another_steps_state_is_refused(tmp_path):
  """One that was copied or renamed: Orbax would write no step below its number, without a word."""
  write(tmp_path, steps=2)
  shutil.copytree(tmp_path / "1", tmp_path / "9")
  text = r"the folder .*9 holds the state of step 1: it was renamed or copied\. "
  with Checkpoints(tmp_path) as checkpoints:
    for use in (checkpoints.check_numbers, lambda: checkpoints.restore(9, abstract())):
      with pytest.raises(BadInput, match=text + "Move that folder elsewhere, or give"):
        use()
    with pytest.raises(NotSaved, match=r"step 3 was not saved: .* holds step 9 already\. Move"):
      checkpoints.save(3, make(), Progress({}), RUN)
  with Checkpoints(tmp_path, read_only=True) as checkpoints:
    for use in (checkpoints.describe, checkpoints.read):
      with pytest.raises(BadInput, match=text + "Name another step, or give it the name 1"):
        use(9)
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "checkpoints").symlink_to(tmp_path)
  with pytest.raises(BadInput, match="Move that folder elsewhere"):  # of who goes on training
    saved_config(tmp_path / "run")
  assert not (tmp_path / "3").exists()


def test_a_saved_step_is_there_in_the_end(tmp_path):
  """Someone who cleans up the folder is noticed at the next save, or at the end."""
  said = []
  checkpoints = Checkpoints(tmp_path, events=lambda event, **facts: said.append(event))
  checkpoints.save(1, make(), Progress({}), RUN)
  checkpoints._manager.wait_until_finished()
  shutil.rmtree(tmp_path / "1")
  with pytest.raises(NotSaved, match=r"step 1 was written and is not in .*Something else removes"):
    checkpoints.close()
  assert said == ["save_begin", "save"]  # and not save_wait, by which it would be whole
  checkpoints.close()


def remove_when_read(monkeypatch, folder, then=lambda: None):
  """Removes a checkpoint between the moment that it is listed and that it is read, once."""
  honest, seen = Checkpoints._read_meta, []

  def read_meta(self, step):
    if not seen:
      seen.append(step)
      then()
      shutil.rmtree(folder / str(step))
    return honest(self, step)

  monkeypatch.setattr(Checkpoints, "_read_meta", read_meta)


def test_a_checkpoint_that_goes_under_a_reader_is_not_damaged(tmp_path, monkeypatch):
  digests = write(tmp_path, steps=2)
  shutil.copytree(tmp_path / "2", tmp_path / "aside")
  shutil.rmtree(tmp_path / "2")
  save = lambda: (tmp_path / "aside").rename(tmp_path / "2")  # noqa: E731
  with Checkpoints(tmp_path, read_only=True) as checkpoints, monkeypatch.context() as patch:
    remove_when_read(patch, tmp_path, save)  # as a training with max_to_keep=1 does
    step, found = checkpoints.look(None, lambda step: (step, checkpoints.read(step)))
    assert (step, state_hashes(found)) == (2, digests[2])
    assert checkpoints.look(1, checkpoints.read) is None
  text = r"step 2 in .* was removed while it was read: a training keeps the newest \(keep\."
  with Checkpoints(tmp_path, read_only=True) as checkpoints, monkeypatch.context() as patch:
    remove_when_read(patch, tmp_path)
    with pytest.raises(Removed, match=text + r".*Steps that are there: none\.$"):
      checkpoints.look(2, checkpoints.read)
    assert checkpoints.look(None, checkpoints.read) is None


def test_a_removal_that_takes_its_time_is_waited_for(tmp_path, monkeypatch):
  write(tmp_path, steps=2)
  lose_data(tmp_path / "1")  # as far as another process has come with it
  wait = lambda seconds: shutil.rmtree(tmp_path / "1", ignore_errors=True)  # noqa: E731
  with Checkpoints(tmp_path, read_only=True) as checkpoints, monkeypatch.context() as patch:
    patch.setattr(checkpoint.time, "sleep", wait)
    with pytest.raises(Removed, match="step 1 .* Steps that are there: 2"):
      checkpoints.read(1)


def test_a_step_that_goes_while_steps_are_listed_is_gone(tmp_path, monkeypatch):
  write(tmp_path, steps=2)
  lose_data(tmp_path / "1")
  with Checkpoints(tmp_path, read_only=True) as checkpoints:
    honest, named = checkpoints._manager.reload, []

    def reload():
      if not named:  # Orbax has its name, and asks for its time
        named.append(1)
        shutil.rmtree(tmp_path / "1")
        raise FileNotFoundError(tmp_path / "1")
      honest()

    monkeypatch.setattr(checkpoints._manager, "reload", reload)
    with pytest.raises(Removed, match="step 1 .* Steps that are there: 2"):
      checkpoints.read(1)
  assert named


def test_readers_beside_a_training_that_removes_all_but_the_newest(tmp_path):
  """A real race: what is read of the newest is that of its step, however fast they come and go."""
  bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s))
  states, end = [make()], threading.Event()
  for _ in range(12):
    states.append(bump(states[-1]))
  digests, seen = [state_hashes(state) for state in states], []

  def read():
    while not end.is_set() or not seen:
      with Checkpoints(tmp_path, read_only=True) as checkpoints:
        seen.append(checkpoints.look(None, lambda step: (step, checkpoints.read(step))))

  with Checkpoints(tmp_path, max_to_keep=1) as checkpoints:
    checkpoints.save(1, states[1], Progress({}), RUN)
    checkpoints.wait()
    with ThreadPoolExecutor(1) as pool:
      reader = pool.submit(read)
      for step in range(2, 13):
        checkpoints.save(step, states[step], Progress({}), RUN)
      checkpoints.wait()
      end.set()
      reader.result()
  assert seen and all(state_hashes(found) == digests[step] for step, found in seen)

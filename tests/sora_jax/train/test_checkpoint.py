"""Checkpoints: bit for bit, whole or not at all, and honest about damage and room."""

import errno
import os
import shutil

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
from sora_jax.train.hashes import checksums, host_checksums, state_hashes
from sora_jax.train.state import Progress, abstract_state, init_state, state_shardings
from sora_jax.train.stop import DiskFull

OPTIMIZER = optax.adam(1e-3)
RUN = {"config": {"total_steps": 3}, "environment": {}}


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


def write(folder, steps=3, **options):
  """Saves states 1, 2, ..., each donated right after; returns their digests by step."""
  bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  state, digests = make(), {}
  with Checkpoints(folder, **options) as checkpoints:
    for step in range(1, steps + 1):
      state = bump(state)
      digests[step] = state_hashes(state)
      checkpoints.save(step, state, Progress({"bin": step}, step * 2**40, step), RUN)
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
  text = r"step 2 in .* cannot be read .* Remove the folder .*2 to continue from step 1\."
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    with pytest.raises(BadInput, match=text):
      checkpoints.restore(checkpoints.latest_step(), abstract())
  with pytest.raises(BadInput, match=text):
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
  assert found["parameters"] == 64 * 64 + 7 and found["config"] == {"total_steps": 3}
  assert {key: found[key] for key in digests[2]} == digests[2]


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

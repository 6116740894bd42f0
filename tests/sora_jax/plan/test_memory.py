"""A heap's bytes by kind, of a dump as XLA writes it."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sora_jax.parallel.mesh import make_mesh
from sora_jax.plan import hlo, memory
from sora_jax.plan.pods import GIB, parse_topology
from sora_jax.plan.result import advise, advise_on, describe_fit

DUMP = """BufferAssignment:
allocation 0: size 400, parameter 0, shape |f32[100]| at ShapeIndex {}, maybe-live-out:
 value: <1 a @0> (size=400,offset=0): f32[100]{0}
allocation 1: size 1000, preallocated-temp:
 value: <2 kept{0} @0> (size=400,offset=0): f32[10,10]{1,0}
 value: <3 gathered @0> (size=300,offset=300): f32[75]{0}
 value: <4 other @0> (size=900,offset=100): f32[225]{0}
 value: <5 grads @0> (size=100,offset=900): f32[10,2]{1,0}
allocation 2: size 64, color 1, preallocated-temp:
 value: <6 fast @1> (size=64,offset=0): f32[16]{0}
"""
PROGRAM = """HloModule jit_f, is_scheduled=true

ENTRY %main (a: f32[100]) -> f32[100] {
  %a = f32[100]{0} parameter(0)
  %kept = f32[10,10]{1,0} fusion(%a), calls=%f, metadata={op_name="jvp()/while/body/dynamic_update_slice"}
  %gathered = f32[75]{0} all-gather(%a), replica_groups={{0,1}}, dimensions={0}
  %other = f32[225]{0} fusion(%a), calls=%f, metadata={op_name="jvp()/sin"}
  %grads = f32[10,2]{1,0} fusion(%a), calls=%f, metadata={op_name="transpose(jvp())/dynamic_update_slice"}
  ROOT %fast = f32[100]{0} negate(%a)
}
"""  # noqa: E501


def test_divides_a_heap(tmp_path):
  (tmp_path / "module_0001.jit_f.after_optimizations-buffer-assignment.txt").write_text(DUMP)
  total, values = memory.read_heap(tmp_path)
  assert total == 1000 and len(values) == 4  # neither parameters nor other memories
  found = memory.divide_heap(total, values, hlo.parse(PROGRAM), depth=10)
  # Bytes that two kinds share in turn count for the first: `gathered` keeps 200 of its 300.
  assert found == dict(activations=400, gradients=100, collectives=200, workspace=300)


def test_without_a_dump(tmp_path):
  with pytest.raises(FileNotFoundError, match="no buffer assignment"):
    memory.read_heap(tmp_path)


def test_bytes_of_shards():
  mesh = make_mesh()
  tree = {"a": jax.ShapeDtypeStruct((6, 4), np.float32), "b": jax.ShapeDtypeStruct((3,), np.int8)}
  lying = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec())
    ),
    tree,
  )
  assert memory.shard_bytes(lying) == 6 * 4 * 4 + 3


def test_what_to_change_is_the_largest():
  kinds = dict(parameters=1, optimiser=2, activations=50 * GIB, workspace=60 * GIB, batch=10**15)
  state = dict(parameters=30 * GIB, optimiser=40 * GIB, activations=50 * GIB)
  assert "Most is state and gradients (70.0 GiB). Raise mesh.fsdp" in advise(state, 1e15)
  assert "Most is workspace (60.0 GiB). Raise mesh.context" in advise(kinds, 1e15)
  # What no context or remat mends comes first, though it is not the largest.
  large = dict(parameters=20 * GIB, optimiser=20 * GIB, workspace=60 * GIB)
  assert "Raise mesh.fsdp" in advise(large, 32 * GIB)
  fit = describe_fit(memory.Memory(dict(kinds, batch=0)), parse_topology("v5p:2x2x1"))
  assert not fit["fits"] and fit["hbm_gib_per_device"] == 110.0


def test_what_is_put_on_a_host_must_fit_there():
  pod = parse_topology("v5e:4")
  hosted = memory.Memory(dict(activations=GIB), int(1.1 * pod.kind.ram))
  assert not describe_fit(hosted, pod)["fits"]
  assert "keeps nothing on the host" in advise_on(hosted, pod)
  small = memory.Memory(dict(activations=20 * GIB), 1)
  assert "Most is activations" in advise_on(small, pod)


def test_unions():
  spans = np.array([[5, 9], [0, 3], [2, 4], [9, 10]])
  assert memory._union(spans).tolist() == [[0, 4], [5, 10]]

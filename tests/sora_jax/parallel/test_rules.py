"""One rule a parameter, and errors that name the parameter."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from data_pipeline.errors import BadInput
from sora_jax.parallel.mesh import make_mesh
from sora_jax.parallel.rules import REPLICATED, named_leaves, over_context, shardings

PARAMS = {"blocks": {"attention": {"kernel": jnp.zeros((2, 4, 6))}}, "head": {"bias": jnp.zeros(6)}}


@pytest.fixture
def mesh():
  return make_mesh(devices=jax.devices()[:1])


def test_each_path_takes_its_rule(mesh):
  rules = ((r"blocks/.*/kernel", P(None, "fsdp", "tensor")), (r".*/bias", P()))
  placed = shardings(PARAMS, rules, mesh)
  assert placed["blocks"]["attention"]["kernel"].spec == P(None, "fsdp", "tensor")
  assert placed["head"]["bias"].spec == P()


def test_a_rule_must_match_the_whole_path(mesh):
  with pytest.raises(BadInput, match="parameter blocks/attention/kernel is matched by 0 rules"):
    shardings(PARAMS, ((r"blocks/attention", P()), (r"head/bias", P())), mesh)


def test_two_rules_are_one_too_many(mesh):
  with pytest.raises(BadInput, match=r"head/bias is matched by 2 rules \(\.\*, \.\*/bias\)"):
    shardings({"head": PARAMS["head"]}, (*REPLICATED, (r".*/bias", P())), mesh)


def test_a_spec_longer_than_the_shape(mesh):
  with pytest.raises(BadInput, match=r"head/bias has shape \(6,\), its spec .* has more axes"):
    shardings({"head": PARAMS["head"]}, ((r".*", P(None, "fsdp")),), mesh)


def test_boxes_and_plain_dicts_have_the_same_names():
  params = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
  names = list(named_leaves(params))
  assert names == ["bias", "kernel"] == list(named_leaves(nnx.to_pure_dict(params)))


def test_over_context_divides_what_fsdp_does():
  rules = ((r"a", P(None, "fsdp", "tensor")), (r"b", P()))
  assert over_context(rules) == ((r"a", P(None, ("fsdp", "context"), "tensor")), (r"b", P()))

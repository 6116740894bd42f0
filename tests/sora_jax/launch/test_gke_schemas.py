"""Manifests of `sora launch gke` against the schemas of Kubernetes and JobSet, offline."""

import copy
import re
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet
from pydantic import ValidationError

from data_pipeline.errors import BadInput
from sora_jax.commands.entry import main
from sora_jax.launch import gke

KUBERNETES = ("1.31", "1.37")
WORDS = ["python", "-m", "sora_jax", "train", "--workdir=/a b"]
PLAIN = gke.Workload("run1", "v5p:4x4x4", 1, "registry/image:tag", "", 5, 90, [])
FULL = PLAIN._replace(queue="team-a.tpus", secrets=["tokens", "hub.token"])
SLICES = [
  ("v4:2x2x1", 1), ("v4:2x2x4", 3), ("v4:8x4x4", 1), ("v5e:1x1", 1), ("v5e:2x2", 1),
  ("v5e:2x4", 1), ("v5e:4x4", 1), ("v5e:16x16", 4), ("v5p:2x2x1", 1), ("v5p:4x4x4", 1),
  ("v5p:8x8x12", 2), ("v6e:1x1", 1), ("v6e:2x4", 1), ("v6e:16x16", 2), ("tpu7x:1x1x1", 1),
  ("tpu7x:2x2x1", 1), ("tpu7x:4x4x8", 2),
]  # fmt: skip
NODES = [f"{kind}:{count}" for kind in gke.GPUS for count in (4, 8, 128)]
WORKLOADS = [FULL._replace(topology=name, slices=count) for name, count in SLICES]
WORKLOADS += [FULL._replace(topology=name) for name in NODES]
WORKLOADS += [PLAIN, PLAIN._replace(slices=2), PLAIN._replace(topology="h100:16")]


def write(workload: gke.Workload) -> dict[str, Any]:
  """A manifest as kubectl reads it."""
  return yaml.safe_load(yaml.safe_dump(gke.make_manifest(workload, WORDS), sort_keys=False))


def job_of(manifest: dict[str, Any]) -> dict[str, Any]:
  (replicated,) = manifest["spec"]["replicatedJobs"]
  return replicated["template"]["spec"]


def check_job(manifest: dict[str, Any]) -> None:
  name = {"name": manifest["metadata"]["name"]}
  job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": name, "spec": job_of(manifest)}
  for version in KUBERNETES:
    assert kubernetes_validate.validate(job, version, strict=True) == version


def check_jobset(manifest: dict[str, Any]) -> None:
  """The model drops unknown fields and fills in missing ones: both come back different."""
  found = JobsetV1alpha2JobSet.from_dict(copy.deepcopy(manifest))
  assert found is not None and found.to_dict() == manifest


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda one: f"{one.topology}x{one.slices}")
def test_manifests_fit_the_schemas(workload):
  manifest = write(workload)
  check_job(manifest)
  check_jobset(manifest)
  assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")


@pytest.mark.parametrize(
  "change",
  [
    {"backoffLimits": 0},
    {"completions": "16"},
    {"podFailurePolicy": {"rules": [{"onExitCodes": {"operator": "In", "values": [2]}}]}},
  ],
)
def test_a_job_that_kubernetes_refuses(change):
  manifest = write(FULL)
  job_of(manifest).update(change)
  with pytest.raises(kubernetes_validate.ValidationError):
    check_job(manifest)


def test_a_misspelt_field_of_a_pod():
  manifest = write(FULL)
  (container,) = job_of(manifest)["template"]["spec"]["containers"]
  container["envfrom"] = container.pop("envFrom")
  with pytest.raises(kubernetes_validate.ValidationError, match="envfrom"):
    check_job(manifest)
  with pytest.raises(AssertionError):
    check_jobset(manifest)


@pytest.mark.parametrize(
  ("change", "error"),
  [
    ({"maxRestart": 5}, AssertionError),  # misspelt
    ({"maxRestarts": "5"}, ValidationError),  # no number
    ({"rules": [{"action": "FailJobSet"}]}, AssertionError),  # a rule without its name
  ],
)
def test_a_jobset_that_its_schema_refuses(change, error):
  manifest = write(FULL)
  manifest["spec"]["failurePolicy"].update(change)
  with pytest.raises(error):
    check_jobset(manifest)


def test_bad_input_ends_the_jobset():
  """What the schemas have as plain text: action and reason are words that JobSet knows, and a pod
  failure policy needs pods that are never restarted."""
  manifest = write(FULL)
  (rule,) = manifest["spec"]["failurePolicy"]["rules"]
  assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
  job = job_of(manifest)
  (policy,) = job["podFailurePolicy"]["rules"]
  assert policy["action"] == "FailJob" and job["backoffLimit"] == 0
  assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_kueue_finds_its_label():
  """On the JobSet, which Kueue's webhook suspends: `suspend` is not for the manifest to say."""
  manifest = write(FULL)
  assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team-a.tpus"}
  assert "suspend" not in manifest["spec"] and "metadata" not in job_of(manifest)["template"]
  assert write(PLAIN)["metadata"]["labels"] == {}


@pytest.mark.parametrize("topology", ["h100:16", "b200:8000"])
def test_gpus_meet_at_the_host_name_that_jobset_gives(topology):
  """JOBSET-JOB-0-POD.SUBDOMAIN; the subdomain is JobSet's default, its own name."""
  manifest = write(PLAIN._replace(topology=topology))
  (replicated,) = manifest["spec"]["replicatedJobs"]
  (container,) = job_of(manifest)["template"]["spec"]["containers"]
  variables = {one["name"]: one.get("value") for one in container["env"]}
  host, _, subdomain = variables["JAX_COORDINATOR_ADDRESS"].rpartition(":")[0].partition(".")
  assert host == f"run1-{replicated['name']}-0-0" and subdomain == manifest["metadata"]["name"]
  assert "network" not in manifest["spec"]


@pytest.mark.parametrize(
  ("topology", "slices", "most"),
  [("v5p:4x4x4", 1, 40), ("v5p:16x20x28", 1000, 40), ("v5p:16x20x28", 1001, 39)],
)
def test_names_of_pods_are_host_names(topology, slices, most):
  workload = PLAIN._replace(topology=topology, slices=slices, name="a" * most)
  (replicated,) = write(workload)["spec"]["replicatedJobs"]
  last = replicated["template"]["spec"]["completions"] - 1
  assert len(f"{workload.name}-{replicated['name']}-{slices - 1}-{last}-abcde") <= 63
  with pytest.raises(BadInput, match=f"must be 1 to {most} of"):
    gke.make_manifest(workload._replace(name="a" * (most + 1)), WORDS)


@pytest.mark.parametrize(
  "words",
  [
    "--name=run-", "--name=1run", "--name=a.b", "--name=", "--queue=Team", "--queue=a_b",
    "--queue=-a", "--queue=a..b", f"--queue={'a' * 64}", "--secret=", "--secret=my token",
    "--secret=a/b", f"--secret={'a' * 254}", "--slices=2 --topology=v5e:2x4",
    "--slices=2 --topology=h100:16",
  ],
)  # fmt: skip
def test_what_kubernetes_or_gke_would_refuse(words, capsys):
  """One line says what, where, and what to give instead."""
  first, _, more = words.partition(" --topology=")
  options = ["--name=run1", "--image=i", f"--topology={more or 'v5p:4x4x4'}", first]
  assert main(["launch", "gke", *options, "--", "train"]) == 2
  out, err = capsys.readouterr()
  assert not out and err.count("\n") == 1
  assert f"launch: {first.partition('=')[0]}" in err and "Give " in err

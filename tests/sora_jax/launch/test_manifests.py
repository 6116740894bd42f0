"""What `sora launch` writes for Slurm, GKE and TPU VMs."""

import subprocess

import pytest
import yaml

from data_pipeline.errors import BadInput
from sora_jax.commands.entry import main
from sora_jax.launch import gke, slurm, tpu_vm

JOB = slurm.Job("sora", 2, 8, 1, 12, ["--time=1:00:00"], 60, 3, "source a", "out-%j.log")
LOAD = gke.Workload("run1", "v5p:4x4x4", 1, "image", "queue", 5, 90, ["tokens"])
WORDS = ["python", "-m", "sora_jax", "train", "--workdir=a b"]


def test_a_slurm_script_is_one_that_bash_takes(tmp_path):
  text = slurm.write_script(JOB, WORDS)
  file = tmp_path / "job"
  file.write_text(text)
  assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0
  options = ["nodes=2", "gpus-per-node=8", "cpus-per-task=12", "requeue", "signal=TERM@60"]
  assert all(f"#SBATCH --{option}\n" in text for option in [*options, "time=1:00:00"])
  assert "python -m sora_jax train '--workdir=a b'\n" in text and "\neval 'source a'\n" in text
  # JAX would take the first GPU alone.
  assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7" in text


@pytest.mark.parametrize(
  ("code", "before", "requeues", "ends"),
  [(0, 0, False, 0), (2, 0, False, 2), (42, 3, True, 0), (1, 0, True, 0), (137, 3, False, 137)],
)
def test_what_a_slurm_job_does_after_each_exit_code(tmp_path, code, before, requeues, ends):
  """With an srun and a scontrol that only note how they are called."""
  for name, text in (("srun", f"exit {code}"), ("scontrol", "echo $* >> calls"), ("sleep", "")):
    tool = tmp_path / name
    tool.write_text(f"#!/bin/bash\n{text}\n")
    tool.chmod(0o755)
  (tmp_path / "job").write_text(slurm.write_script(JOB._replace(setup=""), WORDS))
  if before:
    (tmp_path / ".sora-failures-7").write_text(f"{before}\n")
  done = subprocess.run(
    ["bash", "job"], cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"},
    check=False,
  )  # fmt: skip
  calls = tmp_path / "calls"
  assert done.returncode == ends
  assert (calls.read_text() if calls.exists() else "") == ("requeue 7\n" if requeues else "")


def test_gpus_that_no_process_would_use_are_refused():
  with pytest.raises(BadInput, match="one process a node, or one a GPU"):
    slurm.write_script(JOB._replace(processes=2), WORDS)
  with pytest.raises(BadInput, match="divide --gpus=8"):
    slurm.write_script(JOB._replace(processes=3), WORDS)


@pytest.mark.parametrize(
  ("topology", "pods", "devices"),
  [("v4:2x2x1", 1, 4), ("v4:8x4x4", 32, 4), ("v5p:4x4x4", 16, 4), ("v5p:4x4x12", 48, 4),
   ("v5e:2x2", 1, 4), ("v5e:2x4", 1, 8), ("v5e:4x4", 4, 4), ("v6e:16x16", 64, 4),
   ("v6e:1x1", 1, 1), ("tpu7x:1x1x1", 1, 1), ("tpu7x:2x2x2", 2, 4), ("h100:64", 8, 8),
   ("h100:4", 1, 4)],
)  # fmt: skip
def test_shapes(topology, pods, devices):
  shape = gke.shape_of(topology)
  assert (shape.pods, shape.devices) == (pods, devices)


@pytest.mark.parametrize(
  "topology",
  ["v9:2x2", "v5p:64", "h100:12", "h100:4x4", "v5p:", "v5p:4x4", "v5p:1x1x1", "v5p:2x2x3",
   "v5p:8x4x4", "v5p:16x24x24x4", "v4:16x16x20", "v6e:4x2", "v6e:16x32", "v6e:2x2x2"],
)  # fmt: skip
def test_no_such_shape(topology):
  with pytest.raises(BadInput, match=f"--topology={topology}"):
    gke.shape_of(topology)


def test_a_jobset_of_tpus(capsys):
  words = ("--topology=v5p:4x4x4", "--name=run1", "--image=i", "--queue=q", "--slices=2")
  assert main(["launch", "gke", *words, "--", "train", "--workdir=/run"]) == 0
  out = capsys.readouterr().out
  found = yaml.safe_load(out[: out.rindex("{")])
  (job,) = found["spec"]["replicatedJobs"]
  assert found["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"} and job["replicas"] == 2
  pod = job["template"]["spec"]["template"]["spec"]
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x4"
  assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": "4"}
  assert pod["containers"][0]["command"][-2:] == ["train", "--workdir=/run"]


def test_a_jobset_of_gpus_tells_pods_where_to_meet():
  spec = gke.make_manifest(LOAD._replace(topology="h100:16"), WORDS)["spec"]
  job = spec["replicatedJobs"][0]["template"]["spec"]
  container = job["template"]["spec"]["containers"][0]
  variables = {one["name"]: one.get("value") for one in container["env"]}
  assert variables["JAX_COORDINATOR_ADDRESS"] == "run1-workers-0-0.run1:8476"
  assert variables["JAX_NUM_PROCESSES"] == "2" and job["completions"] == 2
  # On the pod's own interface, not on all of them.
  assert variables["JAX_COORDINATOR_BIND_ADDRESS"] == "$(POD_IP):8476"
  assert container["envFrom"] == [{"secretRef": {"name": "tokens"}}]
  (rule,) = job["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"] == {"operator": "In", "values": [2]}


@pytest.mark.parametrize(
  ("topology", "device"),
  [("v5p:4x4x4", "--tpu-type=v5p-4x4x4 --num-slices=1"),
   ("v5e:4x4", "--tpu-type=v5litepod-4x4 --num-slices=1"),
   ("tpu7x:1x1x1", "--tpu-type=tpu7x-1x1x1 --num-slices=1"),
   ("h100:8", "--device-type=h100-mega-80gb-8 --num-nodes=1"),
   ("h200:16", "--device-type=h200-141gb-8 --num-nodes=2"),
   ("b200:16", "--device-type=b200-8 --num-nodes=2")],
)  # fmt: skip
def test_xpk_has_names_of_its_own_for_devices(topology, device):
  command = gke.xpk_command(LOAD._replace(topology=topology), WORDS, "c")
  assert f" {device} --docker-image=image " in command


@pytest.mark.parametrize("topology", ["v5e:1x1", "v5e:2x2", "h100:4", "b200:1"])
def test_no_xpk_command_where_it_has_no_such_device(topology, capsys):
  assert gke.xpk_command(LOAD._replace(topology=topology), WORDS, "c") == ""
  words = [f"--topology={topology}", "--name=run1", "--image=i", "--", "train"]
  assert main(["launch", "gke", *words]) == 0
  out, err = capsys.readouterr()
  assert '"xpk": null' in out and "kubectl apply" in err and "xpk" not in err


def test_gcloud_and_ssh():
  assert "ssh pod --zone=z --worker=all" in tpu_vm.gcloud_command("pod", "z", "", WORDS, "")
  first, second = tpu_vm.ssh_commands(["u@a", "b"], 9, WORDS, "cd x")
  assert "--coordinator=a:9 --processes=2 --process=0" in first and "ssh b" in second


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["local", "--processes=2"], "no command"),
    (["local", "--processes=0", "--", "train"], "--processes=0 must be above 0"),
    (["local", "--processes=2", "--shrink=2", "--", "train"], "sizes from 1 to 1"),
    (["gke", "--topology=v5p:4x4x4", "--name=A", "--image=i", "--", "train"], "--name=A must be"),
    (["tpu-vm", "--", "train"], "--name and --zone"),
  ],
)
def test_bad_input(words, said, capsys):
  assert main(["launch", *words]) == 2
  err = capsys.readouterr().err
  assert said in err and err.count("\n") == 1

"""Text of a user's in job scripts and command lines: a value stays a value, whatever is in it."""

import json
import math
import re
import shlex
import shutil
import subprocess

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import BadInput
from sora_jax.commands.entry import main
from sora_jax.launch import gke, slurm, tpu_vm

JOB = slurm.Job("sora", 2, 0, 1, 0, [], 60, 3, "", "out-%j.log")
LOAD = gke.Workload("run1", "h100:16", 1, "image", "", 5, 90, [])
SORA = ["python", "-m", "sora_jax"]
LINE = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1)
WORDS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
ODD = """a 'b' "c" $HOME `id` \\ #d\n#SBATCH --nodes=9\n$(id) {x} *"""


def options(script: str) -> list[str]:
  """What sbatch takes from a script: words of #SBATCH lines before the first command."""
  head = script.partition("\n:\n")[0].split("\n")
  lines = [line.removeprefix("#SBATCH ") for line in head if line.startswith("#SBATCH")]
  return [word for line in lines for word in shlex.split(line, comments=True)]


@FEW
@given(LINE.filter(str.strip), LINE)
@example("a --nodes=9", "x # y")
@example('"; \\', "\\")
def test_a_line_of_text_is_one_option_of_sbatch(name, comment):
  job = JOB._replace(name=name, options=[f"--comment={comment}"])
  found = options(slurm.write_script(job, SORA))
  assert found.count(f"--job-name={name}") == 1 and f"--comment={comment}" in found
  assert [word for word in found if word.startswith("--nodes")] == ["--nodes=2"]
  assert len(found) == 8


@pytest.mark.skipif(not shutil.which("sbatch"), reason="there is no sbatch")
def test_sbatch_itself_reads_what_was_written(tmp_path):
  """Without a controller: it prints what it found in the script before it looks for one."""
  name, comment = 'a "b" \\ # c', "it's $HOME --nodes=9"
  job = JOB._replace(name=name, options=[f"--comment={comment}"], setup="#SBATCH --nodes=8")
  (tmp_path / "job").write_text(slurm.write_script(job, [*SORA, ODD]))
  (tmp_path / "slurm.conf").write_text(
    "ClusterName=x\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\nNodeName=n1\n"
  )
  asking = subprocess.Popen(
    ["sbatch", "--test-only", "-vvv", str(tmp_path / "job")],
    env={"PATH": "/usr/bin:/bin", "SLURM_CONF": str(tmp_path / "slurm.conf")},
    stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert asking.stderr is not None
  said = []
  for line in asking.stderr:
    said.append(line)
    if "end of defined options" in line:
      break
  asking.kill()
  asking.wait()
  asking.stderr.close()
  found = re.findall(r'Found in script, argument "(.*)"\n', "".join(said))
  assert f"--job-name={name}" in found and f"--comment={comment}" in found
  assert [word for word in found if "nodes" in word] == ["--nodes=2", f"--comment={comment}"]


@pytest.fixture
def tools(tmp_path):
  """An srun that keeps its words, and tools that do nothing; returns what runs a script."""
  keep = 'printf "%s\\0" "$@" > words; printf "%s" "${MARK:-}" > mark; exit 0'
  for name, text in (("srun", keep), ("scontrol", ""), ("squeue", ""), ("sleep", "")):
    tool = tmp_path / name
    tool.write_text(f"#!/bin/bash\n{text}\n")
    tool.chmod(0o755)

  def run(script: str) -> tuple[list[str], str]:
    (tmp_path / "job").write_text(script, newline="")
    done = subprocess.run(
      ["bash", "job"], cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"},
      capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    *words, end = (tmp_path / "words").read_bytes().decode().split("\0")
    assert end == ""
    return words[3:], (tmp_path / "mark").read_text()

  return run


@settings(FEW, max_examples=12)
@given(words=WORDS)
@example(words=[ODD, "", "a b", "-"])
def test_the_words_of_a_command_reach_srun_as_they_are(tools, words):
  setup = "export MARK='a b' # and no more \\"
  found, mark = tools(slurm.write_script(JOB._replace(setup=setup), [*SORA, "train", *words]))
  assert found == [*SORA, "train", *words] and mark == "a b"


@settings(FEW, max_examples=12)
@given(words=WORDS)
@example(words=[ODD, "", "a b", "-"])
def test_words_reach_other_hosts_as_they_are(tmp_path, words):
  """Through the shell that the line is pasted into, and the one that ssh hands it to."""
  (tmp_path / "ssh").write_text('#!/bin/bash\n[ "$1" = u@h ] && exec bash -c "$2"\n')
  (tmp_path / "gcloud").write_text('#!/bin/bash\nfor last; do :; done; exec bash -c "${last#*=}"\n')
  (tmp_path / "python").write_text('#!/bin/bash\nprintf "%s\\0" "$MARK" "$@" > words\n')
  for name in ("ssh", "gcloud", "python"):
    (tmp_path / name).chmod(0o755)
  setup = "export MARK='a b' # and no more"
  (by_ssh,) = tpu_vm.ssh_commands(["u@h"], 9, [*SORA, *words], setup)
  by_gcloud = tpu_vm.gcloud_command("pod", "z", "p q", [*SORA, *words], setup)
  where = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
  for line, added in ((by_ssh.removesuffix(" &"), 3), (by_gcloud, 0)):
    subprocess.run(["bash", "-c", line], cwd=tmp_path, env=where, check=True)
    mark, *found = (tmp_path / "words").read_bytes().decode().split("\0")[:-1]
    assert mark == "a b" and found[: len(found) - added] == ["-m", "sora_jax", *words]


@FEW
@given(WORDS)
@example(["$(POD_IP)", "$$(POD_IP)", "a: b\n- c", "${HOME}"])
def test_words_reach_a_pod_as_they_are(words):
  text = yaml.safe_dump(gke.make_manifest(LOAD, [*SORA, *words]), sort_keys=False)
  (job,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
  pod = job["template"]["spec"]["template"]["spec"]
  # Kubernetes: $$ is a $, and $(NAME) a variable's value (expansion of `command`).
  command = pod["containers"][0]["command"]
  assert not any(re.search(r"(?<!\$)(\$\$)*\$\(", word) for word in command)
  assert [word.replace("$$", "$") for word in command] == [*SORA, *words]


@pytest.mark.parametrize(
  ("text", "seconds"),
  [("90", 5400), ("1:30", 90), ("2:00:01", 7201), ("1-2", 93600), ("1-2:03", 93780),
   ("1-2:03:04", 93784), ("UNLIMITED", math.inf)],
)  # fmt: skip
def test_limits_are_read_as_sbatch_reads_them(text, seconds):
  assert slurm.time_limit([f"--time={text}"]) == seconds
  assert slurm.time_limit(["--time=7", "--qos=a", f"-t{text}"]) == seconds


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (dict(name="a\n#SBATCH --nodes=9"), "--name='a.n#SBATCH --nodes=9' has the control character"),
    (dict(name=" "), "--name=' ' is empty"),
    (dict(name="a\udcff"), "is no text in UTF-8"),
    (dict(output="a\rb"), "--output=.* has the control character"),
    (dict(options=["--time=a"]), "--time=a is no limit of sbatch"),
    (dict(options=["--time=0"]), "--time=0 is no time at all"),
    (dict(options=["--account=a\tb"]), "has the control character"),
    (dict(options=["--qos high"]), "'--qos high' is not one option of sbatch"),
    (dict(options=["qos=high"]), "'qos=high' is not one option of sbatch"),
    (dict(options=["--time=1:00"], grace=60), r"--grace=60 .* below --time \(60 s\)"),
    (dict(grace=0), "--grace=0 seconds"),
    (dict(grace=-5), "--grace=-5 seconds"),
    (dict(grace=70_000), "--grace=70000 .* at most 65535"),
    (dict(options=["--output=x/y.log"]), "--sbatch=--output=x/y.log is said already. Use --output"),
    (dict(options=["-Jname"]), "--sbatch=-Jname is said already"),
    (dict(nodes=0), "--nodes=0"),
    (dict(nodes=-2), "--nodes=-2"),
    (dict(gpus=-8), "--gpus=-8"),
    (dict(cpus=-1), "--cpus=-1"),
    (dict(max_restarts=-1), "--max-restarts=-1"),
    (dict(setup="source 'a"), "--setup=.* is no shell line"),
    (dict(setup="if true"), "--setup=.* is no shell line"),
  ],
)
def test_a_job_that_sbatch_would_misread_is_refused(change, said):
  with pytest.raises(BadInput, match=said):
    slurm.write_script(JOB._replace(**change), SORA)


def run(capsys, *words) -> tuple[int, str]:
  code = main(["launch", *map(str, words)])
  return code, capsys.readouterr().err


@pytest.mark.parametrize(
  ("command", "said"),
  [
    (["trian"], "'trian' after -- is no command of sora to launch. Did you mean train?"),
    (["python", "x.py"], "'python' after -- is no command of sora to launch. Give one"),
    (["launch", "local"], "'launch' after -- is no command of sora to launch. Give one"),
    (["train", "--workdir=\udcff"], "is no text in UTF-8"),
  ],
)
def test_a_misspelt_command_is_refused_before_anything_is_submitted(
  tmp_path, monkeypatch, capsys, command, said
):
  monkeypatch.chdir(tmp_path)
  for where in (
    ("local", "--processes=2"),
    ("slurm", "--nodes=1"),
    ("gke", "--topology=v5p:4x4x4", "--name=a", "--image=i"),
    ("tpu-vm", "--hosts=a"),
  ):
    code, err = run(capsys, *where, "--", *command)
    assert code == 2 and said in err and err.count("\n") == 1, err
  assert not list(tmp_path.iterdir())


def test_folders_of_log_and_script_are_made(tmp_path, monkeypatch, capsys):
  """Slurm makes none: without it a job fails with no word."""
  monkeypatch.chdir(tmp_path)
  words = ("slurm", "--nodes=1", "--dry-run", "--script=jobs/a/b.sbatch")
  assert main(["launch", *words, "--output=logs/x/%j.log", "--", "train"]) == 0
  assert json.loads(capsys.readouterr().out) == {"script": "jobs/a/b.sbatch"}
  assert main(["launch", *words, "--sbatch=--error=errors/%j.log", "--", "train"]) == 0
  capsys.readouterr()
  assert (tmp_path / "errors").is_dir()
  assert (tmp_path / "logs" / "x").is_dir() and (tmp_path / "jobs" / "a" / "b.sbatch").is_file()
  code, err = run(capsys, *words, "--output=logs/%j/a.log", "--", "train")
  assert code == 2 and "has a pattern in its folder" in err
  (tmp_path / "file").touch()
  code, err = run(capsys, *words, "--output=file/a.log", "--", "train")
  assert code == 2 and "the folder of --output=file/a.log cannot be made" in err
  code, err = run(capsys, *words[:-1], "--script=logs", "--", "train")
  assert code == 2 and "--script=logs cannot be written (Is a directory)" in err
  where = ("gke", "--topology=v5p:4x4x4", "--name=a", "--image=i")
  assert run(capsys, *where, "--out=new/job.yaml", "--", "train")[0] == 0
  assert (tmp_path / "new" / "job.yaml").is_file()


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["tpu-vm", "--hosts=a,,b"], "'' is no host"),
    (["tpu-vm", "--hosts=-oProxyCommand=x"], "'-oProxyCommand=x' is no host"),
    (["tpu-vm", "--hosts=a b"], "'a b' is no host"),
    (["tpu-vm", "--hosts=a,a"], "names a host twice"),
    (["tpu-vm", "--hosts=a", "--port=0"], "--port=0 is no port"),
    (["tpu-vm", "--name=-x", "--zone=z"], "--name=-x begins with -"),
    (["tpu-vm", "--name=a\nb", "--zone=z"], "has the control character"),
    (["tpu-vm", "--hosts=a", "--setup=cd 'x"], "is no shell line"),
    (["gke", "--topology=v5p:4x4x4", "--name=a", "--image=i j"], "--image='i j' names no image"),
    (["gke", "--topology=v5p:4x4x4", "--name=a\n", "--image=i"], "--name="),
    (["gke", "--topology=v5p:4x4x4", "--name=a", "--image=i", "--cluster=\x1b"], "--cluster="),
    (["local", "--processes=2", "--grace=nan"], "--grace=nan must be above 0"),
    (["local", "--processes=2", "--silence=inf"], "--silence=inf must be above 0"),
  ],
)
def test_text_and_numbers_that_would_not_do_are_refused(words, said, capsys):
  code, err = run(capsys, *words, "--", "train")
  assert code == 2 and said in err and err.count("\n") == 1, err

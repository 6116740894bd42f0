"""The command line itself: help with examples that hold, and the exit codes."""

import ast
import importlib
import re
import shlex
import signal
import subprocess

import pytest

import sora_jax
from data_pipeline.errors import BadInput
from sora_jax.commands.entry import COMMANDS
from sora_jax.commands.options import load_config
from sora_jax.train.stop import NotFinite, Preempted


def module(name: str):
  return importlib.import_module(f"sora_jax.commands.{name}")


def command_lines(text: str) -> list[str]:
  """Lines that begin with `sora COMMAND`, with those that continue them.

  A remark behind three spaces, and a pipe, are cut off.
  """
  joined = re.sub(r"\\\n *", "", text)
  lines = [re.split(r" {3,}(?!-)| \| ", line.strip())[0] for line in joined.splitlines()]
  return [line for line in lines if line.startswith("sora ") and line.split()[1] in COMMANDS]


def parse(line: str):
  words = shlex.split(line, comments=True)
  return module(words[1]).parser().parse_args(words[2:])


def test_help_lists_every_command(sora):
  done = sora("--help")
  assert done.code == 0 and done.err == "" and sora("-h") == done
  for name, does in COMMANDS.items():
    assert f"  {name:9}{does}" in done.out
  assert sora().code == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_ends_in_examples_that_parse(sora, name, tmp_path, monkeypatch):
  """From any folder: who installed the package has no clone of the project around."""
  monkeypatch.chdir(tmp_path)
  done = sora(name, "--help")
  assert done.code == 0 and done.err == "" and done.out.startswith(f"usage: sora {name} ")
  examples = command_lines(done.out.partition("example:")[2])
  assert examples and all(line.startswith(f"sora {name} ") for line in examples)
  for line in examples:
    assert not any(word.endswith(",") for word in shlex.split(line)), line
    parse(line)
  assert callable(module(name).run)


def test_the_demo_needs_no_folder_of_the_project(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  stages = dict(module("demo").stages(tmp_path / "out"))
  assert list(stages) == ["data", "vae", "encode", "dit", "sample"]
  for words in stages.values():
    args = parse(shlex.join(["sora", *words]))
    if words[0] == "train":
      assert args.config.total_steps > 100 and args.config.data.path.startswith(str(tmp_path))


def test_the_commit_is_that_of_the_code_not_of_the_folder_around(tmp_path, monkeypatch):
  git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
  subprocess.run([*git, "init", "-q"], check=True)
  subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
  here = module("demo").commit()
  monkeypatch.chdir(tmp_path)
  assert module("demo").commit() == here
  monkeypatch.setattr(module("demo"), "INSTALLED", tmp_path / "site-packages")
  assert module("demo").commit() == sora_jax.__version__


@pytest.mark.parametrize("family", ["demo", "film", "physworld"])
def test_commands_of_an_experiment_parse(family, request):
  source = (request.config.rootpath / "experiments" / f"{family}.py").read_text(encoding="utf-8")
  lines = command_lines(ast.get_docstring(ast.parse(source)))
  assert len(lines) >= 5
  for line in lines:
    args = parse(line)
    if "--config" in line and line.split()[1] == "train":
      assert args.config.total_steps > 0


@pytest.mark.parametrize(
  "error, code, line",
  [
    (BadInput("x: y=1 is not 2.\n Use 2."), 2, "sora data: x: y=1 is not 2. Use 2."),
    (BadInput("data: y=1."), 2, "sora data: y=1."),
    (NotFinite("train: loss=nan."), 1, "sora data: train: loss=nan."),
    (Preempted("saved."), 42, "sora data: saved."),
    (KeyboardInterrupt(), 1, "sora data: interrupted."),
    (
      RuntimeError("RESOURCE_EXHAUSTED: Out of memory.\nA long table"),
      1,
      "sora data: the device has too little memory (RESOURCE_EXHAUSTED: Out of memory.)."
      " Ask for something smaller or shorter, or for fewer at once.",
    ),
  ],
)
def test_what_is_expected_is_said_in_one_line(sora, monkeypatch, error, code, line):
  done = failing(sora, monkeypatch, error)
  assert (done.code, done.out, done.err) == (code, "", line + "\n")


def test_says_its_version(sora):
  assert sora("--version").out == f"sora_jax {sora_jax.__version__}\n"


def test_what_is_not_expected_comes_with_its_traceback(sora, monkeypatch):
  done = failing(sora, monkeypatch, KeyError("surprise"))
  assert done.code == 1 and "Traceback" in done.err
  assert done.err.splitlines()[-1] == "sora data: 'surprise'"


def test_tracebacks_on_request(sora, monkeypatch):
  monkeypatch.setenv("SORA_TRACEBACK", "1")
  done = failing(sora, monkeypatch, BadInput("x."))
  assert done.code == 2 and "Traceback" in done.err


def failing(sora, monkeypatch, error):
  def run(args):
    raise error

  monkeypatch.setattr(module("data"), "run", run)
  return sora("data", "--config=experiments/demo.py", "--out=nowhere")


def test_sigterm_outside_the_steps_leaves_at_once(sora, monkeypatch, tmp_path):
  found = signal.getsignal(signal.SIGTERM)
  monkeypatch.setattr(module("train"), "open_data", lambda *_, **__: signal.raise_signal(15))
  done = sora("train", "--config=experiments/demo.py:debug", f"--workdir={tmp_path}")
  assert done.code == 42 and "nothing is lost. The same command resumes." in done.err
  assert signal.getsignal(signal.SIGTERM) is found


def test_a_tuple_that_the_config_leaves_empty_can_be_given():
  words = ["--config=experiments/demo.py:dit", "--config.data.weights=(1.0,2.0)"]
  assert load_config(words).data.weights == (1.0, 2.0)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_v(name, sora):
  text = sora(name, "--help").out
  assert "-v, --verbose" in text, text


def test_each_way_to_launch_takes_v_and_hands_others_on():
  words = ["local", "-v", "--processes=2", "--", "train", "-v"]
  parsed = module("launch").parser().parse_args(words)
  assert parsed.verbose and parsed.command[-2:] == ["train", "-v"]

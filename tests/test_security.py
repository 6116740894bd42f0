"""A run executes nothing that it reads, and listens to nobody: rules over the source itself."""

import ast
import os
import pickle
from pathlib import Path

import pytest

from data_pipeline.curate import child

ROOT = Path(__file__).parents[1]
LOADERS = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "torch"}
# Its own processes tell each other what to do through pipes; answers are read by a closed list.
PIPES = {"data_pipeline/curate/child.py", "data_pipeline/curate/keeper.py"}
CALLS = {
  "eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "torch.load",
  "pickle.loads", "socketserver.TCPServer", "http.server.HTTPServer", "HTTPServer",
}  # fmt: skip
# One binds a port to find a free one, and lets it go. The other listens in process 0, where JAX's
# coordinator does soon after, until all have come: to numbers in JSON, of a few bytes.
LISTENERS = {"sora_jax/parallel/heartbeat.py", "sora_jax/parallel/joining.py"}


def sources() -> dict[str, ast.Module]:
  packages = [ROOT / "sora_jax", ROOT / "data_pipeline"]
  paths = [path for package in packages for path in package.rglob("*.py")]
  return {str(p.relative_to(ROOT)): ast.parse(p.read_text(encoding="utf-8")) for p in paths}


def faults(path: str, tree: ast.Module) -> list[str]:
  """What a file does that no file may do."""
  found, sockets = [], "import socket" in ast.unparse(tree)
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [name.name.split(".")[0] for name in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [(node.module or "").split(".")[0]]
    else:
      names = []
    found += [f"imports {name}" for name in names if name in LOADERS and path not in PIPES]
    if not isinstance(node, ast.Call):
      continue
    called = ast.unparse(node.func)
    words = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if called in CALLS and path not in PIPES:
      found.append(f"calls {called}")
    if words.get("allow_pickle") == "True" or words.get("shell") == "True":
      found.append(f"calls {called} with {words}")
    if called.split(".")[-1] in ("listen", "create_server") and path not in LISTENERS:
      found.append(f"listens by {called}")
    if called.split(".")[-1] == "bind" and sockets and path not in LISTENERS:
      found.append(f"binds by {called}")
  return [f"{path}: {fault}" for fault in found]


def test_no_file_is_executed_and_nobody_is_listened_to():
  assert [fault for path, tree in sources().items() for fault in faults(path, tree)] == []


@pytest.mark.parametrize(
  "text",
  [
    "import pickle",
    "from torch import load",
    "eval(text)",
    "numpy.load(file, allow_pickle=True)",
    "subprocess.run(word, shell=True)",
    "socket.socket().listen()",
    "yaml.load(text)",
  ],
)
def test_the_rules_bite(text):
  assert len(faults("sora_jax/train/a.py", ast.parse(text))) == 1


class Evil:
  def __reduce__(self):
    return os.mkdir, ("evil",)


def test_the_answer_of_a_worker_that_was_taken_over_calls_nothing(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for kind in (b"R", b"E"):
    with pytest.raises(child.ChildFailed, match=r"its answer names (posix|os)\.mkdir"):
      child._opened(kind + pickle.dumps(Evil()))
  assert not list(tmp_path.iterdir())
  for answer in (b"Rnonsense", b"R", b"E" + pickle.dumps("no exception"), b"X" + pickle.dumps(1)):
    with pytest.raises(child.ChildFailed, match="crashed"):
      child._opened(answer)

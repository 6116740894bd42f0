r"""Plants mutants in the core, one at a time, and says which of them the tests notice.

  python -m experiments.benchmarks.mutants --out=docs/mutants.md

The list is mutants.txt beside this file, a line each:

  SYMBOL :: BEFORE => AFTER [ ++ TEST FILES] [ ~~ why no test can notice it]

SYMBOL is the qualified name of a function, class or constant, wherever the packages define it
(MODULE:SYMBOL where several do); BEFORE occurs in it exactly once. A mutant is put into a copy of
the tree, and the test files that import its module run there, the nearest first, up to the first
failure; a failure counts if the test passes without the mutant. Results are kept in --results, so
that a run that was stopped, also by --minutes, goes on: one is valid while mutant, module and test
files are what they were. Exit code 1 when less than --goal is caught.
"""

import argparse
import collections
import compileall
import hashlib
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from experiments.benchmarks.mutations import (
  PACKAGES,
  Mutant,
  Tests,
  definitions,
  find_place,
  mutate,
  read_mutants,
)

COPIED = (*PACKAGES, "experiments", "tests")
LEFT_OUT = (".git", ".venv", "runs", "data", "build", "dist")
CAUGHT, SURVIVED, TIMEOUT, EQUIVALENT = "caught", "survived", "timeout", "equivalent"
NOT_RUN = "not run yet"


class Case(NamedTuple):
  """A mutant ready to be run: its file, that file's text with it, and the tests, in order."""

  mutant: Mutant
  path: str
  text: str
  tests: tuple[str, ...]
  key: str


class Copy:
  """A copy of the tree in which one mutant at a time lives.

  Args:
    root: of the tree.
    seconds: that a run of tests may take.
    programs: folder of compiled programs; None for none.
  """

  def __init__(self, root: Path, *, seconds: float, programs: Path | None):
    self._root, self._seconds = Path(tempfile.mkdtemp(prefix="mutants-")), seconds
    self._whole: dict[str, bytes] = {}  # by path: what a file was before it was changed
    for top in root.iterdir():
      if top.name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(top, self._root / top.name, ignore=ignored)
      elif top.name not in LEFT_OUT:
        (self._root / top.name).symlink_to(top.resolve())
    compileall.compile_dir(self._root, quiet=2)
    # A mutant's byte code is never written: two texts of one size within a second look alike.
    self._environment = dict(os.environ, PYTHONPATH=str(self._root), PYTHONDONTWRITEBYTECODE="1")
    if programs:
      self._environment["SORA_TEST_PROGRAMS"] = str(programs)  # see tests/conftest.py

  def put(self, path: str, text: str) -> None:
    """Changes a file. Its byte code goes: it is taken for that of a file of its size and second."""
    self._whole.setdefault(path, (self._root / path).read_bytes())
    (self._root / path).write_text(text, "utf-8")
    Path(importlib.util.cache_from_source(str(self._root / path))).unlink(missing_ok=True)

  def restore(self, path: str) -> None:
    """Takes a change back."""
    if path in self._whole:
      (self._root / path).write_bytes(self._whole[path])

  def test(self, arguments: Sequence[str]) -> tuple[int, str]:
    """Runs pytest up to the first failure: its exit code and output; 124 where it took too long."""
    process = subprocess.Popen(
      [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments],
      cwd=self._root,
      env=self._environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,
    )
    try:
      output = process.communicate(timeout=self._seconds)[0]
      return process.returncode, output
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      return 124, process.communicate()[0]

  def close(self) -> None:
    """Removes the copy."""
    shutil.rmtree(self._root, ignore_errors=True)


class Runner:
  """Runs cases in copies of the tree, several at once, and keeps what came out.

  Args:
    copies: one for each case at a time.
    results: file of JSON lines, read and added to.
    seconds: after which no further case is begun.
  """

  def __init__(self, copies: Sequence[Copy], results: Path, seconds: float = math.inf):
    self._end = time.monotonic() + seconds
    self._copies: SimpleQueue[Copy] = SimpleQueue()
    for copy in copies:
      self._copies.put(copy)
    self._results, self._lock = results, threading.Lock()
    lines = results.read_text("utf-8").splitlines() if results.exists() else []
    self.known: dict[str, dict[str, Any]] = {one["key"]: one for one in map(json.loads, lines)}
    self._sound: dict[str, bool] = {}  # test -> whether it passes without a mutant

  def __call__(self, case: Case) -> dict[str, Any]:
    """`status`, the `test` that noticed, and the `seconds` that it took."""
    if case.mutant.equivalent:
      return {"key": case.key, "status": EQUIVALENT, "test": "", "seconds": 0.0}
    if case.key in self.known:
      return self.known[case.key]
    if time.monotonic() > self._end:
      return {"key": case.key, "status": NOT_RUN, "test": "", "seconds": 0.0}
    copy, begin = self._copies.get(), time.monotonic()
    try:
      status, test = self._run(copy, case)
    finally:
      copy.restore(case.path)
      self._copies.put(copy)
    seconds = round(time.monotonic() - begin, 1)
    found = {"key": case.key, "status": status, "test": test, "seconds": seconds}
    with self._lock:
      self.known[case.key] = found
      with self._results.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**found, "mutant": case.mutant[:3]}) + "\n")
      print(f"{status:9} {seconds:6.1f} s  {case.mutant.symbol}: {case.mutant.after}  {test}")
      sys.stdout.flush()
    return found

  def _run(self, copy: Copy, case: Case) -> tuple[str, str]:
    while True:
      broken = [test for test, passes in list(self._sound.items()) if not passes]
      left_out = [f"--deselect={test}" for test in broken]
      left_out += [] if case.mutant.tests else ["-m", "not slow"]  # those that a line names may be
      copy.put(case.path, case.text)
      code, output = copy.test([*case.tests, *left_out])
      if code in (0, 5):
        return SURVIVED, ""
      if code == 124:
        return TIMEOUT, ""
      found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
      test = found[1] if found else case.tests[0]  # a file, where it could not even be imported
      copy.restore(case.path)
      if self._passes(copy, test):
        return CAUGHT, test
      if test in broken:  # pytest knows it by another name
        return SURVIVED, test

  def _passes(self, copy: Copy, test: str) -> bool:
    """Whether a test passes without a mutant; of a file, whether it can be imported."""
    if test not in self._sound:
      only = [] if "::" in test else ["--collect-only"]
      self._sound[test] = copy.test([test, *only])[0] == 0
      if not self._sound[test]:
        print(f"mutants: {test} fails without a mutant: it is left out", file=sys.stderr)
    return self._sound[test]


def make_cases(root: Path, mutants: Sequence[Mutant], files: int = 6) -> list[Case]:
  """Cases of mutants, in their order.

  Args:
    files: test files of a mutant, the nearest, beside those that its line names.
  Raises:
    ValueError: one has no place or no test.
  """
  known, tests, cases = definitions(root), Tests(root), []
  for mutant in mutants:
    path = find_place(mutant, known).path
    text = (root / path).read_text("utf-8")
    names = tuple(dict.fromkeys([*mutant.tests, *tests.near(path)[:files]]))
    if not names and not mutant.equivalent:
      raise ValueError(f"mutants: no test imports {path}. Name one after ++.")
    digest = hashlib.sha256(repr(mutant[:3]).encode())
    for name in (path, *names):
      digest.update((root / name).read_bytes())
    cases.append(
      Case(mutant, path, mutate(text, mutant, find_place(mutant, known)), names, digest.hexdigest())
    )
  return cases


def share_caught(found: Sequence[dict]) -> tuple[int, int]:
  """How many were caught, of how many that were run and could be."""
  counts = collections.Counter(one["status"] for one in found)
  return counts[CAUGHT], len(found) - counts[EQUIVALENT] - counts[NOT_RUN]


def write_table(cases: Sequence[Case], found: Sequence[dict]) -> str:
  """The page: the share, what was not caught, and every mutant with the test that notices it."""
  caught, total = share_caught(found)
  counts = collections.Counter(one["status"] for one in found)
  pairs = list(zip((case.mutant for case in cases), found, strict=True))
  lines = [
    "# Mutants",
    "",
    "Faults planted in the core, one at a time, and whether the tests of the module that they are",
    "in notice them (`make mutants`; the list is `experiments/benchmarks/mutants.txt`). A fault is",
    "caught when a test fails with it that passes without it.",
    "",
    f"**{caught} of {total} caught ({100 * caught / max(1, total):.1f} %)**; "
    f"{counts[EQUIVALENT]} more change nothing that could be seen, {counts[NOT_RUN]} were not run"
    " yet.",
    "",
    "| package | caught | of |",
    "|---|---|---|",
  ]
  parts: dict[str, list[dict]] = collections.defaultdict(list)
  for case, one in zip(cases, found, strict=True):
    parts[case.path.rpartition("/")[0].replace("/", ".")].append(one)
  for part, some in sorted(parts.items()):
    lines.append("| `{}` | {} | {} |".format(part, *share_caught(some)))
  for title, status in (("Not caught", SURVIVED), ("Too slow to tell", TIMEOUT)):
    rows = [_show(mutant) for mutant, one in pairs if one["status"] == status]
    lines += ["", f"## {title}", "", *(f"- {row}" for row in rows)] if rows else []
  rows = [f"{_show(m)}: {m.equivalent}" for m, one in pairs if one["status"] == EQUIVALENT]
  lines += ["", "## Equivalent", "", *(f"- {row}" for row in rows)] if rows else []
  lines += ["", "## All", "", "| mutant | noticed by |", "|---|---|"]
  for mutant, one in pairs:
    noticed = one["test"].rpartition("/")[2] or one["status"]
    lines.append(f"| {_show(mutant)} | {_quote(noticed)} |")
  return "\n".join(lines) + "\n"


def _show(mutant: Mutant) -> str:
  return f"`{mutant.symbol}`: {_quote(mutant.before)} → {_quote(mutant.after)}"


def _quote(code: str) -> str:
  return "`{}`".format(code.strip().replace("|", "\\|")) if code.strip() else "nothing"


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--list", type=Path, default=Path(__file__).with_suffix(".txt"))
  parser.add_argument("--results", type=Path, default=Path("runs/mutants.jsonl"))
  parser.add_argument("--out", type=Path, help="Markdown page to write")
  parser.add_argument("--only", default="", help="regular expression on the symbols")
  parser.add_argument("--workers", type=int, default=2)
  parser.add_argument("--files", type=int, default=6, help="test files of a mutant")
  parser.add_argument("--seconds", type=float, default=400, help="that the tests of one may take")
  parser.add_argument("--minutes", type=float, default=math.inf, help="after which none is begun")
  parser.add_argument("--goal", type=float, default=0.95)
  options = parser.parse_args()
  root = Path(__file__).parents[2]
  mutants = read_mutants(options.list.read_text("utf-8"))
  cases = make_cases(root, mutants, options.files)
  cases = [case for case in cases if re.search(options.only, case.mutant.symbol)]
  options.results.parent.mkdir(parents=True, exist_ok=True)
  programs = options.results.absolute().with_suffix(".programs")
  copies = [Copy(root, seconds=options.seconds, programs=programs) for _ in range(options.workers)]
  try:
    with ThreadPoolExecutor(options.workers) as pool:
      runner = Runner(copies, options.results, 60 * options.minutes)
      found = list(pool.map(runner, cases))
  finally:
    for copy in copies:
      copy.close()
  if options.out:
    options.out.write_text(write_table(cases, found), "utf-8")
  for case, one in zip(cases, found, strict=True):
    if one["status"] in (SURVIVED, TIMEOUT):
      print(f"{one['status']}: {case.mutant.symbol}: {case.mutant.before} => {case.mutant.after}")
  caught, total = share_caught(found)
  print(f"mutants: {caught} of {total} caught ({100 * caught / max(1, total):.1f} %)")
  return int(caught < options.goal * total)


if __name__ == "__main__":
  sys.exit(main())

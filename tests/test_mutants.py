"""The list of mutants fits the code, and the program tells those that tests notice from others."""

from pathlib import Path

import pytest

from experiments.benchmarks import mutants, mutations
from experiments.benchmarks.mutations import Mutant

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "experiments" / "benchmarks" / "mutants.txt"

CODE = '''
LIMIT = 3


def double(x):
  return 2 * x


class Counter:
  def add(self, x):
    def inner(y):
      return y + LIMIT

    return inner(x)
'''
TESTS = '''
from data_pipeline import numbers


def test_broken():
  assert False


def test_double():
  assert numbers.double(2) == 4


def test_counter():
  assert numbers.Counter().add(1) > 1
'''


def test_every_mutant_of_the_list_has_its_place_and_its_tests():
  """Fails when code was moved or renamed: mend mutants.txt, do not drop the line."""
  listed = mutations.read_mutants(LIST.read_text("utf-8"))
  assert len(listed) >= 80 and len(set(listed)) == len(listed)
  cases = mutants.make_cases(ROOT, listed)  # raises for a symbol or a text that is not there once
  files = {name for case in cases for name in case.tests}
  assert all((ROOT / name).is_file() for name in files)
  assert len({case.key for case in cases}) == len(cases)
  assert all(case.text != (ROOT / case.path).read_text("utf-8") for case in cases)


def test_nearest_tests_come_first():
  tests = mutations.Tests(ROOT)
  assert tests.near("sora_jax/nn/rope.py")[0] == "tests/sora_jax/nn/test_layers_nn.py"
  assert tests.near("data_pipeline/curate/near.py")[0] == "tests/data_pipeline/curate/test_near.py"
  backends = "tests/sora_jax/attention/test_backends.py"  # by a name that is put together
  assert tests.near("sora_jax/attention/blocked.py")[0] == backends


@pytest.fixture
def tree(tmp_path):
  (tmp_path / "data_pipeline").mkdir()
  (tmp_path / "sora_jax").mkdir()
  (tmp_path / "tests").mkdir()
  (tmp_path / "data_pipeline" / "__init__.py").touch()
  (tmp_path / "data_pipeline" / "numbers.py").write_text(CODE)
  (tmp_path / "tests" / "test_numbers.py").write_text(TESTS)
  return tmp_path


def test_symbols_are_found_by_name(tree):
  (tree / "sora_jax" / "other.py").write_text("def double(x):\n  return x + x\n")
  known = mutations.definitions(tree)
  place = lambda symbol: mutations.find_place(Mutant(symbol, "", ""), known)  # noqa: E731
  assert place("Counter.add.inner").path == "data_pipeline/numbers.py"
  assert place("numbers:double").path == "data_pipeline/numbers.py"
  assert place("LIMIT").stop - place("LIMIT").first == 1
  for symbol, text in [("double", "other.py, data_pipeline/numbers.py"), ("treble", "no file")]:
    with pytest.raises(ValueError, match=f"is defined in .*{text}"):
      place(symbol)
  inner = Mutant("Counter.add.inner", "y + LIMIT", "y")
  changed = mutations.mutate(CODE, inner, place(inner.symbol))
  assert changed == CODE.replace("y + LIMIT", "y")
  for mutant, text in [
    (Mutant("numbers:double", "3 * x", "x"), "has 0 of"),
    (Mutant("numbers:double", "x", "y"), "has 2 of"),
    (Mutant("numbers:double", "2 * x", "2 *"), "is no Python"),
  ]:
    with pytest.raises(ValueError, match=text):
      mutations.mutate(CODE, mutant, place(mutant.symbol))
  with pytest.raises(ValueError, match="is not SYMBOL :: BEFORE => AFTER"):
    mutations.read_mutants("double: x -> y")


def test_caught_survived_and_resumed(tree, tmp_path, monkeypatch):
  monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # a third of each start
  listed = mutations.read_mutants(
    "# a comment\n\n"
    "double :: 2 * x => 3 * x\n"
    "LIMIT :: 3 => 4\n"
    "double :: 2 * x => x + x ~~ the same number\n"
  )
  cases = mutants.make_cases(tree, listed)
  assert [case.tests for case in cases[:2]] == [("tests/test_numbers.py",)] * 2
  results = tmp_path / "results.jsonl"
  copy = mutants.Copy(tree, seconds=60, programs=None)
  try:
    runner = mutants.Runner([copy], results)
    found = [runner(case) for case in cases]
  finally:
    copy.close()
  assert [one["status"] for one in found] == ["caught", "survived", "equivalent"]
  assert found[0]["test"].endswith("test_double"), "not the test that fails without a mutant"
  assert mutants.share_caught(found) == (1, 2)
  late = mutants.Runner([], tmp_path / "none.jsonl", seconds=-1)
  assert [late(case)["status"] for case in cases] == ["not run yet"] * 2 + ["equivalent"]
  page = mutants.write_table(cases, found)
  assert "**1 of 2 caught (50.0 %)**" in page and "`2 * x` → `x + x`: the same number" in page
  again = mutants.Runner([], results)  # no copy: nothing can be run
  assert [again(case)["status"] for case in cases] == ["caught", "survived", "equivalent"]
  assert (tree / "data_pipeline" / "numbers.py").read_text() == CODE

"""Mutants: addressed by the symbol that they change; and which tests import what they are in."""

import ast
import collections
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("sora_jax", "data_pipeline")
HOPS = 3  # imports between a module and a test file, at most
# Tests that start processes or train for long: only where a line of the list names them.
SLOW = re.compile(r"/(commands|launch|film)/|test_(meshes|gradients|processes|reshard|storage)\b")


class Mutant(NamedTuple):
  """One line of the list.

  Attributes:
    symbol: that holds the text `before`, which `after` replaces.
    tests: further test files, which run first.
    equivalent: why no test can notice it; "" where one can.
  """

  symbol: str
  before: str
  after: str
  tests: tuple[str, ...] = ()
  equivalent: str = ""


class Place(NamedTuple):
  """Where a symbol is defined: file, first line and the one after its last, from 0."""

  path: str
  first: int
  stop: int


def read_mutants(text: str) -> list[Mutant]:
  """The mutants of a list. Raises ValueError for a line that is none."""
  found = []
  for line in text.splitlines():
    if not line.strip() or line.startswith("#"):
      continue
    rest, _, equivalent = line.partition(" ~~ ")
    rest, _, tests = rest.partition(" ++ ")
    symbol, _, change = rest.partition(" :: ")
    before, arrow, after = change.partition(" => ")
    if not (symbol and before and arrow):
      raise ValueError(f"mutants: {line!r} is not SYMBOL :: BEFORE => AFTER.")
    found.append(Mutant(symbol, before, after.rstrip(), tuple(tests.split()), equivalent))
  return found


def definitions(root: Path, packages: Iterable[str] = PACKAGES) -> dict[str, list[Place]]:
  """Where the packages define each symbol: functions, classes, methods and constants."""
  found: dict[str, list[Place]] = collections.defaultdict(list)
  for package in packages:
    for path in sorted((root / package).rglob("*.py")):
      where = path.relative_to(root).as_posix()
      for name, first, stop in _walk(ast.parse(path.read_text("utf-8")), ""):
        found[name].append(Place(where, first, stop))
  return found


def _walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, int, int]]:
  for child in ast.iter_child_nodes(node):
    if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
      yield prefix + child.name, child.lineno - 1, child.end_lineno or 0
      yield from _walk(child, f"{prefix}{child.name}.")
    elif isinstance(child, ast.Assign | ast.AnnAssign):
      targets = child.targets if isinstance(child, ast.Assign) else [child.target]
      names = [each.id for target in targets for each in _names(target)]
      yield from ((prefix + name, child.lineno - 1, child.end_lineno or 0) for name in names)
    else:
      yield from _walk(child, prefix)


def _names(target: ast.expr) -> list[ast.Name]:
  return [node for node in ast.walk(target) if isinstance(node, ast.Name)]


def find_place(mutant: Mutant, known: Mapping[str, list[Place]]) -> Place:
  """The one definition of a mutant's symbol. Raises ValueError: none, or several."""
  module, _, symbol = mutant.symbol.rpartition(":")
  places = [
    place
    for place in known.get(symbol, [])
    if not module or place.path.removesuffix(".py").endswith("/" + module.replace(".", "/"))
  ]
  if len(places) != 1:
    where = ", ".join(place.path for place in places) or "no file"
    raise ValueError(f"mutants: {mutant.symbol} is defined in {where}. Name one, MODULE:SYMBOL.")
  return places[0]


def mutate(text: str, mutant: Mutant, place: Place) -> str:
  """A file's text with the mutant in it.

  Raises:
    ValueError: `before` is not exactly once in the symbol, or what comes out is no Python.
  """
  lines = text.splitlines(keepends=True)
  own = "".join(lines[place.first : place.stop])
  count = own.count(mutant.before)
  if count != 1:
    raise ValueError(f"mutants: {mutant.symbol} has {count} of {mutant.before!r}, not one.")
  own = own.replace(mutant.before, mutant.after)
  changed = "".join([*lines[: place.first], own, *lines[place.stop :]])
  try:
    ast.parse(changed)
  except SyntaxError as error:
    raise ValueError(f"mutants: {mutant.symbol}: {mutant.after!r} is no Python.") from error
  return changed


class Tests:
  """Which test files import a module, over how many imports.

  Args:
    root: of the tree: the packages, and `tests` with its `support`.
  """

  def __init__(self, root: Path, packages: Iterable[str] = PACKAGES):
    paths = [path for top in (*packages, "tests") for path in sorted((root / top).rglob("*.py"))]
    self._path_of = {_module(path.relative_to(root)): path for path in paths}
    self._root = root
    users: dict[str, set[str]] = collections.defaultdict(set)
    for name, path in self._path_of.items():
      for used in self._imports(path):
        users[used].add(name)
      if path.name == "conftest.py":  # is there for all tests beside and below it
        below = f"{name.rpartition('.')[0]}."
        users[name] |= {other for other in self._path_of if other.startswith(below)} - {name}
    self._users = users

  def _imports(self, path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
      if isinstance(node, ast.Import):
        found |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
      elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
        start = str(node.values[0].value)  # import_module(f"package.{name}"): any of the package
        if re.fullmatch(r"(\w+\.)+", start):
          found |= {name for name in self._path_of if name.startswith(start)}
    bare = {name.rpartition(".")[2]: name for name in self._path_of if ".support." in name}
    return {bare.get(name, name) for name in found} & set(self._path_of)

  def near(self, path: str) -> list[str]:
    """Test files of a module, the nearest first: by imports between, then beside their mirror."""
    distance, edge = {_module(Path(path)): 0}, [_module(Path(path))]
    for hops in range(1, HOPS + 1):
      edge = [user for name in edge for user in sorted(self._users[name]) if user not in distance]
      distance |= dict.fromkeys(edge, hops)
      edge = [name for name in edge if not _is_test(self._path_of[name])]
    own = f"tests/{path.rpartition('/')[0]}/"
    ranked = []
    for name, hops in distance.items():
      where = self._path_of[name].relative_to(self._root).as_posix()
      if _is_test(self._path_of[name]) and not SLOW.search(where):
        named = Path(path).stem in where
        beside = f"{where.rpartition('/')[0]}/" == own
        ranked.append((hops - where.startswith(own) - named, not named, not beside, where))
    return [where for *_, where in sorted(ranked)]


def _module(path: Path) -> str:
  parts = path.with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_test(path: Path) -> bool:
  return path.name.startswith("test_")

"""What a config imports, and from where: in this order

1. the folder of its own file, as Python does for a script;
2. the folder that holds its package: above the outermost folder with an `__init__.py`, or above its
   own folder where that has none, so that `from experiments import common` finds its neighbour;
3. the project, with the experiments that are shipped;
4. the current folder, and Python's own path.

A folder named `experiments` without `__init__.py` is joined with the shipped one, its files first.
Nothing that one config brings is seen by another.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from sora_jax.commands.config_files import INSTALLED, PACKAGE

OURS = {"sora_jax", "data_pipeline"}
ORDER = "its own folder, the folder that holds its package, the shipped experiments"


def import_folders(file: Path) -> list[str]:
  """The folders that come before Python's own path, in their order."""
  own = file.resolve().parent
  top = own
  while (top / "__init__.py").is_file():
    top = top.parent
  holder = own.parent if top == own else top
  return list(dict.fromkeys(map(str, (own, holder, INSTALLED))))


@contextlib.contextmanager
def importing_beside(file: str) -> Iterator[None]:
  """Makes a config's imports come from where they should; afterwards all is as before."""
  path, before = list(sys.path), dict(sys.modules)
  folders = import_folders(Path(file))
  for name in list(before):
    if name.partition(".")[0] == PACKAGE:  # those of another config
      del sys.modules[name]
  rest = [one for one in path if one not in folders]
  sys.path[:] = [*folders, *([] if os.getcwd() in rest else [os.getcwd()]), *rest]
  importlib.invalidate_caches()
  try:
    yield
  finally:
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
      if before.get(name) is not module and _is_of_config(name, module, folders[:2]):
        del sys.modules[name]
    sys.modules.update({n: m for n, m in before.items() if n.partition(".")[0] == PACKAGE})


def _is_of_config(name: str, module: ModuleType, folders: list[str]) -> bool:
  """Whether a module lies in one of a config's folders, and is no installed package there."""
  top = name.partition(".")[0]
  if top == PACKAGE or top in OURS or top in sys.stdlib_module_names:
    return top == PACKAGE
  places = [getattr(module, "__file__", None) or "", *list(getattr(module, "__path__", ()))]
  return any(
    Path(place).is_relative_to(folder) and "site-packages" not in place[len(folder) :]
    for place in places
    if place
    for folder in folders
  )

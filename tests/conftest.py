"""Tests run on the CPU with one device; those that need more start a process of their own."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Commands that tests start leave the user's cache of compiled programs alone.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

# With `--dist loadfile` a worker gets the next file when it has done its own: long ones come first.
LONG = ("test_chaos.py", "test_slurm.py", "test_meshes.py", "test_gradients.py")
LONG += ("test_plan_command.py", "test_stops.py")


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))

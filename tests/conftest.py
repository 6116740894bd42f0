"""Tests run on the CPU with one device; those that need more start a process of their own."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Commands that tests start leave the user's cache of compiled programs alone.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

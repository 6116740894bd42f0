"""Tests run on the CPU with one device; those that need more start a process of their own."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

"""Tests run on the CPU with one device; those that need more start a process of their own."""

import os
import shutil
import signal
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny programs take longer to optimise than to run. `make test-slow` optimises them, as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# What is compiled is kept for all workers and for the processes that tests start, and thrown away
# at the end unless SORA_TEST_PROGRAMS names a folder. The user's own cache is left alone.
KEPT = "SORA_TEST_PROGRAMS"
MADE = "" if KEPT in os.environ else tempfile.mkdtemp(prefix="sora-test-programs-")
os.environ.setdefault(KEPT, MADE)
os.environ |= {
  "JAX_COMPILATION_CACHE_DIR": os.environ[KEPT],
  "JAX_ENABLE_COMPILATION_CACHE": "true",
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # begun by a script's `&`
  signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure():
  if MADE:  # not in a worker, which finds the folder in its environment
    shutil.rmtree(MADE, ignore_errors=True)

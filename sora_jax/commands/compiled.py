"""Compiled programs are kept from one process to the next, so that a restart does not compile."""

import os
import sys
from collections.abc import MutableMapping

from data_pipeline.paths import cache_folder

FOLDER = "JAX_COMPILATION_CACHE_DIR"
LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def keep_compiled(environment: MutableMapping[str, str] = os.environ) -> None:
  """Tells JAX, which has not been imported yet, where to keep what it compiles.

  `$XDG_CACHE_HOME/sora_jax/xla` or `~/.cache/sora_jax/xla`, unless JAX_COMPILATION_CACHE_DIR names
  another folder, a bucket's too; JAX_ENABLE_COMPILATION_CACHE=false switches it off. On GPUs the
  choices of autotuning are kept beside the programs.
  """
  if environment.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false", "off", "no"):
    return
  environment.setdefault(LEAST_SECONDS, "0.3")
  if FOLDER in environment:
    environment[FOLDER] = os.path.expanduser(environment[FOLDER])
    return
  folder = cache_folder(environment) / "xla"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    writable = os.access(folder, os.W_OK)
  except OSError:
    writable = False
  if writable:
    environment[FOLDER] = str(folder)
  else:
    print(
      f"sora: {folder} cannot be written, so every start compiles anew. Set {FOLDER} to a folder.",
      file=sys.stderr,
    )

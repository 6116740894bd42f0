"""Plans are kept: the same config on the same pod is not compiled twice."""

import hashlib
import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from data_pipeline.paths import cache_folder

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("sora_jax", "data_pipeline")
COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda13-pjrt", "jax-cuda12-pjrt", "flax", "optax")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_ENABLE_X64")


def cache_file(config: dict, topology: str) -> Path:
  """Where the plan of a resolved config for a pod is kept: by all that decides it."""
  digest = hashlib.sha256()
  for source in sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
    digest.update(source.read_bytes())
  facts = {"config": config, "topology": topology, "sources": digest.hexdigest()}
  facts |= {name: _version(name) for name in COMPILERS}
  facts |= {name: os.environ.get(name, "") for name in FLAGS}
  key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
  return cache_folder() / "plans" / f"{key}.json"


def _version(package: str) -> str:
  try:
    return version(package)
  except PackageNotFoundError:
    return ""


def read_plan(file: Path) -> dict | None:
  """A plan that was kept; None where there is none, or none that is whole."""
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None


def keep_plan(file: Path, plan: dict) -> None:
  """Keeps a plan, whole or not at all; without room or permission it is not kept."""
  partial = file.with_suffix(f".{os.getpid()}")
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(plan), encoding="utf-8")
    os.replace(partial, file)
  except OSError:
    partial.unlink(missing_ok=True)

